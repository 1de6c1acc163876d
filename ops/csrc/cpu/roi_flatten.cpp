// ROI-Flatten (REFINE, section 3.2) on the CPU: the masks of a class on one canvas.
//
// A canvas belongs to one image and one class, so canvases, and bands of their rows, are independent:
// each thread draws the instances of a band in their order. The gradient of the maximum needs to know
// who won; that is found once more, and then each thread gathers for the instances that it owns.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../compute_type.h"

namespace mmplus {
namespace {

constexpr int64_t BAND = 32;

// What one canvas row or column reads from a mask: two cells, a weight for each.
template <typename T>
struct Tap {
  int32_t low, high;  // inside the mask; the weight of what lies outside is 0
  T low_weight, high_weight;
};

// One axis of an instance: canvas cells [begin, end) and their taps.
template <typename T>
struct Side {
  int64_t begin = 0, end = 0;
  std::vector<Tap<T>> taps;

  // start, stop: the box on the canvas.
  Side(T start, T stop, int64_t mask_size, int64_t canvas_size) {
    const T length = stop - start;
    if (!(std::isfinite(start) && std::isfinite(length)) || length == T(0)) {
      return;
    }
    // Positions on the mask are (cell + 0.5 - start) / length * size - 0.5; those in (-1, size) count.
    const T reach = std::abs(length) / static_cast<T>(mask_size);
    const T from = std::min(start, stop) - reach, to = std::max(start, stop) + reach;
    begin = static_cast<int64_t>(std::floor(
        std::min(std::max(from - T(0.5), T(0)), static_cast<T>(canvas_size))));
    end = static_cast<int64_t>(
        std::ceil(std::min(std::max(to + T(0.5), T(0)), static_cast<T>(canvas_size))));
    for (int64_t cell = begin; cell < end; ++cell) {
      const T position = (static_cast<T>(cell) + T(0.5) - start) / length *
              static_cast<T>(mask_size) - T(0.5);
      taps.push_back(tap_at(position, mask_size));
    }
  }

 private:
  static Tap<T> tap_at(T position, int64_t size) {
    Tap<T> tap{0, 0, T(0), T(0)};
    if (!(position > T(-1) && position < static_cast<T>(size))) {
      return tap;
    }
    const T floor = std::floor(position);
    const auto low = static_cast<int64_t>(floor);
    const T weight = position - floor;
    if (low >= 0) {
      tap.low = static_cast<int32_t>(low);
      tap.low_weight = T(1) - weight;
    }
    if (low + 1 < size) {
      tap.high = static_cast<int32_t>(low + 1);
      tap.high_weight = weight;
    }
    return tap;
  }
};

template <typename T>
struct Instance {
  int64_t index;
  Side<T> y, x;
};

// Instances of each canvas, in the order of the RoIs.
template <typename T>
struct Canvases {
  std::vector<std::vector<Instance<T>>> instances;  // (N * classes)

