// Boundary patches (BPR, section 3.1) on the CPU: where the patches lie, and putting them back.
//
// Whether a pixel lies on a boundary is decided for 64 pixels at a time, on packed bits. Boundary
// pixels are few, and kept patches fewer: a candidate is compared with the kept ones around it alone.
#include <algorithm>
#include <cstring>
#include <tuple>
#include <vector>

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>
#include <torch/library.h>

#include "../boundary_boxes.h"
#include "mask_bits.h"
#include "memory.h"
#include "simd.h"

namespace mmplus {
namespace {

// ---- boundary pixels ----

MMPLUS_SIMD void pack_line(const uint8_t* bytes, int64_t pixels, uint64_t* words) {
  pack_row(bytes, pixels, words);
}

// For each word of a row: any and all of the three pixels left, at and right of each bit.
void spread_along_row(const uint64_t* row, int64_t words, uint64_t* any, uint64_t* all) {
  for (int64_t i = 0; i < words; ++i) {
    const uint64_t before = i > 0 ? row[i - 1] >> 63 : 0;
    const uint64_t after = i + 1 < words ? row[i + 1] << 63 : 0;
    const uint64_t left = row[i] << 1 | before, right = row[i] >> 1 | after;
    any[i] = row[i] | left | right;
    all[i] = row[i] & left & right;
  }
}

int32_t bit_at(const uint64_t* row, int64_t x, int64_t cols) {
  return x < 0 || x >= cols ? 0 : static_cast<int32_t>(row[x / 64] >> (x % 64) & 1);
}

// In raster order.
std::vector<Pixel> boundary_pixels(const uint8_t* mask, int64_t rows, int64_t cols) {
  const int64_t words = (cols + 63) / 64;
  const uint64_t last = cols % 64 == 0 ? ~uint64_t(0) : (uint64_t(1) << cols % 64) - 1;
  // Three rows of each, used in turn; what lies outside the image is 0.
  std::vector<uint64_t> bits(3 * words, 0), any(3 * words, 0), all(3 * words, 0);
  std::vector<Pixel> found;
  const auto slot = [&](int64_t row) { return (row + 3) % 3 * words; };
  const auto load = [&](int64_t row) {
    uint64_t* target = bits.data() + slot(row);
    if (row < rows) {
      pack_line(mask + row * cols, cols, target);
    } else {
      std::fill(target, target + words, uint64_t(0));
    }
    spread_along_row(target, words, any.data() + slot(row), all.data() + slot(row));
  };
  if (rows > 0) {
    load(0);
  }
  for (int64_t y = 0; y < rows; ++y) {
    load(y + 1);
    const int64_t a = slot(y - 1), b = slot(y), c = slot(y + 1);
    for (int64_t i = 0; i < words; ++i) {
      uint64_t edge = (any[a + i] | any[b + i] | any[c + i]) & ~(all[a + i] & all[b + i] & all[c + i]);
      if (i == words - 1) {
        edge &= last;
      }
      while (edge != 0) {
        const int64_t x = i * 64 + __builtin_ctzll(edge);
        edge &= edge - 1;
        int32_t sum = 0;
        for (const int64_t row : {a, b, c}) {
          for (int64_t dx = -1; dx <= 1; ++dx) {
            sum += bit_at(bits.data() + row, x + dx, cols);
          }
        }
        const bool inside = bit_at(bits.data() + b, x, cols) != 0;
        found.push_back(
            {static_cast<int32_t>(y), static_cast<int32_t>(x), std::min(sum, 9 - sum), inside,
             0.0f});
      }
    }
  }
  return found;
}

std::tuple<at::Tensor, at::Tensor> extract_boundary_patches(
    const at::Tensor& masks,
    int64_t patch_size,
    double iou_thr,
    c10::string_view scheme,
    std::optional<int64_t> max_patches,
    const std::optional<at::Tensor>& uncertainty) {
  const at::Tensor dense = masks.contiguous();
  const int64_t count = dense.size(0), rows = dense.size(1), cols = dense.size(2);
  const auto* bytes = static_cast<const uint8_t*>(dense.const_data_ptr());
  const at::Tensor doubt =
      uncertainty.has_value() ? uncertainty->to(at::kFloat).contiguous() : at::Tensor();
  const bool ranked = max_patches.has_value() && doubt.defined();
  std::vector<std::vector<Box>> found(count);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      std::vector<Pixel> pixels = boundary_pixels(bytes + n * rows * cols, rows, cols);
      if (ranked) {
        const float* values = doubt.const_data_ptr<float>() + n * rows * cols;
        for (Pixel& pixel : pixels) {
          pixel.uncertainty = values[pixel.y * cols + pixel.x];
        }
      }
      found[n] = boxes_of(pixels, rows, cols, patch_size, iou_thr, scheme, ranked);
    }
  });
  const std::vector<Patch> patches = within_budget(found, max_patches);
  const auto options = dense.options().dtype(at::kLong);
  const auto total = static_cast<int64_t>(patches.size());
  at::Tensor boxes = at::empty({total, 4}, options), index = at::empty({total}, options);
  auto* corner = boxes.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < total; ++i) {
    index.mutable_data_ptr<int64_t>()[i] = patches[i].mask;
    const Box& box = patches[i].box;
    for (const int64_t value : {box.x1, box.y1, box.x2, box.y2}) {
      *corner++ = value;
    }
  }
  return {boxes, index};
}

