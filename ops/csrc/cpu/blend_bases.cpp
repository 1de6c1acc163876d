// Blending of bases (BlendMask's blender) on the CPU, without a tensor of (K, B, R, R).
//
// Pooling without weights is separable: every row of cells is pooled along x once, then rows are
// combined along y. So is the enlarging of the attention. What is left for each pixel of the output
// is a softmax over B values, done a row of R pixels at a time. RoIs that are equal, as those of a
// ground-truth box with many positive locations, are pooled once.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <tuple>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../compute_type.h"
#include "axis.h"
#include "exp.h"
#include "simd.h"

namespace mmplus {
namespace {

struct Geometry {
  int64_t images, bases, rows, cols;  // of the bases
  int64_t size;  // R
  int64_t attention_size;  // M
  double spatial_scale;
  int64_t sampling_ratio;
};

// ---- the attention, M to R ----

// Bilinear enlarging of one axis, align_corners=False: pixel i reads low[i] and high[i].
template <typename T>
struct Enlarging {
  std::vector<int32_t> low, high;
  std::vector<T> weight;  // of the second

  Enlarging(int64_t from, int64_t to) {
    const T ratio = static_cast<T>(from) / static_cast<T>(to);
    for (int64_t i = 0; i < to; ++i) {
      const T position = std::max((static_cast<T>(i) + T(0.5)) * ratio - T(0.5), T(0));
      const int64_t cell = std::min(static_cast<int64_t>(position), from - 1);
      low.push_back(static_cast<int32_t>(cell));
      high.push_back(static_cast<int32_t>(std::min(cell + 1, from - 1)));
      weight.push_back(position - static_cast<T>(cell));
    }
  }
};

// ---- rows of R pixels, vectorised along the row ----

// logits: (B, R). Turns them into their softmax over B.
template <typename T>
MMPLUS_INLINE void softmax_impl(T* MMPLUS_RESTRICT logits, T* MMPLUS_RESTRICT sum, int64_t bases, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    sum[j] = logits[j];
  }
  for (int64_t b = 1; b < bases; ++b) {
    const T* row = logits + b * size;
    for (int64_t j = 0; j < size; ++j) {
      sum[j] = row[j] > sum[j] ? row[j] : sum[j];
    }
  }
  for (int64_t b = 0; b < bases; ++b) {
    T* row = logits + b * size;
    for (int64_t j = 0; j < size; ++j) {
      row[j] = exp_of_negative(row[j] - sum[j]);
    }
  }
  for (int64_t j = 0; j < size; ++j) {
    sum[j] = T(0);
  }
  for (int64_t b = 0; b < bases; ++b) {
    const T* row = logits + b * size;
    for (int64_t j = 0; j < size; ++j) {
      sum[j] += row[j];
    }
  }
  for (int64_t j = 0; j < size; ++j) {
    sum[j] = T(1) / sum[j];
  }
  for (int64_t b = 0; b < bases; ++b) {
    T* row = logits + b * size;
    for (int64_t j = 0; j < size; ++j) {
      row[j] *= sum[j];
    }
  }
}

// out = (1 - weight) * low + weight * high
template <typename T>
MMPLUS_INLINE void mix_impl(
    const T* MMPLUS_RESTRICT low, const T* MMPLUS_RESTRICT high, T weight, T* MMPLUS_RESTRICT out, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    out[j] = low[j] + weight * (high[j] - low[j]);
  }
}

template <typename T>
MMPLUS_INLINE void add_scaled_impl(
    const T* MMPLUS_RESTRICT values, T scale, T* MMPLUS_RESTRICT sum, int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    sum[j] += scale * values[j];
  }
}

// out[j] = sum over b of shares[b, j] * pooled[b, j]; rows of pooled lie pooled_stride apart.
template <typename T>
MMPLUS_INLINE void blend_impl(
    const T* MMPLUS_RESTRICT shares,
    const T* MMPLUS_RESTRICT pooled,
    int64_t pooled_stride,
    T* MMPLUS_RESTRICT out,
    int64_t bases,
    int64_t size) {
  for (int64_t j = 0; j < size; ++j) {
    out[j] = T(0);
  }
  for (int64_t b = 0; b < bases; ++b) {
    for (int64_t j = 0; j < size; ++j) {
      out[j] += shares[b * size + j] * pooled[b * pooled_stride + j];
    }
  }
}

