// Which patches BPR refines, given the boundary pixels of each mask. Shared by CPU and CUDA, so that
// both answer the same: boundary pixels are few, so this part stays on the CPU.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <numeric>
#include <optional>
#include <string_view>
#include <vector>

namespace mmplus {

// A boundary pixel. support: min(s, 9 - s) for s pixels of the mask among the nine around it.
struct Pixel {
  int32_t y, x;
  int32_t support;
  bool inside;  // the mask
  float uncertainty;
};

struct Box {
  int64_t x1, y1, x2, y2;
  double rank;  // the higher, the sooner kept within a budget
};

inline int64_t moved_inside(int64_t start, int64_t size, int64_t limit) {
  return std::max<int64_t>(0, std::min(start, limit - size));
}

// Greedy suppression of boxes of one size: centres are kept on a grid of that size, so that only
// the nine squares around a candidate can hold a box that overlaps it.
class Kept {
 public:
  Kept(int64_t rows, int64_t cols, int64_t size, double threshold)
      : size_(size),
        // Overlap / (2 area - overlap) > threshold.
        limit_(2.0 * static_cast<double>(size * size) * threshold / (1.0 + threshold)),
        wide_(cols / size + 3),
        squares_((rows / size + 3) * wide_) {}

  bool add(const Pixel& pixel) {
    const int64_t row = pixel.y / size_ + 1, col = pixel.x / size_ + 1;
    for (int64_t i = row - 1; i <= row + 1; ++i) {
      for (int64_t j = col - 1; j <= col + 1; ++j) {
        for (const Pixel& other : squares_[i * wide_ + j]) {
          if (overlap(pixel.y, other.y) * overlap(pixel.x, other.x) > limit_) {
            return false;
          }
        }
      }
    }
    squares_[row * wide_ + col].push_back(pixel);
    return true;
  }

 private:
  double overlap(int32_t a, int32_t b) const {
    return static_cast<double>(std::max<int64_t>(0, size_ - std::abs(a - b)));
  }