  Canvases(
      const at::Tensor& rois,
      const at::Tensor& labels,
      int64_t num_classes,
      int64_t batch_size,
      int64_t height,
      int64_t width,
      int64_t mask_h,
      int64_t mask_w,
      double spatial_scale)
      : instances(batch_size * num_classes) {
    const T* boxes = rois.const_data_ptr<T>();
    const int64_t* classes = labels.const_data_ptr<int64_t>();
    const T scale = static_cast<T>(spatial_scale);
    for (int64_t k = 0; k < rois.size(0); ++k) {
      const T* roi = boxes + 5 * k;
      TORCH_CHECK_VALUE(
          roi[0] >= T(0) && roi[0] < static_cast<T>(batch_size),
          "batch indices of rois must lie in [0, ", batch_size, "), got ", roi[0], " in row ", k);
      TORCH_CHECK_VALUE(
          classes[k] >= 0 && classes[k] < num_classes,
          "labels must lie in [0, ", num_classes, "), got ", classes[k], " in row ", k);
      Instance<T> instance{
          k, Side<T>(roi[2] * scale, roi[4] * scale, mask_h, height),
          Side<T>(roi[1] * scale, roi[3] * scale, mask_w, width)};
      if (!instance.y.taps.empty() && !instance.x.taps.empty()) {
        instances[static_cast<int64_t>(roi[0]) * num_classes + classes[k]].push_back(
            std::move(instance));
      }
    }
  }
};

// Two rows of a mask, mixed for one canvas row.
template <typename In, typename T>
void mix_rows(const In* mask, int64_t mask_w, const Tap<T>& tap, std::vector<T>& row) {
  row.resize(mask_w);
  const In* low = mask + tap.low * mask_w;
  const In* high = mask + tap.high * mask_w;
  for (int64_t j = 0; j < mask_w; ++j) {
    row[j] = static_cast<T>(low[j]) * tap.low_weight + static_cast<T>(high[j]) * tap.high_weight;
  }
}

// Call for each cell of a band that an instance reaches: visit(row, col, value).
template <typename In, typename T, typename Visit>
void draw(
    const Instance<T>& instance,
    const In* mask,
    int64_t mask_w,
    int64_t top,
    int64_t bottom,
    std::vector<T>& row,
    Visit visit) {
  const int64_t first = std::max(top, instance.y.begin);
  const int64_t last = std::min(bottom, instance.y.end);
  for (int64_t i = first; i < last; ++i) {
    mix_rows(mask, mask_w, instance.y.taps[i - instance.y.begin], row);
    for (int64_t j = instance.x.begin; j < instance.x.end; ++j) {
      const Tap<T>& tap = instance.x.taps[j - instance.x.begin];
      visit(i, j, row[tap.low] * tap.low_weight + row[tap.high] * tap.high_weight);
    }
  }
}

template <typename In, typename T>
at::Tensor forward_typed(
    const at::Tensor& masks, const Canvases<T>& canvases, at::Tensor output, bool maximum) {
  const int64_t height = output.size(2), width = output.size(3);
  const int64_t bands = (height + BAND - 1) / BAND;
  const int64_t mask_cells = masks.size(1) * masks.size(2);
  const In* values = masks.const_data_ptr<In>();
  In* out = output.mutable_data_ptr<In>();
  at::parallel_for(0, output.size(0) * output.size(1) * bands, 1, [&](int64_t begin, int64_t end) {
    std::vector<T> canvas(BAND * width), row;
    for (int64_t job = begin; job < end; ++job) {
      const int64_t plane = job / bands, top = job % bands * BAND;
      const int64_t bottom = std::min(top + BAND, height);
      if (canvases.instances[plane].empty()) {
        continue;
      }
      std::fill(canvas.begin(), canvas.end(), T(0));
      for (const Instance<T>& instance : canvases.instances[plane]) {
        draw(instance, values + instance.index * mask_cells, masks.size(2), top, bottom, row,
             [&](int64_t i, int64_t j, T value) {
               T& cell = canvas[(i - top) * width + j];
               cell = maximum ? (value > cell ? value : cell) : cell + value;
             });
      }
      In* target = out + (plane * height + top) * width;
      for (int64_t i = 0; i < (bottom - top) * width; ++i) {
        target[i] = static_cast<In>(canvas[i]);
      }
    }
  });
  return output;
}

template <typename In, typename T>
at::Tensor backward_typed(
    const at::Tensor& grad, const at::Tensor& masks, const Canvases<T>& canvases, bool maximum) {
  const int64_t height = grad.size(2), width = grad.size(3);
  const int64_t bands = (height + BAND - 1) / BAND, planes = grad.size(0) * grad.size(1);
  const int64_t mask_w = masks.size(2), mask_cells = masks.size(1) * mask_w;
  const In* values = masks.const_data_ptr<In>();
  const In* gradients = grad.const_data_ptr<In>();
  std::vector<int32_t> winners;
  if (maximum) {
    winners.assign(static_cast<size_t>(planes * height * width), -1);
    at::parallel_for(0, planes * bands, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> canvas(BAND * width), row;
      for (int64_t job = begin; job < end; ++job) {
        const int64_t plane = job / bands, top = job % bands * BAND;
        const int64_t bottom = std::min(top + BAND, height);
        std::fill(canvas.begin(), canvas.end(), T(0));
        for (const Instance<T>& instance : canvases.instances[plane]) {
          draw(instance, values + instance.index * mask_cells, mask_w, top, bottom, row,
               [&](int64_t i, int64_t j, T value) {
                 T& cell = canvas[(i - top) * width + j];
                 if (value > cell) {
                   cell = value;
                   winners[(plane * height + i) * width + j] =
                       static_cast<int32_t>(instance.index);
                 }
               });
        }
      }
    });
  }
  std::vector<std::pair<int64_t, const Instance<T>*>> owned;
  for (int64_t plane = 0; plane < planes; ++plane) {
    for (const Instance<T>& instance : canvases.instances[plane]) {
      owned.emplace_back(plane, &instance);
    }
  }
  at::Tensor mask_grad = at::zeros(masks.sizes(), masks.options());
  In* out = mask_grad.mutable_data_ptr<In>();
  at::parallel_for(0, static_cast<int64_t>(owned.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<T> sum(mask_cells), row(mask_w);
    for (int64_t n = begin; n < end; ++n) {
      const auto& [plane, instance] = owned[n];
      std::fill(sum.begin(), sum.end(), T(0));
      for (int64_t i = instance->y.begin; i < instance->y.end; ++i) {
        const int64_t line = (plane * height + i) * width;
        std::fill(row.begin(), row.end(), T(0));
        for (int64_t j = instance->x.begin; j < instance->x.end; ++j) {
          if (maximum && winners[line + j] != instance->index) {
            continue;
          }
          const Tap<T>& tap = instance->x.taps[j - instance->x.begin];
          const T value = static_cast<T>(gradients[line + j]);
          row[tap.low] += value * tap.low_weight;
          row[tap.high] += value * tap.high_weight;
        }
        const Tap<T>& tap = instance->y.taps[i - instance->y.begin];
        for (int64_t j = 0; j < mask_w; ++j) {
          sum[tap.low * mask_w + j] += row[j] * tap.low_weight;
          sum[tap.high * mask_w + j] += row[j] * tap.high_weight;
        }
      }
      for (int64_t i = 0; i < mask_cells; ++i) {
        out[instance->index * mask_cells + i] = static_cast<In>(sum[i]);
      }
    }
  });
  return mask_grad;
}

// ---- operators ----

template <typename T>
Canvases<T> canvases_of(
    const at::Tensor& masks,
    const at::Tensor& rois,
    const at::Tensor& labels,
    int64_t num_classes,
    int64_t batch_size,
    int64_t height,
    int64_t width,
    double spatial_scale) {
  return Canvases<T>(
      rois.to(compute_type(masks)).contiguous(), labels.to(at::kLong).contiguous(), num_classes,
      batch_size, height, width, masks.size(1), masks.size(2), spatial_scale);
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
  at::Tensor output = at::zeros({batch_size, num_classes, height, width}, masks.options());
  const at::Tensor dense = masks.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, masks.scalar_type(), "mmplus::roi_flatten", [&] {
        using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
        forward_typed<scalar_t, T>(
            dense,
            canvases_of<T>(
                dense, rois, labels, num_classes, batch_size, height, width, spatial_scale),
            output, maximum);
      });
  return output;
}

at::Tensor roi_flatten_backward(
    const at::Tensor& grad,
    const at::Tensor& masks,
    const at::Tensor& rois,
    const at::Tensor& labels,
    double spatial_scale,
    bool maximum) {
  at::Tensor mask_grad;
  const at::Tensor dense = masks.contiguous(), gradient = grad.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, masks.scalar_type(), "mmplus::roi_flatten_backward", [&] {
        using T = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;
        mask_grad = backward_typed<scalar_t, T>(
            gradient, dense,
            canvases_of<T>(
                dense, rois, labels, grad.size(1), grad.size(0), grad.size(2), grad.size(3),
                spatial_scale),
            maximum);
      });
  return mask_grad;
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("roi_flatten", &roi_flatten);
  m.impl("roi_flatten_backward", &roi_flatten_backward);
}

}  // namespace mmplus
