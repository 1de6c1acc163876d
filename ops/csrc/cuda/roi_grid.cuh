// RoIAlign's sampling points on NVIDIA GPUs.
#pragma once

#include <cstdint>

namespace mmplus {

// The four cells around a position, and their weights; borders repeat.
template <typename T>
struct Corners {
  int64_t y0, y1, x0, x1;
  T wy, wx;
};

template <typename T>
__device__ void split(T position, int64_t limit, int64_t& low, int64_t& high, T& weight) {
  const T last = static_cast<T>(limit - 1);
  position = position < T(0) ? T(0) : (position > last ? last : position);
  low = static_cast<int64_t>(position);
  high = low + 1 < limit ? low + 1 : low;
  weight = position - static_cast<T>(low);
}

template <typename T>
__device__ Corners<T> corners_at(T y, T x, int64_t rows, int64_t cols) {
  Corners<T> c;
  split(y, rows, c.y0, c.y1, c.wy);
  split(x, cols, c.x0, c.x1, c.wx);
  return c;
}

// A RoI on the feature map, and the grid of its sampling points.
template <typename T>
struct Grid {
  int64_t image;
  T left, top, width, height;
  int64_t points_h, points_w;  // of a bin; 0: the RoI has none
};

template <typename T>
__device__ Grid<T> place_grid(
    const T* roi, int64_t images, int64_t bins_h, int64_t bins_w, double spatial_scale,
    int64_t sampling_ratio, bool aligned) {
  Grid<T> grid;
  const T scale = static_cast<T>(spatial_scale), offset = aligned ? T(0.5) : T(0);
  // Of an unknown image nothing is read.
  const bool known = roi[0] >= T(0) && roi[0] < static_cast<T>(images);
  grid.image = known ? static_cast<int64_t>(roi[0]) : 0;
  grid.left = roi[1] * scale - offset;
  grid.top = roi[2] * scale - offset;
  grid.width = roi[3] * scale - offset - grid.left;
  grid.height = roi[4] * scale - offset - grid.top;
  if (!aligned) {
    grid.width = grid.width < T(1) ? T(1) : grid.width;
    grid.height = grid.height < T(1) ? T(1) : grid.height;
  }
  const bool usable = known && isfinite(grid.left) && isfinite(grid.top) && isfinite(grid.width) &&
      isfinite(grid.height) && grid.width >= T(0) && grid.height >= T(0);
  grid.points_h = grid.points_w = 0;
  if (usable && sampling_ratio > 0) {
    grid.points_h = grid.points_w = sampling_ratio;
  } else if (usable) {
    // More points than this cannot be told apart.
    const T most = T(1e15);
    const T tall = ceil(grid.height / static_cast<T>(bins_h));
    const T wide = ceil(grid.width / static_cast<T>(bins_w));
    grid.points_h = static_cast<int64_t>(tall < most ? tall : most);
    grid.points_w = static_cast<int64_t>(wide < most ? wide : most);
    if (grid.points_h == 0 || grid.points_w == 0) {
      grid.points_h = grid.points_w = 0;
    }
  }
  return grid;
}

// Points [begin, end) of a bin along one axis, those that can lie on the map among them: a RoI may be
// far larger than the map, and without this a thread would look at points for hours.
struct PointRange {
  int64_t begin, end;
};

template <typename T>
__device__ PointRange points_on_map(
    T start, T size, int64_t bins, int64_t bin, int64_t points, int64_t limit) {
  constexpr int64_t FEW = 64;
  if (points <= FEW || !(size > T(0))) {
    return {0, points};
  }
  const double step = static_cast<double>(size) / (static_cast<double>(bins) * points);
  const double origin = static_cast<double>(start) + (static_cast<double>(bin) * points + 0.5) * step;
  double low = floor((-1.0 - origin) / step) - 1.0;
  double high = ceil((static_cast<double>(limit) - origin) / step) + 2.0;
  low = low > 0.0 ? low : 0.0;
  high = high < static_cast<double>(points) ? high : static_cast<double>(points);
  return low < high ? PointRange{static_cast<int64_t>(low), static_cast<int64_t>(high)}
                    : PointRange{0, 0};
}

// Call for each point of a bin that lies on the map: visit(corners, u, v), u and v in the RoI.
template <typename T, typename Visit>
__device__ void for_points(
    const Grid<T>& grid, int64_t bins_h, int64_t bins_w, int64_t rows, int64_t cols,
    int64_t bin_row, int64_t bin_col, Visit visit) {
  const PointRange down =
      points_on_map(grid.top, grid.height, bins_h, bin_row, grid.points_h, rows);
  const PointRange across =
      points_on_map(grid.left, grid.width, bins_w, bin_col, grid.points_w, cols);
  for (int64_t i = down.begin; i < down.end; ++i) {
    const T v = (static_cast<T>(bin_row) +
                 (static_cast<T>(i) + T(0.5)) / static_cast<T>(grid.points_h)) /
        static_cast<T>(bins_h);
    const T y = grid.top + v * grid.height;
    if (!(y >= T(-1) && y <= static_cast<T>(rows))) {
      continue;
    }
    for (int64_t j = across.begin; j < across.end; ++j) {
      const T u = (static_cast<T>(bin_col) +
                   (static_cast<T>(j) + T(0.5)) / static_cast<T>(grid.points_w)) /
          static_cast<T>(bins_w);
      const T x = grid.left + u * grid.width;
      if (x >= T(-1) && x <= static_cast<T>(cols)) {
        visit(corners_at(y, x, rows, cols), u, v);
      }
    }
  }
}

template <typename T, typename In>
__device__ T read(const In* plane, const Corners<T>& c, int64_t row_stride, int64_t col_stride) {
  const In* low = plane + c.y0 * row_stride;
  const In* high = plane + c.y1 * row_stride;
  const T upper = static_cast<T>(low[c.x0 * col_stride]) * (T(1) - c.wx) +
      static_cast<T>(low[c.x1 * col_stride]) * c.wx;
  const T lower = static_cast<T>(high[c.x0 * col_stride]) * (T(1) - c.wx) +
      static_cast<T>(high[c.x1 * col_stride]) * c.wx;
  return upper * (T(1) - c.wy) + lower * c.wy;
}

template <typename T>
__device__ void add(
    T* plane, const Corners<T>& c, int64_t row_stride, int64_t col_stride, T value) {
  T* low = plane + c.y0 * row_stride;
  T* high = plane + c.y1 * row_stride;
  atomicAdd(low + c.x0 * col_stride, value * (T(1) - c.wy) * (T(1) - c.wx));
  atomicAdd(low + c.x1 * col_stride, value * (T(1) - c.wy) * c.wx);
  atomicAdd(high + c.x0 * col_stride, value * c.wy * (T(1) - c.wx));
  atomicAdd(high + c.x1 * col_stride, value * c.wy * c.wx);
}

}  // namespace mmplus
