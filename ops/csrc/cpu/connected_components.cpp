// Connected components of a label map on the CPU: runs of equal labels, joined by union and find.
#include <algorithm>
#include <vector>

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

namespace mmplus {
namespace {

struct Run {
  int32_t begin, end;  // columns [begin, end)
  int64_t label;
};

// The first run of a component stands for it, so that the smaller number always wins.
class Forest {
 public:
  int32_t add() {
    parent_.push_back(static_cast<int32_t>(parent_.size()));
    return parent_.back();
  }

  int32_t find(int32_t node) {
    while (parent_[node] != node) {
      parent_[node] = parent_[parent_[node]];
      node = parent_[node];
    }
    return node;
  }

  void join(int32_t a, int32_t b) {
    a = find(a);
    b = find(b);
    if (a < b) {
      parent_[b] = a;
    } else {
      parent_[a] = b;
    }
  }

 private:
  std::vector<int32_t> parent_;
};

at::Tensor connected_components(const at::Tensor& labels, at::IntArrayRef ignore) {
  const at::Tensor map = labels.to(at::kLong).contiguous();
  const int64_t rows = map.size(0), cols = map.size(1);
  at::Tensor output = at::empty({rows, cols}, map.options().dtype(at::kInt));
  const auto* values = map.const_data_ptr<int64_t>();
  std::vector<Run> runs;
  std::vector<int64_t> first_run(rows + 1, 0);
  Forest forest;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t* line = values + row * cols;
    int64_t above = row > 0 ? first_run[row - 1] : 0;
    const int64_t above_end = row > 0 ? first_run[row] : 0;
    for (int64_t col = 0; col < cols;) {
      const int64_t label = line[col];
      int64_t end = col + 1;
      while (end < cols && line[end] == label) {
        ++end;
      }
      if (std::find(ignore.begin(), ignore.end(), label) == ignore.end()) {
        const int32_t node = forest.add();
        runs.push_back({static_cast<int32_t>(col), static_cast<int32_t>(end), label});
        // Runs above that touch [col, end), corners included.
        while (above < above_end && runs[above].end < col) {
          ++above;
        }
        for (int64_t i = above; i < above_end && runs[i].begin <= end; ++i) {
          if (runs[i].label == label) {
            forest.join(node, static_cast<int32_t>(i));
          }
        }
      }
      col = end;
    }
    first_run[row + 1] = static_cast<int64_t>(runs.size());
  }
  // Runs are in raster order, and so are the components' first runs.
  std::vector<int32_t> number(runs.size());
  int32_t components = 0;
  auto* out = output.mutable_data_ptr<int32_t>();
  for (int64_t row = 0; row < rows; ++row) {
    int32_t* line = out + row * cols;
    int64_t col = 0;
    for (int64_t i = first_run[row]; i < first_run[row + 1]; ++i) {
      const int32_t root = forest.find(static_cast<int32_t>(i));
      number[i] = root == i ? ++components : number[root];
      std::fill(line + col, line + runs[i].begin, 0);
      std::fill(line + runs[i].begin, line + runs[i].end, number[i]);
      col = runs[i].end;
    }
    std::fill(line + col, line + cols, 0);
  }
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(mmplus, CPU, m) {
  m.impl("connected_components", &connected_components);
}

}  // namespace mmplus
