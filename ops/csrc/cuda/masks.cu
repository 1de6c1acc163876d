// Masks in whole numbers on NVIDIA GPUs.
#include "masks.h"

namespace mmplus {
namespace {

__device__ int64_t first_index() {
  return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}

__device__ int64_t index_step() {
  return static_cast<int64_t>(gridDim.x) * blockDim.x;
}

__global__ void find_support(
    const uint8_t* __restrict__ masks, int64_t total, int64_t rows, int64_t cols,
    uint8_t* __restrict__ support) {
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const int64_t row = i / cols % rows, col = i % cols;
    int sum = 0;
    for (int64_t dy = -1; dy <= 1; ++dy) {
      for (int64_t dx = -1; dx <= 1; ++dx) {
        const int64_t y = row + dy, x = col + dx;
        if (y >= 0 && y < rows && x >= 0 && x < cols) {
          sum += masks[i + dy * cols + dx] != 0;
        }
      }
    }
    support[i] = static_cast<uint8_t>(sum < 9 - sum ? sum : 9 - sum);
  }
}

// Bilinear resizing, align_corners=False.
struct Tap {
  int64_t low, high;
  float weight;  // of the second
};

__device__ Tap tap_at(int64_t to_index, int64_t from, int64_t to) {
  const float ratio = static_cast<float>(from) / static_cast<float>(to);
  float position = (static_cast<float>(to_index) + 0.5f) * ratio - 0.5f;
  position = position < 0.0f ? 0.0f : position;
  int64_t low = static_cast<int64_t>(position);
  low = low < from - 1 ? low : from - 1;
  return {low, low + 1 < from ? low + 1 : from - 1, position - static_cast<float>(low)};
}

// Rounded as on the CPU, where no step is fused with the next.
__device__ float mix(float low, float high, float weight) {
  return __fadd_rn(__fmul_rn(low, __fsub_rn(1.0f, weight)), __fmul_rn(high, weight));
}

__global__ void crop(
    CropGeometry g, const uint8_t* __restrict__ image, const uint8_t* __restrict__ masks,
    const int64_t* __restrict__ boxes, const int64_t* __restrict__ owners,
    float* __restrict__ images, float* __restrict__ crops) {
  const int64_t cells = g.size * g.size, total = g.patches * cells;
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const int64_t p = i / cells, row = i % cells / g.size, col = i % g.size;
    const int64_t x1 = boxes[4 * p] - g.padding, y1 = boxes[4 * p + 1] - g.padding;
    const int64_t width = boxes[4 * p + 2] + g.padding - x1;
    const int64_t height = boxes[4 * p + 3] + g.padding - y1;
    const Tap v = tap_at(row, height, g.size), h = tap_at(col, width, g.size);
    for (int64_t channel = 0; channel < 3; ++channel) {
      const auto pixel = [&](int64_t dy, int64_t dx) {
        const int64_t y = y1 + dy, x = x1 + dx;
        return y < 0 || y >= g.rows || x < 0 || x >= g.cols
            ? 0.0f
            : static_cast<float>(image[(y * g.cols + x) * 3 + channel]);
      };
      images[((p * 3 + channel) * g.size + row) * g.size + col] = mix(
          mix(pixel(v.low, h.low), pixel(v.high, h.low), v.weight),
          mix(pixel(v.low, h.high), pixel(v.high, h.high), v.weight), h.weight);
    }
    const int64_t last_y = height - 1, last_x = width - 1;
    int64_t dy = static_cast<int64_t>(
        static_cast<float>(row) * (static_cast<float>(height) / static_cast<float>(g.size)));
    int64_t dx = static_cast<int64_t>(
        static_cast<float>(col) * (static_cast<float>(width) / static_cast<float>(g.size)));
    const int64_t y = y1 + (dy < last_y ? dy : last_y), x = x1 + (dx < last_x ? dx : last_x);
    // A compiled graph comes here without a look at the owners.
    const bool inside = y >= 0 && y < g.rows && x >= 0 && x < g.cols && owners[p] >= 0 &&
        owners[p] < g.masks;
    crops[i] =
        inside && masks[(owners[p] * g.rows + y) * g.cols + x] != 0 ? 1.0f : 0.0f;
  }
}

