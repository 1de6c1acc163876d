// Shape-aware RoIAlign (MR R-CNN, Eq. 4) on NVIDIA GPUs.
#include "shape_aware_roi_align.h"

#include "roi_grid.cuh"

namespace mmplus {
namespace {

// Points of a bin: visit(corners on the map, corners on the probability map).
template <typename T, typename Visit>
__device__ void for_guided_points(
    const RoiGeometry& g, const Grid<T>& grid, int64_t bin_row, int64_t bin_col, Visit visit) {
  for_points(
      grid, g.bins_h, g.bins_w, g.rows, g.cols, bin_row, bin_col,
      [&](const Corners<T>& c, T u, T v) {
        visit(
            c,
            corners_at(
                v * static_cast<T>(g.prob_rows) - T(0.5), u * static_cast<T>(g.prob_cols) - T(0.5),
                g.prob_rows, g.prob_cols));
      });
}

template <typename T>
__device__ Grid<T> grid_of(const RoiGeometry& g, const T* roi) {
  return place_grid(roi, g.images, g.bins_h, g.bins_w, g.spatial_scale, g.sampling_ratio, g.aligned);
}

// Which output element a thread works on. Neighbouring threads take neighbouring bins, or, where
// the map keeps its channels together, neighbouring channels.
struct Element {
  int64_t roi, channel, bin_row, bin_col, place;
};

__device__ Element element_at(const RoiGeometry& g, int64_t index) {
  const int64_t bins = g.bins_h * g.bins_w;
  Element e;
  int64_t bin;
  if (g.channel_stride == 1) {
    e.channel = index % g.channels;
    bin = index / g.channels % bins;
  } else {
    bin = index % bins;
    e.channel = index / bins % g.channels;
  }
  e.roi = index / (bins * g.channels);
  e.bin_row = bin / g.bins_w;
  e.bin_col = bin % g.bins_w;
  e.place = (e.roi * g.channels + e.channel) * bins + bin;
  return e;
}

template <typename In, typename T>
__global__ void pool(
    RoiGeometry g, const In* __restrict__ input, const T* __restrict__ rois,
    const T* __restrict__ prob, In* __restrict__ output) {
  const int64_t total = g.num_rois * g.channels * g.bins_h * g.bins_w;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const Element e = element_at(g, i);
    const Grid<T> grid = grid_of(g, rois + 5 * e.roi);
    const In* plane = input + grid.image * g.image_stride + e.channel * g.channel_stride;
    const T* map = prob + e.roi * g.prob_rows * g.prob_cols;
    T sum = T(0);
    for_guided_points(g, grid, e.bin_row, e.bin_col, [&](const Corners<T>& c, const Corners<T>& p) {
      sum += read<T>(plane, c, g.row_stride, g.col_stride) * read<T>(map, p, g.prob_cols, 1);
    });
    const T count = static_cast<T>(grid.points_h) * static_cast<T>(grid.points_w);
    output[e.place] = static_cast<In>(count > T(0) ? sum / count : T(0));
  }
}

template <typename In, typename T>
__global__ void spread(
    RoiGeometry g, const In* __restrict__ grad, const T* __restrict__ rois,
    const T* __restrict__ prob, T* __restrict__ input_grad) {
  const int64_t total = g.num_rois * g.channels * g.bins_h * g.bins_w;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const Element e = element_at(g, i);
    const Grid<T> grid = grid_of(g, rois + 5 * e.roi);
    T* plane = input_grad + grid.image * g.image_stride + e.channel * g.channel_stride;
    const T* map = prob + e.roi * g.prob_rows * g.prob_cols;
    const T value = static_cast<T>(grad[e.place]) /
        (static_cast<T>(grid.points_h) * static_cast<T>(grid.points_w));
    for_guided_points(g, grid, e.bin_row, e.bin_col, [&](const Corners<T>& c, const Corners<T>& p) {
      add(plane, c, g.row_stride, g.col_stride, value * read<T>(map, p, g.prob_cols, 1));
    });
  }
}

// The sum over a warp, in its first lane.
template <typename T>
__device__ T warp_sum(T value) {
  for (int offset = 16; offset > 0; offset /= 2) {
    value += __shfl_down_sync(0xffffffffu, value, offset);
  }
  return value;
}

// One warp for each bin; its lanes share the channels.
template <typename In, typename T>
__global__ void prob_gradient(
    RoiGeometry g, const In* __restrict__ grad, const In* __restrict__ input,
    const T* __restrict__ rois, T* __restrict__ prob_grad) {
  const int lane = threadIdx.x % 32;
  const int64_t bins = g.bins_h * g.bins_w, total = g.num_rois * bins;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  for (int64_t i = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) / 32; i < total;
       i += step) {
    const int64_t roi = i / bins, bin = i % bins;
    const Grid<T> grid = grid_of(g, rois + 5 * roi);
    const In* image = input + grid.image * g.image_stride;
    const In* values = grad + roi * g.channels * bins + bin;
    T* map = prob_grad + roi * g.prob_rows * g.prob_cols;
    const T count = static_cast<T>(grid.points_h) * static_cast<T>(grid.points_w);
    // All lanes visit the same points.
    for_guided_points(
        g, grid, bin / g.bins_w, bin % g.bins_w, [&](const Corners<T>& c, const Corners<T>& p) {
          T sum = T(0);
          for (int64_t channel = lane; channel < g.channels; channel += 32) {
            sum += static_cast<T>(values[channel * bins]) *
                read<T>(image + channel * g.channel_stride, c, g.row_stride, g.col_stride);
          }
          sum = warp_sum(sum);
          if (lane == 0) {
            add(map, p, g.prob_cols, 1, sum / count);
          }
        });
  }
}

}  // namespace

void launch_pool(
    Type type, const RoiGeometry& g, const void* input, const void* rois, const void* prob,
    void* output, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    pool<In, T><<<blocks_for(g.num_rois * g.channels * g.bins_h * g.bins_w), THREADS, 0, stream>>>(
        g, static_cast<const In*>(input), static_cast<const T*>(rois),
        static_cast<const T*>(prob), static_cast<In*>(output));
    check_launch();
  });
}

void launch_spread(
    Type type, const RoiGeometry& g, const void* grad, const void* rois, const void* prob,
    void* input_grad, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    spread<In, T>
        <<<blocks_for(g.num_rois * g.channels * g.bins_h * g.bins_w), THREADS, 0, stream>>>(
            g, static_cast<const In*>(grad), static_cast<const T*>(rois),
            static_cast<const T*>(prob), static_cast<T*>(input_grad));
    check_launch();
  });
}

void launch_prob_grad(
    Type type, const RoiGeometry& g, const void* grad, const void* input, const void* rois,
    void* prob_grad, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    prob_gradient<In, T>
        <<<blocks_for(g.num_rois * g.bins_h * g.bins_w * 32), THREADS, 0, stream>>>(
            g, static_cast<const In*>(grad), static_cast<const In*>(input),
            static_cast<const T*>(rois), static_cast<T*>(prob_grad));
    check_launch();
  });
}

}  // namespace mmplus