// ---- cropping ----

// A compiled graph comes here without the checks in Python; a wrong place would be foreign memory.
void check_boxes(
    const int64_t* box, const int64_t* owner, int64_t total, int64_t count, int64_t rows,
    int64_t cols) {
  for (int64_t p = 0; p < total; ++p, box += 4) {
    TORCH_CHECK_VALUE(
        box[0] >= 0 && box[1] >= 0 && box[2] <= cols && box[3] <= rows && box[0] < box[2] &&
            box[1] < box[3],
        "boxes must be non-empty and inside the image of ", rows, " x ", cols, ", got [", box[0],
        ", ", box[1], ", ", box[2], ", ", box[3], "] in row ", p);
    TORCH_CHECK_VALUE(
        owner[p] >= 0 && owner[p] < count,
        "mask_index must lie in [0, ", count, "), got ", owner[p], " in row ", p);
  }
}

// Where a resized row or column reads: bilinear, align_corners=False.
struct Tap {
  int64_t low, high;
  float weight;  // of the second
};

std::vector<Tap> taps(int64_t from, int64_t to) {
  std::vector<Tap> result;
  const float ratio = static_cast<float>(from) / static_cast<float>(to);
  for (int64_t i = 0; i < to; ++i) {
    const float position = std::max((static_cast<float>(i) + 0.5f) * ratio - 0.5f, 0.0f);
    const int64_t low = std::min(static_cast<int64_t>(position), from - 1);
    result.push_back({low, std::min(low + 1, from - 1), position - static_cast<float>(low)});
  }
  return result;
}

// Nearest neighbour as torch's 'nearest': floor(i * from / to).
std::vector<int64_t> nearest(int64_t from, int64_t to) {
  std::vector<int64_t> result;
  const float ratio = static_cast<float>(from) / static_cast<float>(to);
  for (int64_t i = 0; i < to; ++i) {
    result.push_back(std::min(static_cast<int64_t>(static_cast<float>(i) * ratio), from - 1));
  }
  return result;
}