__global__ void reassemble(
    AssemblyGeometry g, const uint8_t* __restrict__ masks, const int64_t* __restrict__ boxes,
    const float* __restrict__ patches, const int64_t* __restrict__ order,
    const int64_t* __restrict__ first, uint8_t* __restrict__ output) {
  const int64_t cells = g.rows * g.cols, total = g.masks * cells;
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const int64_t mask = i / cells, y = i % cells / g.cols, x = i % g.cols;
    float sum = 0.0f;
    int count = 0;
    for (int64_t n = first[mask]; n < first[mask + 1]; ++n) {
      const int64_t p = order[n];
      const int64_t* box = boxes + 4 * p;
      if (x < box[0] || x >= box[2] || y < box[1] || y >= box[3]) {
        continue;
      }
      const int64_t height = box[3] - box[1] + 2 * g.padding;
      const int64_t width = box[2] - box[0] + 2 * g.padding;
      const int64_t row = y - box[1] + g.padding, col = x - box[0] + g.padding;
      const float* patch = patches + p * g.patch_h * g.patch_w;
      float value;
      if (height == g.patch_h && width == g.patch_w) {
        value = patch[row * g.patch_w + col];
      } else {
        const Tap v = tap_at(row, g.patch_h, height), h = tap_at(col, g.patch_w, width);
        const float* low = patch + v.low * g.patch_w;
        const float* high = patch + v.high * g.patch_w;
        value = mix(
            mix(low[h.low], low[h.high], h.weight), mix(high[h.low], high[h.high], h.weight),
            v.weight);
      }
      sum = __fadd_rn(sum, value);
      ++count;
    }
    output[i] = count > 0 ? __fdiv_rn(sum, static_cast<float>(count)) > g.threshold
                          : masks[i] != 0;
  }
}

// A warp makes one word: the ballot of its lanes.
__global__ void pack(
    const uint8_t* __restrict__ masks, int64_t count, int64_t pixels, int64_t words_each,
    uint32_t* __restrict__ words) {
  const int64_t total = count * words_each * 32;
  for (int64_t i = first_index(); i < total; i += index_step()) {
    const int64_t word = i / 32, pixel = word % words_each * 32 + i % 32;
    const bool set = pixel < pixels && masks[word / words_each * pixels + pixel] != 0;
    const uint32_t bits = __ballot_sync(0xffffffffu, set);
    if (i % 32 == 0) {
      words[word] = bits;
    }
  }
}

// A block for each pair of masks.
__global__ void intersect(
    const uint32_t* __restrict__ words, int64_t count, int64_t words_each,
    int64_t* __restrict__ areas) {
  __shared__ unsigned long long sum;
  for (int64_t pair = blockIdx.x; pair < count * count; pair += gridDim.x) {
    const int64_t a = pair / count, b = pair % count;
    if (a > b) {
      continue;  // the whole block: its pair is the same for all threads
    }
    if (threadIdx.x == 0) {
      sum = 0;
    }
    __syncthreads();
    unsigned long long common = 0;
    for (int64_t i = threadIdx.x; i < words_each; i += blockDim.x) {
      common += __popc(words[a * words_each + i] & words[b * words_each + i]);
    }
    atomicAdd(&sum, common);
    __syncthreads();
    if (threadIdx.x == 0) {
      areas[a * count + b] = areas[b * count + a] = static_cast<int64_t>(sum);
    }
    __syncthreads();
  }
}

// ---- components: every pixel leads to a pixel before it, in the end to the first of its own ----

__device__ int32_t find_root(volatile int32_t* roots, int32_t pixel) {
  int32_t parent = roots[pixel];
  while (parent != pixel) {
    pixel = parent;
    parent = roots[pixel];
  }
  return pixel;
}

