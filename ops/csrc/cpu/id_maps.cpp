// Two maps of segment ids on the CPU, compared row by row; a row of a PNG is read when its turn comes.
//
// All goes by blocks of pixels, since maps of segments are mostly runs: a block within a run costs
// one comparison.
#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "simd.h"

namespace mmplus {
namespace {

constexpr int64_t BLOCK = 16;

// ---- scanlines of a PNG: three bytes a pixel; an id is the same bytes, the first one lowest ----

MMPLUS_INLINE uint32_t load(const uint8_t* pixel) {
  return pixel[0] | static_cast<uint32_t>(pixel[1]) << 8 | static_cast<uint32_t>(pixel[2]) << 16;
}

// Three sums modulo 256 at once: the high bits are added without carrying.
MMPLUS_INLINE uint32_t add_bytes(uint32_t a, uint32_t b) {
  return ((a & 0x7F7F7Fu) + (b & 0x7F7F7Fu)) ^ ((a ^ b) & 0x808080u);
}

MMPLUS_INLINE uint32_t half_sum_of_bytes(uint32_t a, uint32_t b) {
  return (a & b) + (((a ^ b) >> 1) & 0x7F7F7Fu);
}

MMPLUS_INLINE int paeth(int left, int above, int corner) {
  const int by_left = std::abs(above - corner), by_above = std::abs(left - corner);
  const int by_corner = std::abs(left + above - 2 * corner);
  const int best = by_above <= by_corner ? above : corner;
  return by_left <= by_above && by_left <= by_corner ? left : best;
}

MMPLUS_INLINE uint32_t paeth_of_bytes(uint32_t left, uint32_t above, uint32_t corner) {
  if (corner == above) {
    return left;
  }
  if (corner == left) {
    return above;
  }
  uint32_t predicted = 0;
  for (int shift = 0; shift < 24; shift += 8) {
    const int value =
        paeth(left >> shift & 0xFF, above >> shift & 0xFF, corner >> shift & 0xFF);
    predicted |= static_cast<uint32_t>(value) << shift;
  }
  return predicted;
}

MMPLUS_INLINE bool all_zero(const uint8_t* block) {
  uint64_t words[3 * BLOCK / 8], any = 0;
  std::memcpy(words, block, sizeof(words));
  for (const uint64_t word : words) {
    any |= word;
  }
  return any == 0;
}

MMPLUS_INLINE bool repeats(const uint32_t* ids, uint32_t id) {
  uint32_t differs = 0;
  for (int64_t i = 0; i < BLOCK; ++i) {
    differs |= ids[i] ^ id;
  }
  return differs == 0;
}

// A row of ids. ``run(x)`` writes the block at x if its bytes are zero; it may decline.
template <typename Run, typename Pixel>
MMPLUS_INLINE void write_row(const uint8_t* line, int64_t width, Run run, Pixel pixel) {
  int64_t x = 0;
  for (; x + BLOCK <= width; x += BLOCK) {
    if (!all_zero(line + 3 * x) || !run(x)) {
      for (int64_t i = x; i < x + BLOCK; ++i) {
        pixel(i);
      }
    }
  }
  for (; x < width; ++x) {
    pixel(x);
  }
}

// PNG specification, section 9.2: what is written is the difference to a prediction. Returns
// whether the filter is one of the five.
MMPLUS_SIMD bool unfilter_row(
    int filter,
    const uint8_t* line,
    const uint32_t* above,
    int64_t width,
    uint32_t* ids) {
  uint32_t left = 0, corner = 0;
  switch (filter) {
    case 0:
      for (int64_t x = 0; x < width; ++x) {
        ids[x] = load(line + 3 * x);
      }
      return true;
    case 1:
      write_row(
          line,
          width,
          [&](int64_t x) {
            std::fill(ids + x, ids + x + BLOCK, left);
            return true;
          },
          [&](int64_t x) { ids[x] = left = add_bytes(left, load(line + 3 * x)); });
      return true;
    case 2:
      write_row(
          line,
          width,
          [&](int64_t x) {
            std::copy(above + x, above + x + BLOCK, ids + x);
            return true;
          },
          [&](int64_t x) { ids[x] = add_bytes(above[x], load(line + 3 * x)); });
      return true;
    case 3:
      for (int64_t x = 0; x < width; ++x) {
        ids[x] = left = add_bytes(half_sum_of_bytes(left, above[x]), load(line + 3 * x));
      }
      return true;
    case 4:
      write_row(
          line,
          width,
          [&](int64_t x) {
            // Where the row above does not change, the pixel to the left is the prediction.
            if (!repeats(above + x, corner)) {
              return false;
            }
            std::fill(ids + x, ids + x + BLOCK, left);
            return true;
          },
          [&](int64_t x) {
            const uint32_t predicted = paeth_of_bytes(left, above[x], corner);
            ids[x] = left = add_bytes(predicted, load(line + 3 * x));
            corner = above[x];
          });
      return true;
    default:
      return false;
  }
}

// The rows of a map from the first to the last: of ids as they are, of scanlines with the filters
// undone. A row is there until the one after the next is asked for.
class Rows {
 public:
  explicit Rows(const at::Tensor& map)
      : map_(map.contiguous()),
        filtered_(map.scalar_type() == at::kByte),
        width_(filtered_ ? (map.size(1) - 1) / 3 : map.size(1)) {
    if (filtered_) {
      buffers_[0].resize(width_, 0);
      buffers_[1].resize(width_, 0);
    }
  }