// The gradient of blend and softmax: shares become the logits' gradient, pooled_grad grows.
template <typename T>
MMPLUS_INLINE void blend_backward_impl(
    T* MMPLUS_RESTRICT shares,
    const T* MMPLUS_RESTRICT pooled,
    int64_t pooled_stride,
    const T* MMPLUS_RESTRICT grad,
    const T* MMPLUS_RESTRICT blended,
    T* MMPLUS_RESTRICT pooled_grad,
    int64_t bases,
    int64_t size) {
  for (int64_t b = 0; b < bases; ++b) {
    T* share = shares + b * size;
    const T* value = pooled + b * pooled_stride;
    T* sum = pooled_grad + b * pooled_stride;
    for (int64_t j = 0; j < size; ++j) {
      const T part = share[j] * grad[j];
      sum[j] += part;
      share[j] = part * (value[j] - blended[j]);
    }
  }
}

#define MMPLUS_FOR_TYPE(T)                                                                     \
  MMPLUS_SIMD void softmax(T* logits, T* sum, int64_t bases, int64_t size) {                   \
    softmax_impl(logits, sum, bases, size);                                                    \
  }                                                                                            \
  MMPLUS_SIMD void mix(const T* low, const T* high, T weight, T* out, int64_t size) {          \
    mix_impl(low, high, weight, out, size);                                                    \
  }                                                                                            \
  MMPLUS_SIMD void add_scaled(const T* values, T scale, T* sum, int64_t size) {                \
    add_scaled_impl(values, scale, sum, size);                                                 \
  }                                                                                            \
  MMPLUS_SIMD void blend(                                                                      \
      const T* shares, const T* pooled, int64_t stride, T* out, int64_t bases, int64_t size) { \
    blend_impl(shares, pooled, stride, out, bases, size);                                      \
  }                                                                                            \
  MMPLUS_SIMD void blend_backward(                                                             \
      T* shares, const T* pooled, int64_t stride, const T* grad, const T* blended,             \
      T* pooled_grad, int64_t bases, int64_t size) {                                           \
    blend_backward_impl(shares, pooled, stride, grad, blended, pooled_grad, bases, size);      \
  }
MMPLUS_FOR_TYPE(float)
MMPLUS_FOR_TYPE(double)
#undef MMPLUS_FOR_TYPE

// ---- pooling of one RoI ----

template <typename T>
class Pooling {
 public:
  // box: (x1, y1, x2, y2) in image pixels.
  void place(const Geometry& g, const T* box) {
    const RoiBox<T> roi(box, static_cast<T>(g.spatial_scale), true);
    const auto [points_h, points_w] = roi.points(g.size, g.size, g.sampling_ratio);
    y_.build(roi.top, roi.height, g.size, points_h, g.rows);
    x_.build(roi.left, roi.width, g.size, points_w, g.cols);
    scale_ = points_h > 0 ? static_cast<T>(1.0 / (points_h * points_w)) : T(0);
    rows_.assign(y_.cells.begin(), y_.cells.end());
    std::sort(rows_.begin(), rows_.end());
    rows_.erase(std::unique(rows_.begin(), rows_.end()), rows_.end());
    line_of_.resize(y_.cells.size());
    for (size_t i = 0; i < y_.cells.size(); ++i) {
      line_of_[i] = static_cast<int32_t>(
          std::lower_bound(rows_.begin(), rows_.end(), y_.cells[i]) - rows_.begin());
    }
  }

  // plane: (rows, cols) of one base; pooled: (R, R).
  template <typename In>
  void pool(const Geometry& g, const In* plane, int64_t row_stride, int64_t col_stride, T* pooled) {
    lines_.resize(rows_.size() * g.size);
    for (size_t r = 0; r < rows_.size(); ++r) {
      const In* row = plane + rows_[r] * row_stride;
      T* line = lines_.data() + r * g.size;
      for (int64_t bin = 0; bin < g.size; ++bin) {
        T sum = T(0);
        const int32_t first = x_.first_cell[bin];
        for (int32_t j = x_.first_sample[bin]; j < x_.first_sample[bin + 1]; ++j) {
          const Sample<T>& s = x_.samples[j];
          const T low = static_cast<T>(row[x_.cells[first + s.low] * col_stride]);
          const T high = static_cast<T>(row[x_.cells[first + s.high] * col_stride]);
          sum += low + s.weight * (high - low);
        }
        line[bin] = sum * scale_;
      }
    }
    std::fill(pooled, pooled + g.size * g.size, T(0));
    for_lines([&](int64_t bin, int32_t line, T weight) {
      add_scaled(lines_.data() + line * g.size, weight, pooled + bin * g.size, g.size);
    });
  }