__device__ void join(int32_t* roots, int32_t a, int32_t b) {
  while (true) {
    a = find_root(roots, a);
    b = find_root(roots, b);
    if (a == b) {
      return;
    }
    const int32_t low = a < b ? a : b, high = a < b ? b : a;
    const int32_t before = atomicMin(roots + high, low);
    if (before == high) {
      return;
    }
    // Somebody else was here; what was found has to be joined as well.
    a = before;
    b = low;
  }
}

__global__ void start_components(
    const uint8_t* __restrict__ ignored, int64_t total, int32_t* __restrict__ roots) {
  for (int64_t i = first_index(); i < total; i += index_step()) {
    roots[i] = ignored[i] ? -1 : static_cast<int32_t>(i);
  }
}

__global__ void join_components(
    const int64_t* __restrict__ labels, const uint8_t* __restrict__ ignored, int64_t rows,
    int64_t cols, int32_t* roots) {
  for (int64_t i = first_index(); i < rows * cols; i += index_step()) {
    if (ignored[i]) {
      continue;
    }
    const int64_t row = i / cols, col = i % cols;
    if (col > 0 && labels[i - 1] == labels[i]) {
      join(roots, static_cast<int32_t>(i), static_cast<int32_t>(i - 1));
    }
    for (int64_t dx = -1; row > 0 && dx <= 1; ++dx) {
      if (col + dx >= 0 && col + dx < cols && labels[i - cols + dx] == labels[i]) {
        join(roots, static_cast<int32_t>(i), static_cast<int32_t>(i - cols + dx));
      }
    }
  }
}

__global__ void finish_components(int64_t total, int32_t* roots) {
  for (int64_t i = first_index(); i < total; i += index_step()) {
    if (roots[i] >= 0) {
      roots[i] = find_root(roots, static_cast<int32_t>(i));
    }
  }
}

}  // namespace

void launch_support(
    const uint8_t* masks, int64_t count, int64_t rows, int64_t cols, uint8_t* support,
    cudaStream_t stream) {
  const int64_t total = count * rows * cols;
  find_support<<<blocks_for(total), THREADS, 0, stream>>>(masks, total, rows, cols, support);
  check_launch();
}

void launch_crop(
    const CropGeometry& g, const uint8_t* image, const uint8_t* masks, const int64_t* boxes,
    const int64_t* owners, float* images, float* crops, cudaStream_t stream) {
  crop<<<blocks_for(g.patches * g.size * g.size), THREADS, 0, stream>>>(
      g, image, masks, boxes, owners, images, crops);
  check_launch();
}

void launch_reassemble(
    const AssemblyGeometry& g, const uint8_t* masks, const int64_t* boxes, const float* patches,
    const int64_t* order, const int64_t* first, uint8_t* output, cudaStream_t stream) {
  reassemble<<<blocks_for(g.masks * g.rows * g.cols), THREADS, 0, stream>>>(
      g, masks, boxes, patches, order, first, output);
  check_launch();
}

void launch_pack(
    const uint8_t* masks, int64_t count, int64_t pixels, uint32_t* words, cudaStream_t stream) {
  const int64_t words_each = (pixels + 31) / 32;
  pack<<<blocks_for(count * words_each * 32), THREADS, 0, stream>>>(
      masks, count, pixels, words_each, words);
  check_launch();
}

void launch_intersections(
    const uint32_t* words, int64_t count, int64_t words_each, int64_t* areas,
    cudaStream_t stream) {
  intersect<<<blocks_for(count * count * THREADS), THREADS, 0, stream>>>(
      words, count, words_each, areas);
  check_launch();
}

void launch_components(
    const int64_t* labels, const uint8_t* ignored, int64_t rows, int64_t cols, int32_t* roots,
    cudaStream_t stream) {
  const unsigned blocks = blocks_for(rows * cols);
  start_components<<<blocks, THREADS, 0, stream>>>(ignored, rows * cols, roots);
  join_components<<<blocks, THREADS, 0, stream>>>(labels, ignored, rows, cols, roots);
  finish_components<<<blocks, THREADS, 0, stream>>>(rows * cols, roots);
  check_launch();
}

}  // namespace mmplus