std::tuple<at::Tensor, at::Tensor> crop_patches(
    const at::Tensor& image,
    const at::Tensor& masks,
    const at::Tensor& boxes,
    const at::Tensor& mask_index,
    int64_t output_size,
    int64_t padding) {
  const at::Tensor pixels = image.contiguous(), dense = masks.contiguous();
  const at::Tensor corners = boxes.contiguous(), owners = mask_index.contiguous();
  const int64_t rows = pixels.size(0), cols = pixels.size(1), size = output_size;
  const int64_t total = corners.size(0);
  const auto options = pixels.options().dtype(at::kFloat);
  at::Tensor images = at::empty({total, 3, size, size}, options);
  at::Tensor crops = at::empty({total, 1, size, size}, options);
  const auto* source = pixels.const_data_ptr<uint8_t>();
  const auto* bytes = static_cast<const uint8_t*>(dense.const_data_ptr());
  const auto* box = corners.const_data_ptr<int64_t>();
  const auto* owner = owners.const_data_ptr<int64_t>();
  check_boxes(box, owner, total, dense.size(0), rows, cols);
  auto* out = images.mutable_data_ptr<float>();
  auto* mask_out = crops.mutable_data_ptr<float>();
  at::parallel_for(0, total, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> line;
    for (int64_t p = begin; p < end; ++p) {
      const int64_t x1 = box[4 * p] - padding, y1 = box[4 * p + 1] - padding;
      const int64_t width = box[4 * p + 2] + padding - x1;
      const int64_t height = box[4 * p + 3] + padding - y1;
      const std::vector<Tap> vertical = taps(height, size), horizontal = taps(width, size);
      line.resize(width * 3);
      const auto read = [&](int64_t row, int64_t col, int64_t channel) -> float {
        const int64_t y = y1 + row, x = x1 + col;
        return y < 0 || y >= rows || x < 0 || x >= cols
            ? 0.0f
            : static_cast<float>(source[(y * cols + x) * 3 + channel]);
      };
      for (int64_t i = 0; i < size; ++i) {
        const Tap& v = vertical[i];
        for (int64_t col = 0; col < width; ++col) {
          for (int64_t channel = 0; channel < 3; ++channel) {
            const float low = read(v.low, col, channel), high = read(v.high, col, channel);
            line[col * 3 + channel] = low * (1.0f - v.weight) + high * v.weight;
          }
        }
        for (int64_t channel = 0; channel < 3; ++channel) {
          float* target = out + ((p * 3 + channel) * size + i) * size;
          for (int64_t j = 0; j < size; ++j) {
            const Tap& h = horizontal[j];
            target[j] = line[h.low * 3 + channel] * (1.0f - h.weight) +
                line[h.high * 3 + channel] * h.weight;
          }
        }
      }
      const std::vector<int64_t> ys = nearest(height, size), xs = nearest(width, size);
      const uint8_t* mask = bytes + owner[p] * rows * cols;
      for (int64_t i = 0; i < size; ++i) {
        float* target = mask_out + (p * size + i) * size;
        const int64_t y = y1 + ys[i];
        for (int64_t j = 0; j < size; ++j) {
          const int64_t x = x1 + xs[j];
          const bool inside = y >= 0 && y < rows && x >= 0 && x < cols;
          target[j] = inside && mask[y * cols + x] != 0 ? 1.0f : 0.0f;
        }
      }
    }
  });
  return {images, crops};
}

// ---- putting back ----

