// Blending of bases (BlendMask) on NVIDIA GPUs: a thread for each pixel of the output, which pools the
// bases and takes the softmax over them by itself, so that nothing of (K, B, R, R) is ever written.
#include "blend_bases.h"

#include "roi_grid.cuh"

namespace mmplus {
namespace {

template <typename T>
__device__ Grid<T> grid_of(const BlendGeometry& g, const T* roi) {
  return place_grid(roi, g.images, g.size, g.size, g.spatial_scale, g.sampling_ratio, true);
}

// One base, pooled in one bin.
template <typename In, typename T>
__device__ T pool_bin(
    const BlendGeometry& g, const Grid<T>& grid, const In* plane, int64_t row, int64_t col) {
  T sum = T(0);
  for_points(
      grid, g.size, g.size, g.rows, g.cols, row, col, [&](const Corners<T>& c, T, T) {
        sum += read<T>(plane, c, g.row_stride, g.col_stride);
      });
  const T count = static_cast<T>(grid.points_h) * static_cast<T>(grid.points_w);
  return count > T(0) ? sum / count : T(0);
}

// Where a pixel of the output reads the attention.
template <typename T>
__device__ Corners<T> attention_corners(const BlendGeometry& g, int64_t row, int64_t col) {
  const T ratio = static_cast<T>(g.attention_size) / static_cast<T>(g.size);
  return corners_at(
      (static_cast<T>(row) + T(0.5)) * ratio - T(0.5),
      (static_cast<T>(col) + T(0.5)) * ratio - T(0.5), g.attention_size, g.attention_size);
}

// The softmax over the bases needs its largest logit and the sum of exponentials.
template <typename T>
__device__ void softmax_parts(
    const BlendGeometry& g, const T* attention, const Corners<T>& c, T& largest, T& sum) {
  const int64_t cells = g.attention_size * g.attention_size;
  largest = read<T>(attention, c, g.attention_size, 1);
  sum = T(1);
  for (int64_t b = 1; b < g.bases; ++b) {
    const T logit = read<T>(attention + b * cells, c, g.attention_size, 1);
    if (logit > largest) {
      sum = sum * exp(largest - logit) + T(1);
      largest = logit;
    } else {
      sum += exp(logit - largest);
    }
  }
}

template <typename In, typename T>
__global__ void blend(
    BlendGeometry g, const In* __restrict__ bases, const T* __restrict__ rois,
    const T* __restrict__ attention, In* __restrict__ output) {
  const int64_t pixels = g.size * g.size, total = g.num_rois * pixels;
  const int64_t cells = g.attention_size * g.attention_size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t roi = i / pixels, row = i % pixels / g.size, col = i % g.size;
    const Grid<T> grid = grid_of(g, rois + 5 * roi);
    const In* image = bases + grid.image * g.image_stride;
    const T* logits = attention + roi * g.bases * cells;
    const Corners<T> c = attention_corners<T>(g, row, col);
    T largest, sum, blended = T(0);
    softmax_parts(g, logits, c, largest, sum);
    for (int64_t b = 0; b < g.bases; ++b) {
      const T share = exp(read<T>(logits + b * cells, c, g.attention_size, 1) - largest) / sum;
      blended += share * pool_bin(g, grid, image + b * g.base_stride, row, col);
    }
    output[i] = static_cast<In>(blended);
  }
}

template <typename In, typename T>
__global__ void blend_backward(
    BlendGeometry g, BlendGeometry to, const In* __restrict__ grad, const In* __restrict__ bases,
    const T* __restrict__ rois, const T* __restrict__ attention, T* __restrict__ bases_grad,
    T* __restrict__ attention_grad) {
  const int64_t pixels = g.size * g.size, total = g.num_rois * pixels;
  const int64_t cells = g.attention_size * g.attention_size;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t roi = i / pixels, row = i % pixels / g.size, col = i % g.size;
    const Grid<T> grid = grid_of(g, rois + 5 * roi);
    const In* image = bases + grid.image * g.image_stride;
    const T* logits = attention + roi * g.bases * cells;
    const Corners<T> c = attention_corners<T>(g, row, col);
    const T value = static_cast<T>(grad[i]);
    const T count = static_cast<T>(grid.points_h) * static_cast<T>(grid.points_w);
    T largest, sum, blended = T(0);
    softmax_parts(g, logits, c, largest, sum);
    for (int64_t b = 0; b < g.bases; ++b) {
      const T share = exp(read<T>(logits + b * cells, c, g.attention_size, 1) - largest) / sum;
      blended += share * pool_bin(g, grid, image + b * g.base_stride, row, col);
    }
    for (int64_t b = 0; b < g.bases; ++b) {
      const T share = exp(read<T>(logits + b * cells, c, g.attention_size, 1) - largest) / sum;
      const T pooled = pool_bin(g, grid, image + b * g.base_stride, row, col);
      add(attention_grad + (roi * g.bases + b) * cells, c, g.attention_size, 1,
          value * share * (pooled - blended));
      T* plane = bases_grad + grid.image * to.image_stride + b * to.base_stride;
      for_points(
          grid, g.size, g.size, g.rows, g.cols, row, col, [&](const Corners<T>& at, T, T) {
            add(plane, at, to.row_stride, to.col_stride, value * share / count);
          });
    }
  }
}

}  // namespace

void launch_blend(
    Type type, const BlendGeometry& g, const void* bases, const void* rois, const void* attention,
    void* output, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    blend<In, T><<<blocks_for(g.num_rois * g.size * g.size), THREADS, 0, stream>>>(
        g, static_cast<const In*>(bases), static_cast<const T*>(rois),
        static_cast<const T*>(attention), static_cast<In*>(output));
    check_launch();
  });
}

void launch_blend_backward(
    Type type, const BlendGeometry& g, const BlendGeometry& to, const void* grad,
    const void* bases, const void* rois, const void* attention, void* bases_grad,
    void* attention_grad, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    blend_backward<In, T><<<blocks_for(g.num_rois * g.size * g.size), THREADS, 0, stream>>>(
        g, to, static_cast<const In*>(grad), static_cast<const In*>(bases),
        static_cast<const T*>(rois), static_cast<const T*>(attention),
        static_cast<T*>(bases_grad), static_cast<T*>(attention_grad));
    check_launch();
  });
}

}  // namespace mmplus
