// Shape-aware RoIAlign (MR R-CNN, Eq. 4) on the CPU.
//
// Slabs of channels are independent of each other, in the forward pass and in both gradients, so
// each thread takes some slabs and goes through all RoIs. No two threads write to one place.
#include <array>
#include <tuple>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../compute_type.h"
#include "memory.h"
#include "roi_plan.h"
#include "simd.h"
#include "slab.h"

namespace mmplus {
namespace {

// So many weights are held at a time; more RoIs are worked off in turn.
constexpr int64_t WEIGHTS_AT_ONCE = int64_t(1) << 24;

struct Geometry {
  int64_t images, channels, rows, cols;
  int64_t bins_h, bins_w;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;

  int64_t bins() const {
    return bins_h * bins_w;
  }
  int64_t slabs() const {
    return (channels + LANES - 1) / LANES;
  }
};

// ---- what is done with one RoI and one slab ----

template <typename T>
MMPLUS_INLINE void pool_impl(const T* MMPLUS_RESTRICT slab, int64_t cols, const RoiPlan<T>& plan, T* MMPLUS_RESTRICT out) {
  const T* weight = plan.weights.data();
  for (int64_t bin_row = 0; bin_row < plan.bins_h(); ++bin_row) {
    for (int64_t bin_col = 0; bin_col < plan.bins_w(); ++bin_col) {
      T sum[LANES] = {};
      for (int32_t i = plan.y.first_cell[bin_row]; i < plan.y.first_cell[bin_row + 1]; ++i) {
        const T* line = slab + plan.y.cells[i] * cols * LANES;
        for (int32_t j = plan.x.first_cell[bin_col]; j < plan.x.first_cell[bin_col + 1]; ++j) {
          const T* cell = line + plan.x.cells[j] * LANES;
          const T w = *weight++;
          for (int64_t lane = 0; lane < LANES; ++lane) {
            sum[lane] += w * cell[lane];
          }
        }
      }
      for (int64_t lane = 0; lane < LANES; ++lane) {
        out[lane] = sum[lane];
      }
      out += LANES;
    }
  }
}

template <typename T>
MMPLUS_INLINE void spread_impl(
    const T* MMPLUS_RESTRICT grad, int64_t cols, const RoiPlan<T>& plan, T* MMPLUS_RESTRICT slab) {
  const T* weight = plan.weights.data();
  for (int64_t bin_row = 0; bin_row < plan.bins_h(); ++bin_row) {
    for (int64_t bin_col = 0; bin_col < plan.bins_w(); ++bin_col) {
      T value[LANES];
      for (int64_t lane = 0; lane < LANES; ++lane) {
        value[lane] = grad[lane];
      }
      for (int32_t i = plan.y.first_cell[bin_row]; i < plan.y.first_cell[bin_row + 1]; ++i) {
        T* line = slab + plan.y.cells[i] * cols * LANES;
        for (int32_t j = plan.x.first_cell[bin_col]; j < plan.x.first_cell[bin_col + 1]; ++j) {
          T* cell = line + plan.x.cells[j] * LANES;
          const T w = *weight++;
          for (int64_t lane = 0; lane < LANES; ++lane) {
            cell[lane] += w * value[lane];
          }
        }
      }
      grad += LANES;
    }
  }
}

// Adds to the gradient of each weight: the products of feature and output gradient, over the lanes.
template <typename T>
MMPLUS_INLINE void correlate_impl(
    const T* MMPLUS_RESTRICT grad,
    const T* MMPLUS_RESTRICT slab,
    int64_t cols,
    const RoiPlan<T>& plan,
    T* MMPLUS_RESTRICT weight_grad) {
  for (int64_t bin_row = 0; bin_row < plan.bins_h(); ++bin_row) {
    for (int64_t bin_col = 0; bin_col < plan.bins_w(); ++bin_col) {
      for (int32_t i = plan.y.first_cell[bin_row]; i < plan.y.first_cell[bin_row + 1]; ++i) {
        const T* line = slab + plan.y.cells[i] * cols * LANES;
        for (int32_t j = plan.x.first_cell[bin_col]; j < plan.x.first_cell[bin_col + 1]; ++j) {
          const T* cell = line + plan.x.cells[j] * LANES;
          T product[LANES];
          for (int64_t lane = 0; lane < LANES; ++lane) {
            product[lane] = grad[lane] * cell[lane];
          }
          for (int64_t half = LANES / 2; half > 0; half /= 2) {
            for (int64_t lane = 0; lane < half; ++lane) {
              product[lane] += product[lane + half];
            }
          }
          *weight_grad++ += product[0];
        }
      }
      grad += LANES;
    }
  }
}

#define MMPLUS_FOR_TYPE(T)                                                                     \
  MMPLUS_SIMD void pool(const T* slab, int64_t cols, const RoiPlan<T>& plan, T* out) {         \
    pool_impl(slab, cols, plan, out);                                                          \
  }                                                                                            \
  MMPLUS_SIMD void spread(const T* grad, int64_t cols, const RoiPlan<T>& plan, T* slab) {      \
    spread_impl(grad, cols, plan, slab);                                                       \
  }                                                                                            \
  MMPLUS_SIMD void correlate(                                                                  \
      const T* grad, const T* slab, int64_t cols, const RoiPlan<T>& plan, T* weight_grad) {    \
    correlate_impl(grad, slab, cols, plan, weight_grad);                                       \
  }
MMPLUS_FOR_TYPE(float)
MMPLUS_FOR_TYPE(double)
#undef MMPLUS_FOR_TYPE

// ---- plans ----

template <typename T>
struct Chunk {
  std::vector<RoiPlan<T>> plans;  // image by image
  std::vector<int64_t> first_weight;  // of each plan, among those of the chunk
  std::vector<int64_t> first_plan;  // of each image (images + 1)
  std::vector<Band> bands;  // of each image

