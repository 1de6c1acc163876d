// Launchers of the kernels in masks.cu: whole numbers, the same answers as on the CPU.
#pragma once

#include "types.h"

namespace mmplus {

// masks (N, H, W) bytes; support (N, H, W) bytes: min(s, 9 - s) for s pixels of the mask among nine.
void launch_support(
    const uint8_t* masks, int64_t count, int64_t rows, int64_t cols, uint8_t* support,
    cudaStream_t stream);

struct CropGeometry {
  int64_t patches, masks, rows, cols, size, padding;
};

// image (H, W, 3) bytes, masks (N, H, W) bytes, boxes (P, 4), owners (P,); images (P, 3, S, S),
// crops (P, 1, S, S).
void launch_crop(
    const CropGeometry& geometry, const uint8_t* image, const uint8_t* masks, const int64_t* boxes,
    const int64_t* owners, float* images, float* crops, cudaStream_t stream);

struct AssemblyGeometry {
  int64_t masks, rows, cols;
  int64_t patch_h, patch_w, padding;
  float threshold;
};

// order: the patches, mask by mask, each mask's in ascending order; first: where each mask's begin,
// and the end (N + 1). patches (P, h, w); output (N, H, W) bytes 0 or 1.
void launch_reassemble(
    const AssemblyGeometry& geometry, const uint8_t* masks, const int64_t* boxes,
    const float* patches, const int64_t* order, const int64_t* first, uint8_t* output,
    cudaStream_t stream);

// words (N, ceil(pixels / 32)): the masks' bits; areas (N, N).
void launch_pack(
    const uint8_t* masks, int64_t count, int64_t pixels, uint32_t* words, cudaStream_t stream);
void launch_intersections(
    const uint32_t* words, int64_t count, int64_t words_each, int64_t* areas, cudaStream_t stream);

// labels (H, W); roots (H, W): of each pixel the first pixel of its component, -1 where ignored.
void launch_components(
    const int64_t* labels, const uint8_t* ignored, int64_t rows, int64_t cols, int32_t* roots,
    cudaStream_t stream);

}  // namespace mmplus