  int64_t size_;
  double limit_;
  int64_t wide_;
  std::vector<std::vector<Pixel>> squares_;
};

// Best scores first. Many are equal: taken along the boundary such candidates would be kept at the
// smallest distance that the threshold allows; scattered, fewer are kept and cover as much.
inline std::vector<uint64_t> order_of(const std::vector<Pixel>& pixels) {
  constexpr uint64_t GOLDEN = 0x9E3779B97F4A7C15ull, INDEX = 0xFFFFFFFFull;
  std::vector<uint64_t> order;
  order.reserve(pixels.size());
  for (uint64_t i = 0; i < pixels.size(); ++i) {
    const auto rank = static_cast<uint64_t>(4 - pixels[i].support);
    order.push_back(rank << 62 | (i * GOLDEN >> 34) << 32 | i);
  }
  std::sort(order.begin(), order.end());
  for (uint64_t& place : order) {
    place &= INDEX;
  }
  return order;
}

inline std::vector<Box> dense_boxes(
    const std::vector<Pixel>& pixels, int64_t rows, int64_t cols, int64_t size, double threshold) {
  std::vector<Box> boxes;
  if (pixels.empty()) {
    return boxes;
  }
  const int64_t height = std::min(size, rows), width = std::min(size, cols);
  Kept kept(rows, cols, size, threshold);
  for (const uint64_t place : order_of(pixels)) {
    const Pixel& pixel = pixels[place];
    if (kept.add(pixel)) {
      const int64_t x = moved_inside(pixel.x - size / 2, width, cols);
      const int64_t y = moved_inside(pixel.y - size / 2, height, rows);
      boxes.push_back({x, y, x + width, y + height, static_cast<double>(pixel.support)});
    }
  }
  return boxes;
}

inline std::vector<Box> grid_boxes(
    const std::vector<Pixel>& pixels, int64_t rows, int64_t cols, int64_t size) {
  const int64_t high = (rows + size - 1) / size, wide = (cols + size - 1) / size;
  std::vector<int32_t> best(high * wide, 0);
  for (const Pixel& pixel : pixels) {
    int32_t& square = best[pixel.y / size * wide + pixel.x / size];
    square = std::max(square, pixel.support);
  }
  const int64_t height = std::min(size, rows), width = std::min(size, cols);
  std::vector<Box> boxes;
  for (int64_t i = 0; i < high * wide; ++i) {
    if (best[i] > 0) {
      const int64_t x = moved_inside(i % wide * size, width, cols);
      const int64_t y = moved_inside(i / wide * size, height, rows);
      boxes.push_back({x, y, x + width, y + height, static_cast<double>(best[i])});
    }
  }
  return boxes;
}

// The box around the mask; its boundary pixels include a rim outside of it.
inline std::vector<Box> instance_box(const std::vector<Pixel>& pixels, int64_t rows, int64_t cols) {
  Box box{cols, rows, 0, 0, 4.0};
  for (const Pixel& pixel : pixels) {
    if (pixel.inside) {
      box.x1 = std::min<int64_t>(box.x1, pixel.x);
      box.y1 = std::min<int64_t>(box.y1, pixel.y);
      box.x2 = std::max<int64_t>(box.x2, pixel.x + 1);
      box.y2 = std::max<int64_t>(box.y2, pixel.y + 1);
    }
  }
  return box.x2 > box.x1 ? std::vector<Box>{box} : std::vector<Box>{};
}

// The mean uncertainty over the boundary pixels in each box. NaN ranks first: nothing is less known,
// and sorting needs an order.
inline void rank_by_uncertainty(std::vector<Box>& boxes, const std::vector<Pixel>& pixels) {
  for (Box& box : boxes) {
    auto pixel = std::lower_bound(
        pixels.begin(), pixels.end(), box.y1,
        [](const Pixel& p, int64_t y) { return p.y < y; });
    double sum = 0;
    int64_t count = 0;
    for (; pixel != pixels.end() && pixel->y < box.y2; ++pixel) {
      if (pixel->x >= box.x1 && pixel->x < box.x2) {
        sum += pixel->uncertainty;
        ++count;
      }
    }
    box.rank = count > 0 ? sum / static_cast<double>(count) : 0.0;
    if (std::isnan(box.rank)) {
      box.rank = std::numeric_limits<double>::infinity();
    }
  }
}

// The boxes of one mask, from its boundary pixels in raster order.
inline std::vector<Box> boxes_of(
    const std::vector<Pixel>& pixels,
    int64_t rows,
    int64_t cols,
    int64_t size,
    double threshold,
    std::string_view scheme,
    bool by_uncertainty) {
  std::vector<Box> boxes = scheme == "dense" ? dense_boxes(pixels, rows, cols, size, threshold)
      : scheme == "grid"                     ? grid_boxes(pixels, rows, cols, size)
                                             : instance_box(pixels, rows, cols);
  if (by_uncertainty) {
    rank_by_uncertainty(boxes, pixels);
  }
  return boxes;
}

// All masks' boxes in a row; of more than the budget, those of the highest rank stay.
struct Patch {
  int64_t mask;
  Box box;
};

inline std::vector<Patch> within_budget(
    const std::vector<std::vector<Box>>& boxes, std::optional<int64_t> budget) {
  std::vector<Patch> patches;
  for (size_t n = 0; n < boxes.size(); ++n) {
    for (const Box& box : boxes[n]) {
      patches.push_back({static_cast<int64_t>(n), box});
    }
  }
  if (!budget.has_value() || *budget >= static_cast<int64_t>(patches.size())) {
    return patches;
  }
  std::vector<size_t> order(patches.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return patches[a].box.rank > patches[b].box.rank;
  });
  order.resize(static_cast<size_t>(*budget));
  std::sort(order.begin(), order.end());
  std::vector<Patch> kept;
  for (const size_t i : order) {
    kept.push_back(patches[i]);
  }
  return kept;
}

}  // namespace mmplus
