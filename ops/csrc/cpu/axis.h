// RoIAlign's sampling points along one axis, and the cells that they read.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

namespace mmplus {

// A RoI on the feature map, in cells.
template <typename T>
struct RoiBox {
  T left, top, width, height;

  // box: (x1, y1, x2, y2) in image pixels.
  RoiBox(const T* box, T spatial_scale, bool aligned) {
    const T offset = aligned ? T(0.5) : T(0);
    left = box[0] * spatial_scale - offset;
    top = box[1] * spatial_scale - offset;
    width = box[2] * spatial_scale - offset - left;
    height = box[3] * spatial_scale - offset - top;
    if (!aligned) {
      width = std::max(width, T(1));
      height = std::max(height, T(1));
    }
  }

  // Points of a bin along y and x; none in inverted RoIs and those with NaN or infinity.
  std::pair<double, double> points(int64_t bins_h, int64_t bins_w, int64_t sampling_ratio) const {
    const bool usable = std::isfinite(left) && std::isfinite(top) && std::isfinite(width) &&
        std::isfinite(height) && width >= 0 && height >= 0;
    if (!usable) {
      return {0, 0};
    }
    if (sampling_ratio > 0) {
      return {static_cast<double>(sampling_ratio), static_cast<double>(sampling_ratio)};
    }
    // More points than this cannot be told apart.
    constexpr double MOST = 1e15;
    const double tall = std::min<double>(MOST, std::ceil(height / static_cast<T>(bins_h)));
    const double wide = std::min<double>(MOST, std::ceil(width / static_cast<T>(bins_w)));
    return tall < 1 || wide < 1 ? std::pair<double, double>{0, 0} : std::pair{tall, wide};
  }
};

// One row or column of sampling points.
template <typename T>
struct Sample {
  int32_t low;  // its two cells, counted among those of the bin
  int32_t high;
  T weight;  // of the second one
  int32_t prob_low;  // its two cells of the probability map
  int32_t prob_high;
  T prob_weight;
};

// One axis of a RoI.
template <typename T>
struct Axis {
  std::vector<int32_t> cells;  // of the feature map, bin by bin, ascending
  std::vector<int32_t> first_cell;  // (bins + 1)
  std::vector<Sample<T>> samples;
  std::vector<int32_t> first_sample;  // (bins + 1)

  // start, size: the RoI's, in cells; points: of a bin, those outside the map included.
  void build(T start, T size, int64_t bins, double points, int64_t limit, int64_t prob_limit = 1) {
    cells.clear();
    samples.clear();
    first_cell.assign(1, 0);
    first_sample.assign(1, 0);
    for (int64_t bin = 0; bin < bins; ++bin) {
      if (points >= 1) {
        add_bin(start, size, bins, bin, points, limit, prob_limit);
      }
      first_cell.push_back(static_cast<int32_t>(cells.size()));
      first_sample.push_back(static_cast<int32_t>(samples.size()));
    }
  }

  int64_t num_cells(int64_t bin) const {
    return first_cell[bin + 1] - first_cell[bin];
  }

 private:
  void add_bin(
      T start, T size, int64_t bins, int64_t bin, double points, int64_t limit, int64_t prob_limit) {
    // A RoI may be far larger than the map: only points that can lie on it are looked at.
    const double step = static_cast<double>(size) / (static_cast<double>(bins) * points);
    const double origin = static_cast<double>(start) + (bin * points + 0.5) * step;
    double low = 0, high = points;
    if (step > 0) {
      low = std::max(low, std::floor((-1.0 - origin) / step) - 1);
      high = std::min(high, std::ceil((static_cast<double>(limit) - origin) / step) + 2);
    }
    const auto begin = static_cast<int32_t>(cells.size());
    for (double point = low; point < high; point += 1) {
      const T where =
          (static_cast<T>(bin) + static_cast<T>(point + 0.5) / static_cast<T>(points)) /
          static_cast<T>(bins);
      add_point(start + where * size, where, begin, limit, prob_limit);
    }
  }

  void add_point(T position, T where, int32_t begin, int64_t limit, int64_t prob_limit) {
    // As in RoIAlign, a point up to one cell outside reads the border.
    if (!(position >= T(-1) && position <= static_cast<T>(limit))) {
      return;
    }
    Sample<T> sample;
    int64_t cell;
    split(position, limit, cell, sample.weight);
    sample.low = find(static_cast<int32_t>(cell), begin);
    sample.high = cell + 1 < limit ? find(static_cast<int32_t>(cell + 1), begin) : sample.low;
    split(where * static_cast<T>(prob_limit) - T(0.5), prob_limit, cell, sample.prob_weight);
    sample.prob_low = static_cast<int32_t>(cell);
    sample.prob_high = static_cast<int32_t>(std::min(cell + 1, prob_limit - 1));
    samples.push_back(sample);
  }

  static void split(T position, int64_t limit, int64_t& cell, T& weight) {
    position = std::min(std::max(position, T(0)), static_cast<T>(limit - 1));
    cell = std::min(static_cast<int64_t>(position), limit - 1);
    weight = position - static_cast<T>(cell);
  }

  // Points come in ascending order, so a cell is the last one, the last but one, or new.
  int32_t find(int32_t cell, int32_t begin) {
    const auto count = static_cast<int32_t>(cells.size()) - begin;
    if (count > 0 && cells.back() == cell) {
      return count - 1;
    }
    if (count > 1 && cells[cells.size() - 2] == cell) {
      return count - 2;
    }
    cells.push_back(cell);
    return count;
  }
};

}  // namespace mmplus
