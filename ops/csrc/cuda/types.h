// What launchers and bindings agree on. No torch header, so that nvcc compiles the kernels alone.
#pragma once

#include <cstdint>
#include <stdexcept>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

namespace mmplus {

enum class Type { F16, BF16, F32, F64 };

// Sums of half precision are held in float.
template <typename In>
struct Compute {
  using type = float;
};
template <>
struct Compute<double> {
  using type = double;
};

// Call with a value of the C++ type that stands for a Type.
template <typename Function>
void dispatch(Type type, Function function) {
  switch (type) {
    case Type::F16:
      return function(__half{});
    case Type::BF16:
      return function(__nv_bfloat16{});
    case Type::F32:
      return function(float{});
    case Type::F64:
      return function(double{});
  }
}

constexpr int THREADS = 256;

// Blocks for so many threads; kernels stride over what is left.
inline unsigned blocks_for(int64_t threads) {
  constexpr int64_t MOST = 65535;
  const int64_t blocks = (threads + THREADS - 1) / THREADS;
  return static_cast<unsigned>(blocks < 1 ? 1 : (blocks > MOST ? MOST : blocks));
}

inline void check_launch() {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(cudaGetErrorString(error));
  }
}

}  // namespace mmplus
