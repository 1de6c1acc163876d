// The type in which values are summed, on the CPU and on GPUs.
#pragma once

#include <ATen/core/Tensor.h>

namespace mmplus {

// double for double, float for everything shorter.
inline at::ScalarType compute_type(const at::Tensor& value) {
  return value.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

}  // namespace mmplus
