// ROI-Flatten (REFINE) on NVIDIA GPUs: a thread for each canvas cell, which looks at the instances of
// its plane in their order. So the canvas needs no atomics and is the same at every run.
#include "roi_flatten.h"

namespace mmplus {
namespace {

// What a canvas cell reads from a mask along one axis; the weight of what lies outside is 0.
template <typename T>
struct Tap {
  int64_t low, high;
  T low_weight, high_weight;
};

template <typename T>
__device__ Tap<T> tap_at(int64_t cell, T start, T stop, int64_t size) {
  Tap<T> tap{0, 0, T(0), T(0)};
  const T length = stop - start;
  if (!isfinite(start) || !isfinite(length) || length == T(0)) {
    return tap;
  }
  const T position =
      (static_cast<T>(cell) + T(0.5) - start) / length * static_cast<T>(size) - T(0.5);
  if (!(position > T(-1) && position < static_cast<T>(size))) {
    return tap;
  }
  const T whole = floor(position);
  const int64_t low = static_cast<int64_t>(whole);
  if (low >= 0) {
    tap.low = low;
    tap.low_weight = T(1) - (position - whole);
  }
  if (low + 1 < size) {
    tap.high = low + 1;
    tap.high_weight = position - whole;
  }
  return tap;
}

template <typename T>
struct Taps {
  Tap<T> y, x;
};

template <typename T>
__device__ Taps<T> taps_of(const CanvasGeometry& g, const T* roi, int64_t row, int64_t col) {
  const T scale = static_cast<T>(g.spatial_scale);
  return {tap_at(row, roi[2] * scale, roi[4] * scale, g.mask_h),
          tap_at(col, roi[1] * scale, roi[3] * scale, g.mask_w)};
}

template <typename In, typename T>
__device__ T read(const In* mask, const Taps<T>& t, int64_t mask_w) {
  const In* low = mask + t.y.low * mask_w;
  const In* high = mask + t.y.high * mask_w;
  const T left = static_cast<T>(low[t.x.low]) * t.y.low_weight +
      static_cast<T>(high[t.x.low]) * t.y.high_weight;
  const T right = static_cast<T>(low[t.x.high]) * t.y.low_weight +
      static_cast<T>(high[t.x.high]) * t.y.high_weight;
  return left * t.x.low_weight + right * t.x.high_weight;
}

template <typename T>
__device__ void add(T* mask, const Taps<T>& t, int64_t mask_w, T value) {
  T* low = mask + t.y.low * mask_w;
  T* high = mask + t.y.high * mask_w;
  atomicAdd(low + t.x.low, value * t.y.low_weight * t.x.low_weight);
  atomicAdd(low + t.x.high, value * t.y.low_weight * t.x.high_weight);
  atomicAdd(high + t.x.low, value * t.y.high_weight * t.x.low_weight);
  atomicAdd(high + t.x.high, value * t.y.high_weight * t.x.high_weight);
}

template <typename In, typename T>
__global__ void flatten(
    CanvasGeometry g, const In* __restrict__ masks, const T* __restrict__ rois,
    const int64_t* __restrict__ members, const int64_t* __restrict__ first,
    In* __restrict__ canvas) {
  const int64_t cells = g.height * g.width, total = g.planes * cells;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t plane = i / cells, row = i % cells / g.width, col = i % g.width;
    T result = T(0);
    for (int64_t n = first[plane]; n < first[plane + 1]; ++n) {
      const int64_t k = members[n];
      const T value = read(masks + k * g.mask_h * g.mask_w, taps_of(g, rois + 5 * k, row, col),
                           g.mask_w);
      result = g.maximum ? (value > result ? value : result) : result + value;
    }
    canvas[i] = static_cast<In>(result);
  }
}

template <typename In, typename T>
__global__ void flatten_backward(
    CanvasGeometry g, const In* __restrict__ grad, const In* __restrict__ masks,
    const T* __restrict__ rois, const int64_t* __restrict__ members,
    const int64_t* __restrict__ first, T* __restrict__ mask_grad) {
  const int64_t cells = g.height * g.width, total = g.planes * cells;
  const int64_t mask_cells = g.mask_h * g.mask_w;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total;
       i += step) {
    const int64_t plane = i / cells, row = i % cells / g.width, col = i % g.width;
    const T value = static_cast<T>(grad[i]);
    int64_t winner = -1;
    T best = T(0);
    for (int64_t n = first[plane]; n < first[plane + 1]; ++n) {
      const int64_t k = members[n];
      const Taps<T> taps = taps_of(g, rois + 5 * k, row, col);
      if (!g.maximum) {
        add(mask_grad + k * mask_cells, taps, g.mask_w, value);
        continue;
      }
      const T drawn = read(masks + k * mask_cells, taps, g.mask_w);
      if (drawn > best) {
        best = drawn;
        winner = k;
      }
    }
    if (winner >= 0) {
      add(mask_grad + winner * mask_cells, taps_of(g, rois + 5 * winner, row, col), g.mask_w,
          value);
    }
  }
}

}  // namespace

void launch_flatten(
    Type type, const CanvasGeometry& g, const void* masks, const void* rois,
    const int64_t* members, const int64_t* first, void* canvas, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    flatten<In, T><<<blocks_for(g.planes * g.height * g.width), THREADS, 0, stream>>>(
        g, static_cast<const In*>(masks), static_cast<const T*>(rois), members, first,
        static_cast<In*>(canvas));
    check_launch();
  });
}

void launch_flatten_backward(
    Type type, const CanvasGeometry& g, const void* grad, const void* masks, const void* rois,
    const int64_t* members, const int64_t* first, void* mask_grad, cudaStream_t stream) {
  dispatch(type, [&](auto value) {
    using In = decltype(value);
    using T = typename Compute<In>::type;
    flatten_backward<In, T><<<blocks_for(g.planes * g.height * g.width), THREADS, 0, stream>>>(
        g, static_cast<const In*>(grad), static_cast<const In*>(masks),
        static_cast<const T*>(rois), members, first, static_cast<T*>(mask_grad));
    check_launch();
  });
}

}  // namespace mmplus
