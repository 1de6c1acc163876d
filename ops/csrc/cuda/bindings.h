// From tensors to what launchers take.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../compute_type.h"
#include "types.h"

namespace mmplus {

inline Type type_of(const at::Tensor& value) {
  switch (value.scalar_type()) {
    case at::kHalf:
      return Type::F16;
    case at::kBFloat16:
      return Type::BF16;
    case at::kFloat:
      return Type::F32;
    case at::kDouble:
      return Type::F64;
    default:
      TORCH_CHECK_TYPE(false, "expected floating point, got ", value.scalar_type());
  }
}

inline cudaStream_t stream_of(const at::Tensor& value) {
  return c10::cuda::getCurrentCUDAStream(value.get_device()).stream();
}

}  // namespace mmplus