  // The gradient of pool: adds to plane_grad (rows, cols).
  void spread(const Geometry& g, const T* pooled_grad, T* plane_grad) {
    lines_.assign(rows_.size() * g.size, T(0));
    for_lines([&](int64_t bin, int32_t line, T weight) {
      add_scaled(pooled_grad + bin * g.size, weight, lines_.data() + line * g.size, g.size);
    });
    for (size_t r = 0; r < rows_.size(); ++r) {
      T* row = plane_grad + rows_[r] * g.cols;
      const T* line = lines_.data() + r * g.size;
      for (int64_t bin = 0; bin < g.size; ++bin) {
        const T value = line[bin] * scale_;
        const int32_t first = x_.first_cell[bin];
        for (int32_t j = x_.first_sample[bin]; j < x_.first_sample[bin + 1]; ++j) {
          const Sample<T>& s = x_.samples[j];
          row[x_.cells[first + s.low]] += value * (T(1) - s.weight);
          row[x_.cells[first + s.high]] += value * s.weight;
        }
      }
    }
  }

 private:
  // Call for each row of bins and each line that it takes part of, with the part.
  template <typename Visit>
  void for_lines(Visit visit) const {
    const auto bins = static_cast<int64_t>(y_.first_sample.size()) - 1;
    for (int64_t bin = 0; bin < bins; ++bin) {
      for (int32_t i = y_.first_sample[bin]; i < y_.first_sample[bin + 1]; ++i) {
        const Sample<T>& s = y_.samples[i];
        visit(bin, line_of_[y_.first_cell[bin] + s.low], T(1) - s.weight);
        if (s.weight != T(0)) {
          visit(bin, line_of_[y_.first_cell[bin] + s.high], s.weight);
        }
      }
    }
  }

  Axis<T> y_, x_;
  T scale_ = 0;
  std::vector<int32_t> rows_;  // that are read, each once
  std::vector<int32_t> line_of_;  // of each of y_'s cells
  std::vector<T> lines_;  // (rows_, R), pooled along x
};

// ---- groups of equal RoIs ----

struct Groups {
  std::vector<int64_t> order;  // of the RoIs
  std::vector<int64_t> first;  // of each group, and the end

  int64_t size() const {
    return static_cast<int64_t>(first.size()) - 1;
  }
};

template <typename T>
Groups equal_rois(const T* rois, int64_t count, int64_t images) {
  for (int64_t k = 0; k < count; ++k) {
    TORCH_CHECK_VALUE(
        rois[5 * k] >= T(0) && rois[5 * k] < static_cast<T>(images),
        "batch indices of rois must lie in [0, ", images, "), got ", rois[5 * k], " in row ", k);
  }
  Groups groups;
  groups.order.resize(count);
  std::iota(groups.order.begin(), groups.order.end(), int64_t(0));
  // By their bits, so that NaN has a place too.
  const auto compare = [&](int64_t a, int64_t b) {
    return std::memcmp(rois + 5 * a, rois + 5 * b, 5 * sizeof(T));
  };
  std::sort(groups.order.begin(), groups.order.end(), [&](int64_t a, int64_t b) {
    const int order = compare(a, b);
    return order != 0 ? order < 0 : a < b;
  });
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0 || compare(groups.order[i - 1], groups.order[i]) != 0) {
      groups.first.push_back(i);
    }
  }
  groups.first.push_back(count);
  return groups;
}

// ---- buffers of a thread, and one RoI ----

template <typename T>
struct Work {
  const Geometry& g;
  Pooling<T> pooling;
  std::vector<T> pooled;  // (B, R, R)
  std::vector<T> wide;  // (B, M, R): the attention, enlarged along x
  std::vector<T> shares;  // (B, R)
  std::vector<T> sum;  // (R)

  explicit Work(const Geometry& geometry)
      : g(geometry),
        pooled(g.bases * g.size * g.size),
        wide(g.bases * g.attention_size * g.size),
        shares(g.bases * g.size),
        sum(g.size) {}

  template <typename In>
  void pool(const at::Tensor& bases, const T* roi) {
    pooling.place(g, roi + 1);
    const In* image =
        bases.const_data_ptr<In>() + static_cast<int64_t>(roi[0]) * bases.stride(0);
    for (int64_t b = 0; b < g.bases; ++b) {
      pooling.pool(
          g, image + b * bases.stride(1), bases.stride(2), bases.stride(3),
          pooled.data() + b * g.size * g.size);
    }
  }