  int64_t num_weights() const {
    return first_weight.back();
  }
};

std::vector<int64_t> rois_by_image(const at::Tensor& rois, int64_t images) {
  std::vector<int64_t> order(rois.size(0)), first(images + 1, 0);
  std::vector<int64_t> image_of(rois.size(0));
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const double image = rois.scalar_type() == at::kDouble
        ? rois.const_data_ptr<double>()[5 * k]
        : static_cast<double>(rois.const_data_ptr<float>()[5 * k]);
    TORCH_CHECK_VALUE(
        image >= 0 && image < static_cast<double>(images),
        "batch indices of rois must lie in [0, ", images, "), got ", image, " in row ", k);
    image_of[k] = static_cast<int64_t>(image);
    ++first[image_of[k] + 1];
  }
  for (int64_t n = 0; n < images; ++n) {
    first[n + 1] += first[n];
  }
  for (int64_t k = 0; k < rois.size(0); ++k) {
    order[first[image_of[k]]++] = k;
  }
  return order;
}

// Plans for the RoIs order[begin:], as many as fit; moves begin on.
template <typename T>
Chunk<T> next_chunk(
    const Geometry& g,
    const at::Tensor& rois,
    const at::Tensor& prob,
    const std::vector<int64_t>& order,
    int64_t& begin) {
  const T* boxes = rois.const_data_ptr<T>();
  const T* probs = prob.const_data_ptr<T>();
  const int64_t prob_rows = prob.size(1), prob_cols = prob.size(2);
  const auto total = static_cast<int64_t>(order.size());
  Chunk<T> chunk;
  chunk.first_weight.assign(1, 0);
  while (begin < total && chunk.num_weights() < WEIGHTS_AT_ONCE) {
    const int64_t here = static_cast<int64_t>(chunk.plans.size());
    const int64_t count = std::min<int64_t>(total - begin, 256);
    chunk.plans.resize(here + count);
    at::parallel_for(0, count, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t k = order[begin + i];
        RoiPlan<T>& plan = chunk.plans[here + i];
        plan.image = static_cast<int64_t>(boxes[5 * k]);
        plan.roi = k;
        plan.place(
            boxes + 5 * k + 1, g.bins_h, g.bins_w, static_cast<T>(g.spatial_scale),
            g.sampling_ratio, g.aligned, g.rows, g.cols, prob_rows, prob_cols);
        plan.weigh(probs + k * prob_rows * prob_cols, prob_cols);
      }
    });
    for (int64_t i = here; i < here + count; ++i) {
      chunk.first_weight.push_back(chunk.num_weights() + chunk.plans[i].num_weights());
    }
    begin += count;
  }
  chunk.first_plan.assign(g.images + 1, 0);
  chunk.bands.resize(g.images);
  for (const RoiPlan<T>& plan : chunk.plans) {
    ++chunk.first_plan[plan.image + 1];
    if (!plan.y.cells.empty()) {
      // Cells of a bin ascend, and so do bins.
      chunk.bands[plan.image].cover(plan.y.cells.front(), plan.y.cells.back());
    }
  }
  for (int64_t n = 0; n < g.images; ++n) {
    chunk.first_plan[n + 1] += chunk.first_plan[n];
  }
  return chunk;
}

// ---- forward ----

