// Launchers of the kernels in blend_bases.cu.
#pragma once

#include "types.h"

namespace mmplus {

struct BlendGeometry {
  int64_t num_rois, images, bases, rows, cols;
  int64_t size, attention_size;
  // Of the bases, in elements.
  int64_t image_stride, base_stride, row_stride, col_stride;
  double spatial_scale;
  int64_t sampling_ratio;
};

// bases, output and grad (K, R, R) are of the given type; rois (K, 5), attention (K, B, M, M) and the
// gradients of its compute type, the bases' one with the strides of the geometry.
void launch_blend(
    Type type, const BlendGeometry& geometry, const void* bases, const void* rois,
    const void* attention, void* output, cudaStream_t stream);
void launch_blend_backward(
    Type type, const BlendGeometry& geometry, const BlendGeometry& grad_geometry, const void* grad,
    const void* bases, const void* rois, const void* attention, void* bases_grad,
    void* attention_grad, cudaStream_t stream);

}  // namespace mmplus
