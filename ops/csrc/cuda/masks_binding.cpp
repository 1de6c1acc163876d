// Masks in whole numbers, on CUDA tensors.
#include <tuple>
#include <vector>

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../boundary_boxes.h"
#include "bindings.h"
#include "masks.h"

namespace mmplus {
namespace {

const uint8_t* bytes_of(const at::Tensor& value) {
  return static_cast<const uint8_t*>(value.const_data_ptr());
}

std::tuple<at::Tensor, at::Tensor> extract_boundary_patches(
    const at::Tensor& masks,
    int64_t patch_size,
    double iou_thr,
    c10::string_view scheme,
    std::optional<int64_t> max_patches,
    const std::optional<at::Tensor>& uncertainty) {
  const c10::cuda::CUDAGuard guard(masks.device());
  const at::Tensor dense = masks.contiguous();
  const int64_t count = dense.size(0), rows = dense.size(1), cols = dense.size(2);
  at::Tensor support = at::empty(dense.sizes(), dense.options().dtype(at::kByte));
  if (support.numel() > 0) {
    launch_support(
        bytes_of(dense), count, rows, cols, support.mutable_data_ptr<uint8_t>(), stream_of(masks));
  }
  // Only the boundary pixels travel to the CPU, in raster order.
  const at::Tensor place = support.nonzero();
  const bool ranked = max_patches.has_value() && uncertainty.has_value();
  const at::Tensor flat = (place.select(1, 0) * rows + place.select(1, 1)) * cols + place.select(1, 2);
  const at::Tensor places = place.cpu().contiguous();
  const at::Tensor supports = support.flatten().index_select(0, flat).cpu();
  const at::Tensor inside = dense.flatten().index_select(0, flat).ne(0).cpu();
  const at::Tensor doubts = ranked
      ? uncertainty->to(at::kFloat).contiguous().flatten().index_select(0, flat).cpu()
      : at::Tensor();
  std::vector<std::vector<Pixel>> pixels(count);
  for (int64_t i = 0; i < places.size(0); ++i) {
    const int64_t* where = places.const_data_ptr<int64_t>() + 3 * i;
    pixels[where[0]].push_back(
        {static_cast<int32_t>(where[1]), static_cast<int32_t>(where[2]),
         supports.const_data_ptr<uint8_t>()[i], inside.const_data_ptr<bool>()[i],
         ranked ? doubts.const_data_ptr<float>()[i] : 0.0f});
  }
  std::vector<std::vector<Box>> found;
  for (const std::vector<Pixel>& of_mask : pixels) {
    found.push_back(boxes_of(of_mask, rows, cols, patch_size, iou_thr, scheme, ranked));
  }
  std::vector<int64_t> corners, index;
  for (const Patch& patch : within_budget(found, max_patches)) {
    index.push_back(patch.mask);
    corners.insert(corners.end(), {patch.box.x1, patch.box.y1, patch.box.x2, patch.box.y2});
  }
  const auto on_cpu = at::TensorOptions().dtype(at::kLong);
  return {at::tensor(corners, on_cpu).view({-1, 4}).to(masks.device()),
          at::tensor(index, on_cpu).to(masks.device())};
}

std::tuple<at::Tensor, at::Tensor> crop_patches(
    const at::Tensor& image,
    const at::Tensor& masks,
    const at::Tensor& boxes,
    const at::Tensor& mask_index,
    int64_t output_size,
    int64_t padding) {
  const c10::cuda::CUDAGuard guard(image.device());
  const at::Tensor pixels = image.contiguous(), dense = masks.contiguous();
  const at::Tensor corners = boxes.contiguous(), owners = mask_index.contiguous();
  const auto options = image.options().dtype(at::kFloat);
  at::Tensor images = at::empty({boxes.size(0), 3, output_size, output_size}, options);
  at::Tensor crops = at::empty({boxes.size(0), 1, output_size, output_size}, options);
  if (images.numel() > 0) {
    launch_crop(
        CropGeometry{
            boxes.size(0), masks.size(0), image.size(0), image.size(1), output_size, padding},
        bytes_of(pixels), bytes_of(dense), corners.const_data_ptr<int64_t>(),
        owners.const_data_ptr<int64_t>(), images.mutable_data_ptr<float>(),
        crops.mutable_data_ptr<float>(), stream_of(image));
  }
  return {images, crops};
}

at::Tensor reassemble_patches(
    const at::Tensor& masks,
    const at::Tensor& boxes,
    const at::Tensor& mask_index,
    const at::Tensor& patches,
    double threshold,
    int64_t padding) {
  const c10::cuda::CUDAGuard guard(masks.device());
  const at::Tensor dense = masks.contiguous(), corners = boxes.contiguous();
  const at::Tensor values = patches.to(at::kFloat).contiguous();
  const auto [sorted, order] = at::sort(mask_index, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor first =
      at::searchsorted(sorted.contiguous(), at::arange(masks.size(0) + 1, mask_index.options()));
  at::Tensor output = at::empty(masks.sizes(), masks.options().dtype(at::kBool));
  if (output.numel() > 0) {
    launch_reassemble(
        AssemblyGeometry{
            masks.size(0), masks.size(1), masks.size(2), patches.size(1), patches.size(2), padding,
            static_cast<float>(threshold)},
        bytes_of(dense), corners.const_data_ptr<int64_t>(), values.const_data_ptr<float>(),
        order.const_data_ptr<int64_t>(), first.const_data_ptr<int64_t>(),
        static_cast<uint8_t*>(output.mutable_data_ptr()), stream_of(masks));
  }
  return output;
}

at::Tensor mask_intersections(const at::Tensor& masks) {
  const c10::cuda::CUDAGuard guard(masks.device());
  const at::Tensor dense = masks.contiguous();
  const int64_t count = masks.size(0), pixels = masks.size(1) * masks.size(2);
  const int64_t words_each = (pixels + 31) / 32;
  at::Tensor areas = at::zeros({count, count}, masks.options().dtype(at::kLong));
  at::Tensor words = at::empty({count, words_each}, masks.options().dtype(at::kInt));
  if (words.numel() > 0) {
    auto* bits = static_cast<uint32_t*>(words.mutable_data_ptr());
    launch_pack(bytes_of(dense), count, pixels, bits, stream_of(masks));
    launch_intersections(
        bits, count, words_each, areas.mutable_data_ptr<int64_t>(), stream_of(masks));
  }
  return areas;
}

at::Tensor connected_components(const at::Tensor& labels, at::IntArrayRef ignore) {
  const c10::cuda::CUDAGuard guard(labels.device());
  const at::Tensor map = labels.to(at::kLong).contiguous();
  at::Tensor ignored = at::zeros(map.sizes(), map.options().dtype(at::kBool));
  for (const int64_t label : ignore) {
    ignored.logical_or_(map.eq(label));
  }
  at::Tensor roots = at::empty(map.sizes(), map.options().dtype(at::kInt));
  if (map.numel() > 0) {
    launch_components(
        map.const_data_ptr<int64_t>(), bytes_of(ignored), map.size(0), map.size(1),
        roots.mutable_data_ptr<int32_t>(), stream_of(labels));
  }
  // A pixel that is its own root is the first of its component.
  const at::Tensor flat = roots.flatten();
  const at::Tensor is_root = flat.eq(at::arange(flat.numel(), flat.options()));
  const at::Tensor number = is_root.cumsum(0, at::kInt);
  const at::Tensor result = number.index_select(0, flat.clamp_min(0).to(at::kLong));
  return result.masked_fill(flat.lt(0), 0).view(map.sizes());
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CUDA, m) {
  m.impl("extract_boundary_patches", &extract_boundary_patches);
  m.impl("crop_patches", &crop_patches);
  m.impl("reassemble_patches", &reassemble_patches);
  m.impl("mask_intersections", &mask_intersections);
  m.impl("connected_components", &connected_components);
}

}  // namespace mmplus
