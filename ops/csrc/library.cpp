// The op library of MMPlus, namespace "mmplus". Kernels register themselves for their dispatch key
// in cpu/ and cuda/. A fragment, so that Python may define operators of this namespace too, whether
// or not this library is there.
#include <string>

#include <ATen/Parallel.h>
#include <torch/library.h>

#ifdef _OPENMP
#include <omp.h>
#endif

// Python reads this from the file before loading it: a library made for another torch can crash the
// interpreter instead of failing to load.
extern "C" const char mmplus_torch_marker[] = "mmplus-built-for-torch=" MMPLUS_TORCH_VERSION ";";

namespace mmplus {
namespace {

std::string compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "g++ " __VERSION__;
#elif defined(_MSC_VER)
  return "msvc " + std::to_string(_MSC_VER);
#else
  return "unknown compiler";
#endif
}

std::string openmp() {
#ifdef _OPENMP
  return std::to_string(_OPENMP);
#else
  return "no";
#endif
}

std::string parallel_backend() {
#if AT_PARALLEL_OPENMP
  return "OpenMP";
#elif AT_PARALLEL_NATIVE
  return "native";
#else
  return "none";
#endif
}

// One "key=value" a line, so that Python needs no parser.
std::string build_info() {
#ifdef MMPLUS_WITH_CUDA
  const char* cuda = "yes";
#else
  const char* cuda = "no";
#endif
  return "compiler=" + compiler() + "\ncxx_standard=" + std::to_string(__cplusplus) +
      "\nbuilt_for_torch=" MMPLUS_TORCH_VERSION "\nopenmp=" + openmp() +
      "\nparallel_backend=" + parallel_backend() + "\ncuda=" + cuda;
}

}  // namespace
}  // namespace mmplus

TORCH_LIBRARY_FRAGMENT(mmplus, m) {
  m.def("_build_info() -> str", &mmplus::build_info);
}
