// Shape-aware RoIAlign on CUDA tensors.
#include <tuple>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "bindings.h"
#include "shape_aware_roi_align.h"

namespace mmplus {
namespace {

RoiGeometry geometry_of(
    const at::Tensor& map,
    const at::Tensor& rois,
    const at::Tensor& prob,
    int64_t bins_h,
    int64_t bins_w,
    double spatial_scale,
    int64_t sampling_ratio,
    bool aligned) {
  return RoiGeometry{
      rois.size(0), map.size(0), map.size(1), map.size(2), map.size(3), bins_h, bins_w,
      prob.size(1), prob.size(2), map.stride(0), map.stride(1), map.stride(2), map.stride(3),
      spatial_scale, sampling_ratio, aligned};
}

at::Tensor shape_aware_roi_align(
    const at::Tensor& input,
    const at::Tensor& rois,
    const at::Tensor& prob,
    int64_t bins_h,
    int64_t bins_w,
    double spatial_scale,
    int64_t sampling_ratio,
    bool aligned) {
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor boxes = rois.to(compute_type(input)).contiguous();
  const at::Tensor probabilities = prob.to(compute_type(input)).contiguous();
  if (input.numel() == 0) {
    return at::zeros({rois.size(0), input.size(1), bins_h, bins_w}, input.options());
  }
  at::Tensor output = at::empty({rois.size(0), input.size(1), bins_h, bins_w}, input.options());
  if (output.numel() > 0) {
    launch_pool(
        type_of(input),
        geometry_of(
            input, boxes, probabilities, bins_h, bins_w, spatial_scale, sampling_ratio, aligned),
        input.const_data_ptr(), boxes.const_data_ptr(), probabilities.const_data_ptr(),
        output.mutable_data_ptr(), stream_of(input));
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor> shape_aware_roi_align_backward(
    const at::Tensor& grad,
    const at::Tensor& input,
    const at::Tensor& rois,
    const at::Tensor& prob,
    at::IntArrayRef input_size,
    double spatial_scale,
    int64_t sampling_ratio,
    bool aligned,
    bool want_input,
    bool want_prob) {
  const c10::cuda::CUDAGuard guard(grad.device());
  const at::Tensor boxes = rois.to(compute_type(grad)).contiguous();
  const at::Tensor probabilities = prob.to(compute_type(grad)).contiguous();
  const at::Tensor dense = grad.contiguous();
  const bool reads = grad.numel() > 0 && input_size[0] > 0 && input_size[2] > 0 && input_size[3] > 0;
  at::Tensor input_grad = at::empty({0}, boxes.options());
  at::Tensor prob_grad = at::empty({0}, boxes.options());
  if (want_input) {
    input_grad = at::zeros(input_size, boxes.options());
    if (reads) {
      launch_spread(
          type_of(grad),
          geometry_of(
              input_grad, boxes, probabilities, grad.size(2), grad.size(3), spatial_scale,
              sampling_ratio, aligned),
          dense.const_data_ptr(), boxes.const_data_ptr(), probabilities.const_data_ptr(),
          input_grad.mutable_data_ptr(), stream_of(grad));
    }
  }
  if (want_prob) {
    prob_grad = at::zeros_like(probabilities);
    if (reads) {
      launch_prob_grad(
          type_of(grad),
          geometry_of(
              input, boxes, probabilities, grad.size(2), grad.size(3), spatial_scale,
              sampling_ratio, aligned),
          dense.const_data_ptr(), input.const_data_ptr(), boxes.const_data_ptr(),
          prob_grad.mutable_data_ptr(), stream_of(grad));
    }
  }
  return {input_grad.to(grad.scalar_type()), prob_grad.to(prob.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CUDA, m) {
  m.impl("shape_aware_roi_align", &shape_aware_roi_align);
  m.impl("shape_aware_roi_align_backward", &shape_aware_roi_align_backward);
}

}  // namespace mmplus
