// ROI-Flatten on CUDA tensors.
#include <tuple>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "bindings.h"
#include "roi_flatten.h"

namespace mmplus {
namespace {

// The instances plane by plane, in ascending order, and where each plane's begin.
std::tuple<at::Tensor, at::Tensor> by_plane(
    const at::Tensor& rois, const at::Tensor& labels, int64_t num_classes, int64_t planes) {
  const at::Tensor plane = rois.select(1, 0).to(at::kLong) * num_classes + labels.to(at::kLong);
  const auto [sorted, members] = at::sort(plane, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor first =
      at::searchsorted(sorted.contiguous(), at::arange(planes + 1, plane.options()));
  return {members, first};
}

// A wrong place would write to foreign memory; looking at the values waits for the GPU.
void check_places(
    const at::Tensor& rois, const at::Tensor& labels, int64_t num_classes, int64_t batch_size) {
  if (labels.numel() == 0) {
    return;
  }
  const at::Tensor images = rois.select(1, 0);
  TORCH_CHECK_VALUE(
      images.ge(0).logical_and(images.lt(batch_size)).all().item<bool>(),
      "batch indices of rois must lie in [0, ", batch_size, ")");
  TORCH_CHECK_VALUE(
      labels.ge(0).logical_and(labels.lt(num_classes)).all().item<bool>(),
      "labels must lie in [0, ", num_classes, ")");
}

at::Tensor roi_flatten(
    const at::Tensor& masks,
    const at::Tensor& rois,
    const at::Tensor& labels,
    int64_t num_classes,
    int64_t batch_size,
    int64_t height,
    int64_t width,
    double spatial_scale,
    bool maximum) {
  const c10::cuda::CUDAGuard guard(masks.device());
  check_places(rois, labels, num_classes, batch_size);
  const at::Tensor dense = masks.contiguous();
  const at::Tensor boxes = rois.to(compute_type(masks)).contiguous();
  const int64_t planes = batch_size * num_classes;
  const auto [members, first] = by_plane(rois, labels, num_classes, planes);
  at::Tensor canvas = at::empty({batch_size, num_classes, height, width}, masks.options());
  if (canvas.numel() > 0) {
    launch_flatten(
        type_of(masks),
        CanvasGeometry{planes, height, width, masks.size(1), masks.size(2), spatial_scale, maximum},
        dense.const_data_ptr(), boxes.const_data_ptr(), members.const_data_ptr<int64_t>(),
        first.const_data_ptr<int64_t>(), canvas.mutable_data_ptr(), stream_of(masks));
  }
  return canvas;
}

at::Tensor roi_flatten_backward(
    const at::Tensor& grad,
    const at::Tensor& masks,
    const at::Tensor& rois,
    const at::Tensor& labels,
    double spatial_scale,
    bool maximum) {
  const c10::cuda::CUDAGuard guard(masks.device());
  const at::Tensor dense = masks.contiguous();
  const at::Tensor gradient = grad.to(masks.scalar_type()).contiguous();
  const at::Tensor boxes = rois.to(compute_type(masks)).contiguous();
  const int64_t planes = grad.size(0) * grad.size(1);
  const auto [members, first] = by_plane(rois, labels, grad.size(1), planes);
  at::Tensor mask_grad = at::zeros(masks.sizes(), boxes.options());
  if (gradient.numel() > 0) {
    launch_flatten_backward(
        type_of(masks),
        CanvasGeometry{
            planes, grad.size(2), grad.size(3), masks.size(1), masks.size(2), spatial_scale,
            maximum},
        gradient.const_data_ptr(), dense.const_data_ptr(), boxes.const_data_ptr(),
        members.const_data_ptr<int64_t>(), first.const_data_ptr<int64_t>(),
        mask_grad.mutable_data_ptr(), stream_of(masks));
  }
  return mask_grad.to(masks.scalar_type());
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CUDA, m) {
  m.impl("roi_flatten", &roi_flatten);
  m.impl("roi_flatten_backward", &roi_flatten_backward);
}

}  // namespace mmplus
