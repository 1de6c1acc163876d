// Launchers of the kernels in roi_flatten.cu.
#pragma once

#include "types.h"

namespace mmplus {

struct CanvasGeometry {
  int64_t planes, height, width;
  int64_t mask_h, mask_w;
  double spatial_scale;
  bool maximum;
};

// masks (K, m, m), canvas and grad (planes, H, W) are of the given type; rois (K, 5) and mask_grad of
// its compute type. members: the instances, plane by plane, in ascending order; first: where each
// plane's begin, and the end (planes + 1).
void launch_flatten(
    Type type, const CanvasGeometry& geometry, const void* masks, const void* rois,
    const int64_t* members, const int64_t* first, void* canvas, cudaStream_t stream);
void launch_flatten_backward(
    Type type, const CanvasGeometry& geometry, const void* grad, const void* masks,
    const void* rois, const int64_t* members, const int64_t* first, void* mask_grad,
    cudaStream_t stream);

}  // namespace mmplus