  int64_t width() const { return width_; }

  const int32_t* next() {
    const int64_t row = row_++;
    if (!filtered_) {
      return map_.const_data_ptr<int32_t>() + row * width_;
    }
    const uint8_t* line = map_.const_data_ptr<uint8_t>() + row * (1 + 3 * width_);
    uint32_t* ids = buffers_[row & 1].data();
    TORCH_CHECK_VALUE(
        unfilter_row(*line, line + 1, buffers_[1 - (row & 1)].data(), width_, ids),
        "scanline ", row, " begins with ", static_cast<int>(*line), ", filters are 0 to 4");
    return reinterpret_cast<const int32_t*>(ids);
  }

 private:
  at::Tensor map_;
  bool filtered_;
  int64_t width_, row_ = 0;
  std::vector<uint32_t> buffers_[2];
};

// ---- two maps ----

using Pair = std::pair<int32_t, int32_t>;

uint64_t hash(const Pair& pair) {
  const auto both = static_cast<uint64_t>(static_cast<uint32_t>(pair.first)) << 32 |
      static_cast<uint32_t>(pair.second);
  return both * 0x9E3779B97F4A7C15u;
}

struct PairHash {
  size_t operator()(const Pair& pair) const { return static_cast<size_t>(hash(pair) >> 20); }
};

class Areas {
 public:
  void add(const Pair& pair, int64_t pixels) {
    // Where a run ends, a pair begins that most often was there in the row above.
    Recent& recent = recent_[hash(pair) >> 56];
    if (recent.area == nullptr || recent.pair != pair) {
      recent = {pair, &areas_[pair]};
    }
    *recent.area += pixels;
  }

  std::vector<std::pair<Pair, int64_t>> sorted() const {
    std::vector<std::pair<Pair, int64_t>> entries(areas_.begin(), areas_.end());
    std::sort(entries.begin(), entries.end());
    return entries;
  }

 private:
  struct Recent {
    Pair pair;
    int64_t* area = nullptr;
  };

  std::unordered_map<Pair, int64_t, PairHash> areas_;
  std::array<Recent, 256> recent_;
};

// Bit i tells whether the pixel at i differs from the one before it in either map.
MMPLUS_INLINE uint32_t changes(const int32_t* first, const int32_t* second, int64_t pixels) {
  uint32_t bits = 0;
  for (int64_t i = 0; i < pixels; ++i) {
    const int32_t differs = (first[i] ^ first[i - 1]) | (second[i] ^ second[i - 1]);
    bits |= static_cast<uint32_t>(differs != 0) << i;
  }
  return bits;
}

MMPLUS_SIMD void count_runs(
    const int32_t* first,
    const int32_t* second,
    int64_t pixels,
    Areas& areas) {
  int64_t begin = 0;
  for (int64_t at = 1; at < pixels; at += 32) {
    const int64_t here = std::min<int64_t>(32, pixels - at);
    uint32_t bits;
    if (pixels > 32) {
      // The last block reaches back over pixels that were looked at before, and are shifted out.
      const int64_t block = at - (32 - here);
      bits = changes(first + block, second + block, 32) >> (32 - here);
    } else {
      bits = changes(first + at, second + at, here);
    }
    for (; bits != 0; bits &= bits - 1) {
      const int64_t end = at + __builtin_ctz(bits);
      areas.add({first[begin], second[begin]}, end - begin);
      begin = end;
    }
  }
  areas.add({first[begin], second[begin]}, pixels - begin);
}

std::tuple<at::Tensor, at::Tensor> pair_areas(const at::Tensor& first, const at::Tensor& second) {
  Rows first_rows(first), second_rows(second);
  Areas areas;
  const int64_t height = first.size(0), width = first_rows.width();
  TORCH_CHECK_VALUE(
      second.size(0) == height && second_rows.width() == width,
      "maps of ", height, " x ", width, " and ", second.size(0), " x ", second_rows.width());
  for (int64_t row = 0; row < height && width > 0; ++row) {
    const int32_t* a = first_rows.next();
    const int32_t* b = second_rows.next();
    count_runs(a, b, width, areas);
  }
  const auto entries = areas.sorted();
  const auto count = static_cast<int64_t>(entries.size());
  const auto options = first.options().dtype(at::kLong);
  at::Tensor pairs = at::empty({count, 2}, options), pixels = at::empty({count}, options);
  auto* pair = pairs.mutable_data_ptr<int64_t>();
  auto* area = pixels.mutable_data_ptr<int64_t>();
  for (const auto& [ids, number] : entries) {
    *pair++ = ids.first;
    *pair++ = ids.second;
    *area++ = number;
  }
  return {pairs, pixels};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("pair_areas", &pair_areas);
}

}  // namespace mmplus