  // attention: (B, M, M) of one RoI.
  void widen(const T* attention, const Enlarging<T>& enlarging) {
    for (int64_t row = 0; row < g.bases * g.attention_size; ++row) {
      const T* source = attention + row * g.attention_size;
      T* target = wide.data() + row * g.size;
      for (int64_t j = 0; j < g.size; ++j) {
        const T low = source[enlarging.low[j]], high = source[enlarging.high[j]];
        target[j] = low + enlarging.weight[j] * (high - low);
      }
    }
  }

  // The shares of the bases in row i.
  void share(const Enlarging<T>& enlarging, int64_t i) {
    for (int64_t b = 0; b < g.bases; ++b) {
      const T* plane = wide.data() + b * g.attention_size * g.size;
      mix(plane + enlarging.low[i] * g.size, plane + enlarging.high[i] * g.size,
          enlarging.weight[i], shares.data() + b * g.size, g.size);
    }
    softmax(shares.data(), sum.data(), g.bases, g.size);
  }
};

template <typename In, typename T>
at::Tensor forward_typed(
    const Geometry& g, const at::Tensor& bases, const at::Tensor& rois, const at::Tensor& attention) {
  const int64_t count = rois.size(0), size = g.size;
  at::Tensor output = at::empty({count, size, size}, bases.options());
  const Groups groups = equal_rois(rois.const_data_ptr<T>(), count, g.images);
  const Enlarging<T> enlarging(g.attention_size, size);
  const int64_t attention_cells = g.bases * g.attention_size * g.attention_size;
  In* out = output.mutable_data_ptr<In>();
  at::parallel_for(0, groups.size(), 1, [&](int64_t begin, int64_t end) {
    Work<T> work(g);
    std::vector<T> row(size);
    for (int64_t group = begin; group < end; ++group) {
      work.template pool<In>(
          bases, rois.const_data_ptr<T>() + 5 * groups.order[groups.first[group]]);
      for (int64_t i = groups.first[group]; i < groups.first[group + 1]; ++i) {
        const int64_t k = groups.order[i];
        work.widen(attention.const_data_ptr<T>() + k * attention_cells, enlarging);
        for (int64_t r = 0; r < size; ++r) {
          work.share(enlarging, r);
          blend(work.shares.data(), work.pooled.data() + r * size, size * size, row.data(), g.bases,
                size);
          In* target = out + (k * size + r) * size;
          for (int64_t j = 0; j < size; ++j) {
            target[j] = static_cast<In>(row[j]);
          }
        }
      }
    }
  });
  return output;
}

template <typename In, typename T>
std::tuple<at::Tensor, at::Tensor> backward_typed(
    const Geometry& g,
    const at::Tensor& grad,
    const at::Tensor& bases,
    const at::Tensor& rois,
    const at::Tensor& attention) {
  const int64_t count = rois.size(0), size = g.size, cells = g.rows * g.cols;
  const int64_t small = g.attention_size;
  at::Tensor attention_grad = at::empty(attention.sizes(), attention.options());
  at::Tensor bases_grad = at::zeros({g.images, g.bases, g.rows, g.cols}, rois.options());
  const Groups groups = equal_rois(rois.const_data_ptr<T>(), count, g.images);
  const Enlarging<T> enlarging(small, size);
  // Each thread's own sums: bases are few and small beside what is done with them.
  std::vector<std::vector<T>> sums(at::get_num_threads());
  at::parallel_for(0, groups.size(), 1, [&](int64_t begin, int64_t end) {
    Work<T> work(g);
    std::vector<T>& sum = sums[at::get_thread_num()];
    sum.resize(static_cast<size_t>(bases_grad.numel()), T(0));
    std::vector<T> pooled_grad(g.bases * size * size);
    std::vector<T> wide_grad(g.bases * small * size);
    std::vector<T> row(size), blended(size), attention_row(small);
    for (int64_t group = begin; group < end; ++group) {
      const T* roi = rois.const_data_ptr<T>() + 5 * groups.order[groups.first[group]];
      work.template pool<In>(bases, roi);
      std::fill(pooled_grad.begin(), pooled_grad.end(), T(0));
      for (int64_t i = groups.first[group]; i < groups.first[group + 1]; ++i) {
        const int64_t k = groups.order[i];
        work.widen(attention.const_data_ptr<T>() + k * g.bases * small * small, enlarging);
        std::fill(wide_grad.begin(), wide_grad.end(), T(0));
        for (int64_t r = 0; r < size; ++r) {
          const In* source = grad.const_data_ptr<In>() + (k * size + r) * size;
          for (int64_t j = 0; j < size; ++j) {
            row[j] = static_cast<T>(source[j]);
          }
          work.share(enlarging, r);
          const T* pooled = work.pooled.data() + r * size;
          blend(work.shares.data(), pooled, size * size, blended.data(), g.bases, size);
          blend_backward(
              work.shares.data(), pooled, size * size, row.data(), blended.data(),
              pooled_grad.data() + r * size, g.bases, size);
          for (int64_t b = 0; b < g.bases; ++b) {
            T* plane = wide_grad.data() + b * small * size;
            const T* logits = work.shares.data() + b * size;
            add_scaled(
                logits, T(1) - enlarging.weight[r], plane + enlarging.low[r] * size, size);
            add_scaled(logits, enlarging.weight[r], plane + enlarging.high[r] * size, size);
          }
        }
        T* target = attention_grad.mutable_data_ptr<T>() + k * g.bases * small * small;
        for (int64_t line = 0; line < g.bases * small; ++line) {
          std::fill(attention_row.begin(), attention_row.end(), T(0));
          const T* values = wide_grad.data() + line * size;
          for (int64_t j = 0; j < size; ++j) {
            attention_row[enlarging.low[j]] += values[j] * (T(1) - enlarging.weight[j]);
            attention_row[enlarging.high[j]] += values[j] * enlarging.weight[j];
          }
          for (int64_t j = 0; j < small; ++j) {
            target[line * small + j] = attention_row[j];
          }
        }
      }
      T* image = sum.data() + static_cast<int64_t>(roi[0]) * g.bases * cells;
      for (int64_t b = 0; b < g.bases; ++b) {
        work.pooling.spread(g, pooled_grad.data() + b * size * size, image + b * cells);
      }
    }
  });
  T* total = bases_grad.mutable_data_ptr<T>();
  at::parallel_for(0, bases_grad.numel(), 1 << 14, [&](int64_t begin, int64_t end) {
    for (const std::vector<T>& sum : sums) {
      if (!sum.empty()) {
        add_scaled(sum.data() + begin, T(1), total + begin, end - begin);
      }
    }
  });
  return {bases_grad, attention_grad};
}