template <typename In, typename T>
at::Tensor forward_typed(
    const Geometry& g, const at::Tensor& input, const at::Tensor& rois, const at::Tensor& prob) {
  at::Tensor output = at::empty({rois.size(0), g.channels, g.bins_h, g.bins_w}, input.options());
  prefer_huge_pages(output);
  In* out = output.mutable_data_ptr<In>();
  const In* in = input.const_data_ptr<In>();
  const Strides strides(input);
  const std::vector<int64_t> order = rois_by_image(rois, g.images);
  const auto total = static_cast<int64_t>(order.size());
  for (int64_t begin = 0; begin < total;) {
    const Chunk<T> chunk = next_chunk<T>(g, rois, prob, order, begin);
    at::parallel_for(0, g.images * g.slabs(), 1, [&](int64_t first, int64_t last) {
      std::vector<T> slab(static_cast<size_t>(g.rows * g.cols * LANES));
      std::vector<T> pooled(static_cast<size_t>(g.bins() * LANES));
      for (int64_t job = first; job < last; ++job) {
        const int64_t image = job / g.slabs(), channel = (job % g.slabs()) * LANES;
        const int64_t lanes = std::min(LANES, g.channels - channel);
        pack_slab(
            in + image * input.stride(0) + channel * strides.channel, strides, chunk.bands[image],
            g.cols, lanes, slab.data());
        for (int64_t i = chunk.first_plan[image]; i < chunk.first_plan[image + 1]; ++i) {
          const RoiPlan<T>& plan = chunk.plans[i];
          pool(slab.data(), g.cols, plan, pooled.data());
          In* target = out + (plan.roi * g.channels + channel) * g.bins();
          for (int64_t lane = 0; lane < lanes; ++lane) {
            for (int64_t bin = 0; bin < g.bins(); ++bin) {
              target[lane * g.bins() + bin] = static_cast<In>(pooled[bin * LANES + lane]);
            }
          }
        }
      }
    });
  }
  return output;
}

// ---- backward ----

template <typename In, typename T>
std::tuple<at::Tensor, at::Tensor> backward_typed(
    const Geometry& g,
    const at::Tensor& grad,
    const at::Tensor& input,
    const at::Tensor& rois,
    const at::Tensor& prob,
    bool want_input,
    bool want_prob) {
  const std::vector<int64_t> order = rois_by_image(rois, g.images);
  const auto total = static_cast<int64_t>(order.size());
  // Rounded to half precision only once.
  at::Tensor input_grad = want_input
      ? at::empty({g.images, g.channels, g.rows, g.cols}, rois.options())
      : at::empty({0}, rois.options());
  prefer_huge_pages(input_grad);
  // Images whose gradient has been written; slabs are written as a whole.
  std::vector<char> written(static_cast<size_t>(g.images), 0);
  at::Tensor prob_grad = want_prob ? at::zeros(prob.sizes(), prob.options())
                                   : at::empty({0}, prob.options());
  const In* gradients = grad.const_data_ptr<In>();
  const In* in = want_prob ? input.const_data_ptr<In>() : nullptr;
  const int64_t prob_cells = prob.size(1) * prob.size(2);
  for (int64_t begin = 0; begin < total;) {
    const Chunk<T> chunk = next_chunk<T>(g, rois, prob, order, begin);
    // Each thread's own sums over its slabs.
    std::vector<std::vector<T>> weight_grads(want_prob ? at::get_num_threads() : 0);
    at::parallel_for(0, g.images * g.slabs(), 1, [&](int64_t first, int64_t last) {
      std::vector<T> features(want_prob ? static_cast<size_t>(g.rows * g.cols * LANES) : 0);
      std::vector<T> sums(want_input ? static_cast<size_t>(g.rows * g.cols * LANES) : 0);
      std::vector<T> local(static_cast<size_t>(g.bins() * LANES));
      std::vector<T>* weight_grad = nullptr;
      if (want_prob) {
        weight_grad = &weight_grads[at::get_thread_num()];
        weight_grad->resize(static_cast<size_t>(chunk.num_weights()), T(0));
      }
      for (int64_t job = first; job < last; ++job) {
        const int64_t image = job / g.slabs(), channel = (job % g.slabs()) * LANES;
        const int64_t lanes = std::min(LANES, g.channels - channel);
        if (chunk.first_plan[image] == chunk.first_plan[image + 1]) {
          continue;
        }
        if (want_prob) {
          const Strides strides(input);
          pack_slab(
              in + image * input.stride(0) + channel * strides.channel, strides,
              chunk.bands[image], g.cols, lanes, features.data());
        }
        T* target = nullptr;
        const Strides strides(want_input ? input_grad : grad);
        if (want_input) {
          target = input_grad.mutable_data_ptr<T>() + image * input_grad.stride(0) +
              channel * strides.channel;
          if (written[image] == 0) {
            std::fill(sums.begin(), sums.end(), T(0));
          } else {
            pack_slab(target, strides, Band{0, g.rows}, g.cols, lanes, sums.data());
          }
        }
        if (lanes < LANES) {
          std::fill(local.begin(), local.end(), T(0));
        }
        for (int64_t i = chunk.first_plan[image]; i < chunk.first_plan[image + 1]; ++i) {
          const RoiPlan<T>& plan = chunk.plans[i];
          const In* source = gradients + (plan.roi * g.channels + channel) * g.bins();
          for (int64_t lane = 0; lane < lanes; ++lane) {
            for (int64_t bin = 0; bin < g.bins(); ++bin) {
              local[bin * LANES + lane] = static_cast<T>(source[lane * g.bins() + bin]);
            }
          }
          if (want_input) {
            spread(local.data(), g.cols, plan, sums.data());
          }
          if (want_prob) {
            correlate(
                local.data(), features.data(), g.cols, plan,
                weight_grad->data() + chunk.first_weight[i]);
          }
        }
        if (want_input) {
          unpack_slab(sums.data(), g.rows, g.cols, lanes, strides, target);
        }
      }
    });
    for (const RoiPlan<T>& plan : chunk.plans) {
      written[plan.image] = 1;
    }
    if (!want_prob) {
      continue;
    }
    T* probabilities = prob_grad.mutable_data_ptr<T>();
    const auto plans = static_cast<int64_t>(chunk.plans.size());
    at::parallel_for(0, plans, 1, [&](int64_t first, int64_t last) {
      std::vector<T> sum;
      for (int64_t i = first; i < last; ++i) {
        const RoiPlan<T>& plan = chunk.plans[i];
        sum.assign(static_cast<size_t>(plan.num_weights()), T(0));
        for (const std::vector<T>& part : weight_grads) {
          if (part.empty()) {
            continue;
          }
          const T* values = part.data() + chunk.first_weight[i];
          for (size_t w = 0; w < sum.size(); ++w) {
            sum[w] += values[w];
          }
        }
        plan.add_prob_grad(sum.data(), prob.size(2), probabilities + plan.roi * prob_cells);
      }
    });
  }
  for (int64_t n = 0; want_input && n < g.images; ++n) {
    if (written[n] == 0) {
      input_grad.select(0, n).zero_();
    }
  }
  return {input_grad, prob_grad};
}

