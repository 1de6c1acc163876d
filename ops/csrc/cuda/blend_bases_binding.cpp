// Blending of bases on CUDA tensors.
#include <tuple>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "bindings.h"
#include "blend_bases.h"

namespace mmplus {
namespace {

BlendGeometry geometry_of(
    const at::Tensor& map,
    const at::Tensor& attention,
    int64_t size,
    double spatial_scale,
    int64_t sampling_ratio) {
  return BlendGeometry{
      attention.size(0), map.size(0), map.size(1), map.size(2), map.size(3), size, attention.size(2),
      map.stride(0), map.stride(1), map.stride(2), map.stride(3), spatial_scale, sampling_ratio};
}

at::Tensor blend_bases(
    const at::Tensor& bases,
    const at::Tensor& rois,
    const at::Tensor& attention,
    int64_t output_size,
    double spatial_scale,
    int64_t sampling_ratio) {
  const c10::cuda::CUDAGuard guard(bases.device());
  const at::Tensor boxes = rois.to(compute_type(bases)).contiguous();
  const at::Tensor logits = attention.to(compute_type(bases)).contiguous();
  if (bases.numel() == 0) {
    return at::zeros({rois.size(0), output_size, output_size}, bases.options());
  }
  at::Tensor output = at::empty({rois.size(0), output_size, output_size}, bases.options());
  if (output.numel() > 0) {
    launch_blend(
        type_of(bases), geometry_of(bases, logits, output_size, spatial_scale, sampling_ratio),
        bases.const_data_ptr(), boxes.const_data_ptr(), logits.const_data_ptr(),
        output.mutable_data_ptr(), stream_of(bases));
  }
  return output;
}

std::tuple<at::Tensor, at::Tensor> blend_bases_backward(
    const at::Tensor& grad,
    const at::Tensor& bases,
    const at::Tensor& rois,
    const at::Tensor& attention,
    double spatial_scale,
    int64_t sampling_ratio) {
  const c10::cuda::CUDAGuard guard(bases.device());
  const at::Tensor boxes = rois.to(compute_type(bases)).contiguous();
  const at::Tensor logits = attention.to(compute_type(bases)).contiguous();
  const at::Tensor dense = grad.to(bases.scalar_type()).contiguous();
  at::Tensor bases_grad = at::zeros(bases.sizes(), boxes.options());
  at::Tensor attention_grad = at::zeros(attention.sizes(), boxes.options());
  if (dense.numel() > 0 && bases.numel() > 0) {
    const int64_t size = grad.size(1);
    launch_blend_backward(
        type_of(bases), geometry_of(bases, logits, size, spatial_scale, sampling_ratio),
        geometry_of(bases_grad, logits, size, spatial_scale, sampling_ratio),
        dense.const_data_ptr(), bases.const_data_ptr(), boxes.const_data_ptr(),
        logits.const_data_ptr(), bases_grad.mutable_data_ptr(), attention_grad.mutable_data_ptr(),
        stream_of(bases));
  }
  return {bases_grad.to(bases.scalar_type()), attention_grad.to(attention.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CUDA, m) {
  m.impl("blend_bases", &blend_bases);
  m.impl("blend_bases_backward", &blend_bases_backward);
}

}  // namespace mmplus