// ---- operators ----

Geometry geometry_of(
    const at::Tensor& bases,
    const at::Tensor& attention,
    int64_t size,
    double spatial_scale,
    int64_t sampling_ratio) {
  return Geometry{bases.size(0), bases.size(1), bases.size(2), bases.size(3), size,
                  attention.size(2), spatial_scale, sampling_ratio};
}

at::Tensor blend_bases(
    const at::Tensor& bases,
    const at::Tensor& rois,
    const at::Tensor& attention,
    int64_t output_size,
    double spatial_scale,
    int64_t sampling_ratio) {
  const Geometry g = geometry_of(bases, attention, output_size, spatial_scale, sampling_ratio);
  const at::Tensor boxes = rois.to(compute_type(bases)).contiguous();
  // In the precision that is computed in: behind half-precision bases it may be of a finer type.
  const at::Tensor shares = attention.to(compute_type(bases)).contiguous();
  if (bases.numel() == 0) {
    return at::zeros({rois.size(0), output_size, output_size}, bases.options());
  }
  at::Tensor output;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, bases.scalar_type(), "mmplus::blend_bases", [&] {
        using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
        output = forward_typed<scalar_t, T>(g, bases, boxes, shares);
      });
  return output;
}

std::tuple<at::Tensor, at::Tensor> blend_bases_backward(
    const at::Tensor& grad,
    const at::Tensor& bases,
    const at::Tensor& rois,
    const at::Tensor& attention,
    double spatial_scale,
    int64_t sampling_ratio) {
  const Geometry g = geometry_of(bases, attention, grad.size(1), spatial_scale, sampling_ratio);
  const at::Tensor boxes = rois.to(compute_type(bases)).contiguous();
  const at::Tensor shares = attention.to(compute_type(bases)).contiguous();
  const at::Tensor dense = grad.contiguous();
  if (bases.numel() == 0) {
    return {at::zeros(bases.sizes(), bases.options()),
            at::zeros(attention.sizes(), attention.options())};
  }
  std::tuple<at::Tensor, at::Tensor> grads;
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, bases.scalar_type(), "mmplus::blend_bases_backward", [&] {
        using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
        grads = backward_typed<scalar_t, T>(g, dense, bases, boxes, shares);
      });
  return {std::get<0>(grads).to(bases.scalar_type()),
          std::get<1>(grads).to(attention.scalar_type())};
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("blend_bases", &blend_bases);
  m.impl("blend_bases_backward", &blend_bases_backward);
}

}  // namespace mmplus
