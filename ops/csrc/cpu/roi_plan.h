// Which cells of the feature map each bin of a RoI reads, and with what weight.
//
// All sampling points of a bin are merged first: neighbouring points share cells, and a cell that n
// points read costs one multiplication for each channel instead of up to 4 n. Points lie on a grid, so
// the cells of a bin are a product of few rows and few columns.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "axis.h"

namespace mmplus {

// All bins of a RoI. weights: bin by bin, (rows of cells, columns of cells).
template <typename T>
struct RoiPlan {
  int64_t image = 0;
  int64_t roi = 0;
  Axis<T> y;
  Axis<T> x;
  T scale = 0;  // 1 / points of a bin
  std::vector<T> weights;

  int64_t bins_h() const {
    return static_cast<int64_t>(y.first_cell.size()) - 1;
  }
  int64_t bins_w() const {
    return static_cast<int64_t>(x.first_cell.size()) - 1;
  }

  // The product of all rows with all columns is that of the bins, summed.
  int64_t num_weights() const {
    return static_cast<int64_t>(y.cells.size()) * static_cast<int64_t>(x.cells.size());
  }

  // Call for each bin, with the place of its weights.
  template <typename Visit>
  void for_bins(Visit visit) const {
    int64_t offset = 0;
    for (int64_t bin_row = 0; bin_row < bins_h(); ++bin_row) {
      for (int64_t bin_col = 0; bin_col < bins_w(); ++bin_col) {
        visit(bin_row, bin_col, offset);
        offset += y.num_cells(bin_row) * x.num_cells(bin_col);
      }
    }
  }

  // Lay the points out. box: (x1, y1, x2, y2) in image pixels.
  void place(
      const T* box,
      int64_t bins_h,
      int64_t bins_w,
      T spatial_scale,
      int64_t sampling_ratio,
      bool aligned,
      int64_t rows,
      int64_t cols,
      int64_t prob_rows,
      int64_t prob_cols) {
    const RoiBox<T> roi_box(box, spatial_scale, aligned);
    const auto [points_h, points_w] = roi_box.points(bins_h, bins_w, sampling_ratio);
    y.build(roi_box.top, roi_box.height, bins_h, points_h, rows, prob_rows);
    x.build(roi_box.left, roi_box.width, bins_w, points_w, cols, prob_cols);
    scale = points_h > 0 ? static_cast<T>(1.0 / (points_h * points_w)) : T(0);
  }

  // The values that a row of points reads from the probability map, before the other axis.
  static void prob_row(
      const T* prob, const Sample<T>& sample, int64_t prob_cols, std::vector<T>& row) {
    row.resize(static_cast<size_t>(prob_cols));
    const T* low = prob + sample.prob_low * prob_cols;
    const T* high = prob + sample.prob_high * prob_cols;
    for (int64_t col = 0; col < prob_cols; ++col) {
      row[col] = low[col] * (T(1) - sample.prob_weight) + high[col] * sample.prob_weight;
    }
  }

  // prob: (prob_rows, prob_cols) of this RoI.
  void weigh(const T* prob, int64_t prob_cols) {
    weights.assign(static_cast<size_t>(num_weights()), T(0));
    std::vector<T> row;
    int64_t row_offset = 0;
    for (int64_t bin_row = 0; bin_row < bins_h(); ++bin_row) {
      const int64_t high = y.num_cells(bin_row);
      for (int32_t i = y.first_sample[bin_row]; i < y.first_sample[bin_row + 1]; ++i) {
        const Sample<T>& vertical = y.samples[i];
        prob_row(prob, vertical, prob_cols, row);
        int64_t offset = row_offset;
        for (int64_t bin_col = 0; bin_col < bins_w(); ++bin_col) {
          const int64_t wide = x.num_cells(bin_col);
          T* upper = weights.data() + offset + vertical.low * wide;
          T* lower = weights.data() + offset + vertical.high * wide;
          for (int32_t j = x.first_sample[bin_col]; j < x.first_sample[bin_col + 1]; ++j) {
            const Sample<T>& sample = x.samples[j];
            const T guidance = scale *
                (row[sample.prob_low] * (T(1) - sample.prob_weight) +
                 row[sample.prob_high] * sample.prob_weight);
            const T down = guidance * vertical.weight;
            const T up = guidance - down;
            upper[sample.low] += up * (T(1) - sample.weight);
            upper[sample.high] += up * sample.weight;
            lower[sample.low] += down * (T(1) - sample.weight);
            lower[sample.high] += down * sample.weight;
          }
          offset += high * wide;
        }
      }
      row_offset += high * static_cast<int64_t>(x.cells.size());
    }
  }

  // Given the gradient with respect to each weight, add that with respect to the probabilities.
  void add_prob_grad(const T* grad, int64_t prob_cols, T* prob_grad) const {
    std::vector<T> row(static_cast<size_t>(prob_cols));
    int64_t row_offset = 0;
    for (int64_t bin_row = 0; bin_row < bins_h(); ++bin_row) {
      const int64_t high = y.num_cells(bin_row);
      for (int32_t i = y.first_sample[bin_row]; i < y.first_sample[bin_row + 1]; ++i) {
        const Sample<T>& vertical = y.samples[i];
        std::fill(row.begin(), row.end(), T(0));
        int64_t offset = row_offset;
        for (int64_t bin_col = 0; bin_col < bins_w(); ++bin_col) {
          const int64_t wide = x.num_cells(bin_col);
          const T* upper = grad + offset + vertical.low * wide;
          const T* lower = grad + offset + vertical.high * wide;
          for (int32_t j = x.first_sample[bin_col]; j < x.first_sample[bin_col + 1]; ++j) {
            const Sample<T>& sample = x.samples[j];
            const T up = upper[sample.low] * (T(1) - sample.weight) +
                upper[sample.high] * sample.weight;
            const T down = lower[sample.low] * (T(1) - sample.weight) +
                lower[sample.high] * sample.weight;
            const T value = scale * (up * (T(1) - vertical.weight) + down * vertical.weight);
            row[sample.prob_low] += value * (T(1) - sample.prob_weight);
            row[sample.prob_high] += value * sample.prob_weight;
          }
          offset += high * wide;
        }
        T* low = prob_grad + vertical.prob_low * prob_cols;
        T* above = prob_grad + vertical.prob_high * prob_cols;
        for (int64_t col = 0; col < prob_cols; ++col) {
          low[col] += row[col] * (T(1) - vertical.prob_weight);
          above[col] += row[col] * vertical.prob_weight;
        }
      }
      row_offset += high * static_cast<int64_t>(x.cells.size());
    }
  }
};

}  // namespace mmplus
