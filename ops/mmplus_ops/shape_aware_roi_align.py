"""Shape-aware RoIAlign (MR R-CNN, section 3.1), the plain PyTorch form.

Shape letters: N images, C channels, Hf x Wf feature map, K RoIs, H x W bins of a RoI,
Hp x Wp probability map, T sampling points of all RoIs together.

Eq. 4 is a weighted sum of feature vectors: every bin adds up the four neighbours of each of
its sampling points, weighted by interpolation and by probability. ``embedding_bag`` computes
just that sum, with gradients to the features and to the weights, without ever holding a
feature vector per sampling point; so all the work here is in finding indices and weights.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_feature_map, check_output_size, check_prob, check_rois


class SamplingPoints(NamedTuple):
    """Where all bins of all RoIs sample; RoI-major, then bin-major, then row-major in a bin."""

    roi: Tensor  # (T,) int64: the RoI that a point belongs to
    x: Tensor  # (T,) on the feature map, in cells
    y: Tensor
    u: Tensor  # (T,) in the RoI, 0 to 1 from its left to its right edge
    v: Tensor
    bins: Tensor  # (K * H * W,) int64: the first point of each bin
    count: Tensor  # (T,) float: the points of the bin, N of Eq. 2 and Eq. 4


def shape_aware_roi_align(
    input: Tensor,
    rois: Tensor,
    prob: Tensor,
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    sampling_ratio: int = 0,
    aligned: bool = True,
) -> Tensor:
    """RoIAlign whose sampling points count as much as the instance is probable at them (Eq. 4).

    With ``prob == 1`` the result is that of ``mmcv.ops.roi_align(..., 'avg', aligned)``.
    Eq. 5 is read in units of the RoI with pixel centres: sample i of n in bin w lies at
    ``u = (w + (i + 0.5) / n) / W`` and reads ``prob`` bilinearly at ``u * Wp - 0.5``, borders
    replicated; rows likewise. Differentiable in ``input`` and ``prob``. Half precision is
    summed in float32.

    Args:
        input: Feature map (N, C, Hf, Wf), floating point.
        rois: (K, 5) as (batch index, x1, y1, x2, y2) in image pixels. Inverted RoIs and RoIs
            with a coordinate that is not finite give 0.
        prob: (K, Hp, Wp) in [0, 1], laid over the RoIs.
        output_size: (H, W) bins, or one number for both.
        spatial_scale: Feature cells per image pixel, 1 / stride.
        sampling_ratio: Points per bin and axis; 0: about one per feature cell.
        aligned: Whether pixel centres lie at half-integers (True) or integers (False, and
            RoIs are at least one cell large).

    Returns:
        (K, C, H, W), of the type of ``input``.

    Raises:
        TypeError: A tensor is not floating point, or dtypes or devices do not fit.
        ValueError: A shape is wrong, or a batch index lies outside [0, N).
    """
    check_feature_map(input)
    check_rois(rois, input)
    check_prob(prob, rois)
    bins_h, bins_w = check_output_size(output_size)
    num_rois, channels = len(rois), input.shape[1]
    if num_rois == 0 or input.numel() == 0 or prob.numel() == 0:
        # Tied to both inputs, so that a rank without RoIs still takes part in the backward pass.
        zero = input.sum() * 0 + prob.sum().to(input.dtype) * 0
        return input.new_zeros((num_rois, channels, bins_h, bins_w)) + zero

    dtype = torch.promote_types(input.dtype, torch.float32)
    points = sampling_points(
        rois.detach().to(dtype), bins_h, bins_w, spatial_scale, sampling_ratio, aligned
    )
    image = rois[:, 0].long()[points.roi]
    index, weight = _feature_corners(image, points.x, points.y, input.shape)
    guidance = _read_probability(prob.to(dtype), points)
    table = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
    if table.stride(1) != 1:
        table = table.contiguous()
    pooled = F.embedding_bag(
        index.flatten(),
        table,
        points.bins * 4,
        mode="sum",
        per_sample_weights=(weight * (guidance / points.count)[:, None]).flatten(),
    )
    pooled = pooled.view(num_rois, bins_h, bins_w, channels).permute(0, 3, 1, 2)
    return pooled.to(input.dtype).contiguous()


def sampling_points(
    rois: Tensor,
    bins_h: int,
    bins_w: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> SamplingPoints:
    """Lay the sampling points of RoIAlign out, as many per RoI as it asks for.

    Args:
        rois: (K, 5) in image pixels.
        bins_h: H, rows of bins.
        bins_w: W, columns of bins.
        spatial_scale: Feature cells per image pixel.
        sampling_ratio: Points per bin and axis, or 0 for ``ceil(RoI size / bins)``.
        aligned: See :func:`shape_aware_roi_align`.
    """
    box = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    left, top, right, bottom = box.unbind(1)
    width, height = right - left, bottom - top
    # The comparison is false for NaN too: such RoIs, like inverted ones, get no points.
    usable = torch.isfinite(box).all(1) & (width >= 0) & (height >= 0)
    if not aligned:
        usable = torch.isfinite(box).all(1)
        width, height = width.clamp(min=1), height.clamp(min=1)
    if sampling_ratio > 0:
        per_row = per_col = usable.long() * sampling_ratio
    else:
        per_col = torch.where(usable, torch.ceil(height / bins_h), 0).long()
        per_row = torch.where(usable, torch.ceil(width / bins_w), 0).long()
    per_bin = per_row * per_col
    per_roi = per_bin * (bins_h * bins_w)
    first = per_roi.cumsum(0) - per_roi

    roi = torch.repeat_interleave(torch.arange(len(rois), device=rois.device), per_roi)
    within = torch.arange(len(roi), device=rois.device) - first[roi]
    n_w, n_h = per_row[roi], per_col[roi]
    bin_id = within // per_bin[roi]
    step = within - bin_id * per_bin[roi]
    row, col = step // n_w, step % n_w
    bin_row, bin_col = bin_id // bins_w, bin_id % bins_w
    u = (bin_col + (col + 0.5).to(rois.dtype) / n_w) / bins_w
    v = (bin_row + (row + 0.5).to(rois.dtype) / n_h) / bins_h
    bins = first[:, None] + per_bin[:, None] * torch.arange(bins_h * bins_w, device=rois.device)
    return SamplingPoints(
        roi=roi,
        x=left[roi] + u * width[roi],
        y=top[roi] + v * height[roi],
        u=u,
        v=v,
        bins=bins.flatten(),
        count=per_bin[roi].to(rois.dtype),
    )


def _feature_corners(image: Tensor, x: Tensor, y: Tensor, shape: torch.Size):
    """Rows of the (N * Hf * Wf, C) feature table around each point, and their weights (T, 4).

    A point up to one cell outside reads the border; farther out it reads 0.
    """
    _, _, rows, cols = shape
    inside = (x >= -1) & (x <= cols) & (y >= -1) & (y <= rows)
    x0, x1, wx = _neighbours(x, cols)
    y0, y1, wy = _neighbours(y, rows)
    base = image * (rows * cols)
    index = torch.stack(
        [
            base + y0 * cols + x0,
            base + y0 * cols + x1,
            base + y1 * cols + x0,
            base + y1 * cols + x1,
        ],
        dim=1,
    )
    weight = torch.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], dim=1)
    return index, weight * inside[:, None]


def _read_probability(prob: Tensor, points: SamplingPoints) -> Tensor:
    """p(c, d) of Eq. 3 at each sampling point: (T,)."""
    rows, cols = prob.shape[1:]
    x0, x1, wx = _neighbours(points.u * cols - 0.5, cols)
    y0, y1, wy = _neighbours(points.v * rows - 0.5, rows)
    flat, base = prob.flatten(), points.roi * (rows * cols)
    upper = flat[base + y0 * cols + x0] * (1 - wx) + flat[base + y0 * cols + x1] * wx
    lower = flat[base + y1 * cols + x0] * (1 - wx) + flat[base + y1 * cols + x1] * wx
    return upper * (1 - wy) + lower * wy


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells that a position lies between, and the weight of the second; borders repeat."""
    position = position.clamp(0, size - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=size - 1), position - low