// ---- operators ----

at::Tensor shape_aware_roi_align(
    const at::Tensor& input,
    const at::Tensor& rois,
    const at::Tensor& prob,
    int64_t bins_h,
    int64_t bins_w,
    double spatial_scale,
    int64_t sampling_ratio,
    bool aligned) {
  const Geometry g{
      input.size(0), input.size(1), input.size(2), input.size(3), bins_h, bins_w,
      spatial_scale, sampling_ratio, aligned};
  if (input.numel() == 0) {
    return at::zeros({rois.size(0), g.channels, bins_h, bins_w}, input.options());
  }
  const at::ScalarType compute = compute_type(input);
  const at::Tensor boxes = rois.to(compute).contiguous();
  const at::Tensor probabilities = prob.to(compute).contiguous();
  at::Tensor output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, input.scalar_type(), "mmplus::shape_aware_roi_align", [&] {
        using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
        output = forward_typed<scalar_t, T>(g, input, boxes, probabilities);
      });
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
  const Geometry g{
      input_size[0], input_size[1], input_size[2], input_size[3], grad.size(2), grad.size(3),
      spatial_scale, sampling_ratio, aligned};
  if (g.images * g.channels * g.rows * g.cols == 0) {
    return {at::zeros(want_input ? input_size : at::IntArrayRef{0}, grad.options()),
            at::zeros(want_prob ? prob.sizes() : at::IntArrayRef{0}, prob.options())};
  }
  const at::ScalarType compute = compute_type(grad);
  const at::Tensor boxes = rois.to(compute).contiguous();
  const at::Tensor probabilities = prob.to(compute).contiguous();
  const at::Tensor dense = grad.contiguous();
  std::tuple<at::Tensor, at::Tensor> grads;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, grad.scalar_type(), "mmplus::shape_aware_roi_align_backward", [&] {
        using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
        grads = backward_typed<scalar_t, T>(
            g, dense, input, boxes, probabilities, want_input, want_prob);
      });
  return {std::get<0>(grads).to(grad.scalar_type()), std::get<1>(grads).to(prob.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("shape_aware_roi_align", &shape_aware_roi_align);
  m.impl("shape_aware_roi_align_backward", &shape_aware_roi_align_backward);
}

}  // namespace mmplus