at::Tensor reassemble_patches(
    const at::Tensor& masks,
    const at::Tensor& boxes,
    const at::Tensor& mask_index,
    const at::Tensor& patches,
    double threshold,
    int64_t padding) {
  const at::Tensor dense = masks.contiguous(), corners = boxes.contiguous();
  const at::Tensor owners = mask_index.contiguous();
  const at::Tensor values = patches.to(at::kFloat).contiguous();
  const int64_t count = dense.size(0), rows = dense.size(1), cols = dense.size(2);
  const int64_t total = corners.size(0), high = values.size(1), wide = values.size(2);
  at::Tensor output = at::empty({count, rows, cols}, dense.options().dtype(at::kBool));
  prefer_huge_pages(output);
  const auto* bytes = static_cast<const uint8_t*>(dense.const_data_ptr());
  auto* out = static_cast<uint8_t*>(output.mutable_data_ptr());
  const auto* box = corners.const_data_ptr<int64_t>();
  const auto* owner = owners.const_data_ptr<int64_t>();
  const auto* probabilities = values.const_data_ptr<float>();
  check_boxes(box, owner, total, count, rows, cols);
  std::vector<std::vector<int64_t>> of_mask(count);
  for (int64_t p = 0; p < total; ++p) {
    of_mask[owner[p]].push_back(p);
  }
  const auto limit = static_cast<float>(threshold);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> sum, resized;
    std::vector<int32_t> covered;
    for (int64_t n = begin; n < end; ++n) {
      uint8_t* target = out + n * rows * cols;
      // Once: normalised while copied. bool masks are 0 or 1 already.
      const uint8_t* source = bytes + n * rows * cols;
      if (dense.scalar_type() == at::kBool) {
        std::memcpy(target, source, static_cast<size_t>(rows * cols));
      } else {
        for (int64_t i = 0; i < rows * cols; ++i) {
          target[i] = source[i] != 0;
        }
      }
      if (of_mask[n].empty()) {
        continue;
      }
      // Sums are needed where patches lie, row by row of the rectangle around them.
      int64_t left = cols, top = rows, right = 0, bottom = 0;
      for (const int64_t p : of_mask[n]) {
        left = std::min(left, box[4 * p]);
        top = std::min(top, box[4 * p + 1]);
        right = std::max(right, box[4 * p + 2]);
        bottom = std::max(bottom, box[4 * p + 3]);
      }
      const int64_t span = right - left;
      sum.assign(static_cast<size_t>(span * (bottom - top)), 0.0f);
      covered.assign(static_cast<size_t>(span * (bottom - top)), 0);
      for (const int64_t p : of_mask[n]) {
        const int64_t width = box[4 * p + 2] - box[4 * p], height = box[4 * p + 3] - box[4 * p + 1];
        const int64_t full_w = width + 2 * padding, full_h = height + 2 * padding;
        const float* patch = probabilities + p * high * wide;
        if (full_w != wide || full_h != high) {
          resized.resize(static_cast<size_t>(full_w * full_h));
          const std::vector<Tap> vertical = taps(high, full_h), horizontal = taps(wide, full_w);
          for (int64_t i = 0; i < full_h; ++i) {
            const float* low = patch + vertical[i].low * wide;
            const float* upper = patch + vertical[i].high * wide;
            const float v = vertical[i].weight;
            for (int64_t j = 0; j < full_w; ++j) {
              const Tap& h = horizontal[j];
              const float a = low[h.low] * (1.0f - h.weight) + low[h.high] * h.weight;
              const float b = upper[h.low] * (1.0f - h.weight) + upper[h.high] * h.weight;
              resized[i * full_w + j] = a * (1.0f - v) + b * v;
            }
          }
          patch = resized.data();
        }
        for (int64_t i = 0; i < height; ++i) {
          const int64_t place = (box[4 * p + 1] + i - top) * span + box[4 * p] - left;
          const float* row = patch + (i + padding) * full_w + padding;
          for (int64_t j = 0; j < width; ++j) {
            sum[place + j] += row[j];
            covered[place + j] += 1;
          }
        }
      }
      for (int64_t i = top; i < bottom; ++i) {
        const int64_t place = (i - top) * span;
        uint8_t* line = target + i * cols + left;
        for (int64_t j = 0; j < span; ++j) {
          if (covered[place + j] > 0) {
            line[j] = sum[place + j] / static_cast<float>(covered[place + j]) > limit;
          }
        }
      }
    }
  });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("extract_boundary_patches", &extract_boundary_patches);
  m.impl("crop_patches", &crop_patches);
  m.impl("reassemble_patches", &reassemble_patches);
}

}  // namespace mmplus
