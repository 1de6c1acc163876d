// Launchers of the kernels in shape_aware_roi_align.cu.
#pragma once

#include "types.h"

namespace mmplus {

struct RoiGeometry {
  int64_t num_rois, images, channels, rows, cols;
  int64_t bins_h, bins_w;
  int64_t prob_rows, prob_cols;
  // Of the feature map, in elements.
  int64_t image_stride, channel_stride, row_stride, col_stride;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// input and output are of the given type; rois (K, 5), prob (K, Hp, Wp) and the gradients of input
// and prob of its compute type. output is (K, C, H, W), dense.
void launch_pool(
    Type type, const RoiGeometry& geometry, const void* input, const void* rois, const void* prob,
    void* output, cudaStream_t stream);
void launch_spread(
    Type type, const RoiGeometry& geometry, const void* grad, const void* rois, const void* prob,
    void* input_grad, cudaStream_t stream);
void launch_prob_grad(
    Type type, const RoiGeometry& geometry, const void* grad, const void* input, const void* rois,
    void* prob_grad, cudaStream_t stream);

}  // namespace mmplus
