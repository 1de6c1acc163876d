"""Shape-aware RoIAlign (MR R-CNN, section 3.1).

Shape letters: N images, C channels, Hf x Wf feature map, K RoIs, H x W bins of a RoI,
Hp x Wp probability map, T sampling points of all RoIs together.

In the plain form, Eq. 4 is a weighted sum of feature vectors: every bin adds up the four neighbours
of each of its sampling points, weighted by interpolation and by probability. ``embedding_bag``
computes just that sum, with gradients to the features and to the weights, without ever holding a
feature vector per sampling point; so all the work here is in finding indices and weights.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_feature_map, check_images, check_output_size, check_prob, check_rois
from ._registration import define, differentiate, takes_operator

# So many sampling points are worked on at a time in the plain backward pass.
_POINTS_AT_ONCE = 1 << 14


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
    """RoIAlign whose sampling points count as much as the instance is probable at them.

    Eq. 4: ``F(h, w) = 1/N * sum_i f(a_i, b_i) * p(c_i, d_i)`` over the N points of bin (h, w), with
    f the feature map and p the probability map, both read bilinearly.

    With ``prob == 1`` the result is that of ``mmcv.ops.roi_align(..., 'avg', aligned)``.
    Eq. 5 is read in units of the RoI with pixel centres: sample i of n in bin w lies at
    ``u = (w + (i + 0.5) / n) / W`` and reads ``prob`` bilinearly at ``u * Wp - 0.5``, borders
    replicated; rows likewise. Differentiable in ``input`` and ``prob``. Half precision is
    summed in float32.

    Args:
        input: Feature map (N, C, Hf, Wf), floating point.
        rois: (K, 5) as (batch index, x1, y1, x2, y2) in image pixels. RoIs with a coordinate that
            is not finite give 0; inverted ones too if ``aligned``, and if not they grow to one
            cell from (x1, y1) on, as in mmcv.
        prob: (K, Hp, Wp) in [0, 1], laid over the RoIs.
        output_size: (H, W) bins, or one number for both.
        spatial_scale: Feature cells per image pixel, 1 / stride.
        sampling_ratio: Points per bin and axis; 0: about one per feature cell.
        aligned: Whether pixel centres lie at half-integers (True) or integers (False, and
            RoIs are at least one cell wide and high).

    Returns:
        (K, C, H, W), of the type of ``input``.

    Raises:
        TypeError: A tensor is not floating point, or dtypes or devices do not fit.
        ValueError: A shape is wrong, or a batch index lies outside [0, N). That is looked for on
            the CPU only: reading the values would stall a GPU, where such a RoI gives 0.
    """
    check_feature_map(input)
    check_rois(rois, input)
    check_prob(prob, rois)
    bins_h, bins_w = check_output_size(output_size)
    where = (bins_h, bins_w, float(spatial_scale), int(sampling_ratio), bool(aligned))
    if takes_operator(input):
        return _operator(input, rois, prob, *where)
    check_images(rois, input.shape[0])
    return plain_shape_aware_roi_align(input, rois, prob, *where)


def plain_shape_aware_roi_align(
    input: Tensor,
    rois: Tensor,
    prob: Tensor,
    bins_h: int,
    bins_w: int,
    spatial_scale: float,
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """:func:`shape_aware_roi_align` in plain PyTorch; RoIs of unknown images give 0."""
    num_rois, channels = len(rois), input.shape[1]
    if num_rois == 0 or input.numel() == 0 or prob.numel() == 0:
        # Tied to both inputs, so that a rank without RoIs still takes part in the backward pass.
        zero = input.sum() * 0 + prob.sum().to(input.dtype) * 0
        return input.new_zeros((num_rois, channels, bins_h, bins_w)) + zero

    dtype = torch.promote_types(input.dtype, torch.float32)
    where = (bins_h, bins_w, spatial_scale, sampling_ratio, aligned)
    points = _points_on_map(rois.detach().to(dtype), input.shape, *where)
    index, weight = _feature_corners(rois, points, input.shape)
    guidance = _read_probability(prob.to(dtype), points)
    table = _feature_table(input, dtype)
    pooled = F.embedding_bag(
        index.flatten(),
        table,
        points.bins * 4,
        mode="sum",
        per_sample_weights=(weight * (guidance / points.count)[:, None]).flatten(),
    )
    pooled = pooled.view(num_rois, bins_h, bins_w, channels).permute(0, 3, 1, 2)
    return pooled.to(input.dtype).contiguous()


def _feature_table(input: Tensor, dtype: torch.dtype) -> Tensor:
    """The cells of all images as rows of channels, (N * Hf * Wf, C)."""
    table = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, input.shape[1])
    return table if table.stride(1) == 1 else table.contiguous()


def _points_on_map(rois: Tensor, shape: Sequence[int], *where) -> SamplingPoints:
    """The sampling points that read anything; ``where`` as for :func:`sampling_points`."""
    known = (rois[:, 0] >= 0) & (rois[:, 0] < shape[0])
    # A RoI of an unknown image is one of no finite size.
    points = sampling_points(rois.where(known[:, None], math.nan), *where)
    return _within_reach(points, *shape[2:])


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
        # By a tensor of the device: for a number, CUDA multiplies by its rounded reciprocal, and an
        # exact multiple of the bins can come out above itself and get a point too many.
        per_col = torch.where(usable, torch.ceil(height / torch.full_like(height[:1], bins_h)), 0)
        per_row = torch.where(usable, torch.ceil(width / torch.full_like(width[:1], bins_w)), 0)
        per_col, per_row = per_col.long(), per_row.long()
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


def _within_reach(points: SamplingPoints, rows: int, cols: int) -> SamplingPoints:
    """Leave out the points that read 0: those more than a cell outside the feature map.

    Weight 0 would not do, for what they would read may be infinite. They are few, as a rule none.
    """
    x, y = points.x, points.y
    inside = (x >= -1) & (x <= cols) & (y >= -1) & (y <= rows)
    if inside.all():
        return points
    kept = F.pad(inside.cumsum(0), (1, 0))  # points kept before each point
    return SamplingPoints(
        *(value[inside] for value in (points.roi, x, y, points.u, points.v)),
        bins=kept[points.bins],
        count=points.count[inside],
    )


def _feature_corners(
    rois: Tensor, points: SamplingPoints, shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Rows of the feature table around each point, and their weights, both (T, 4).

    A point up to one cell outside reads the border.
    """
    _, _, rows, cols = shape
    image = rois[:, 0].long()[points.roi]
    return _corners(image, points.y, points.x, rows, cols)


def _prob_corners(points: SamplingPoints, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Cells of all probability maps around each point (c, d) of Eq. 3, and weights, (T, 4)."""
    _, rows, cols = shape
    return _corners(points.roi, points.v * rows - 0.5, points.u * cols - 0.5, rows, cols)


def _read_probability(prob: Tensor, points: SamplingPoints) -> Tensor:
    """p(c, d) of Eq. 3 at each sampling point: (T,)."""
    index, weight = _prob_corners(points, prob.shape)
    return (prob.flatten()[index] * weight).sum(1)


def _corners(plane: Tensor, y: Tensor, x: Tensor, rows: int, cols: int) -> tuple[Tensor, Tensor]:
    """The four cells around (y, x) of a plane, counted through all planes, and their weights."""
    x0, x1, wx = _neighbours(x, cols)
    y0, y1, wy = _neighbours(y, rows)
    upper, lower = (plane * rows + y0) * cols, (plane * rows + y1) * cols
    index = torch.stack([upper + x0, upper + x1, lower + x0, lower + x1], dim=1)
    weight = torch.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], dim=1)
    return index, weight


def _neighbours(position: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The two cells that a position lies between, and the weight of the second; borders repeat."""
    position = position.clamp(0, size - 1)
    low = position.floor().long()
    return low, (low + 1).clamp(max=size - 1), position - low


def _fake(input, rois, prob, bins_h, bins_w, spatial_scale, sampling_ratio, aligned):
    return input.new_empty((rois.shape[0], input.shape[1], bins_h, bins_w))


def _fake_backward(grad, input, rois, prob, input_size, *where_and_wanted):
    *_, want_input, want_prob = where_and_wanted
    return (
        grad.new_empty(input_size if want_input else (0,)),
        prob.new_empty(prob.shape if want_prob else (0,)),
    )


def _plain_backward(
    grad,
    input,
    rois,
    prob,
    input_size,
    spatial_scale,
    sampling_ratio,
    aligned,
    want_input,
    want_prob,
):
    """Both gradients by the chain rule, as this runs below autograd; some points at a time."""
    dtype = torch.promote_types(grad.dtype, torch.float32)
    channels = input_size[1]
    input_grad = grad.new_zeros((math.prod(input_size) // max(1, channels), channels), dtype=dtype)
    prob_grad = torch.zeros_like(prob, dtype=dtype).flatten()
    if grad.numel() and input_grad.numel():
        where = (*grad.shape[2:], spatial_scale, sampling_ratio, aligned)
        points = _points_on_map(rois.to(dtype), input_size, *where)
        index, weight = _feature_corners(rois, points, input_size)
        prob_index, prob_weight = _prob_corners(points, prob.shape)
        guidance = (prob.to(dtype).flatten()[prob_index] * prob_weight).sum(1) / points.count
        per_bin = torch.diff(points.bins, append=points.bins.new_tensor([len(points.roi)]))
        bin_of = torch.repeat_interleave(per_bin)
        bin_grads = grad.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
        table = _feature_table(input, dtype) if want_prob else None
        for some in torch.arange(len(bin_of), device=grad.device).split(_POINTS_AT_ONCE):
            given = bin_grads[bin_of[some]]
            if want_input:
                share = (weight[some] * guidance[some, None])[:, :, None] * given[:, None]
                input_grad.index_add_(0, index[some].flatten(), share.flatten(0, 1))
            if want_prob:
                read = (table[index[some]] * weight[some, :, None]).sum(1)
                share = (read * given).sum(1) / points.count[some]
                share = prob_weight[some] * share[:, None]
                prob_grad.index_add_(0, prob_index[some].flatten(), share.flatten())
    n, _, rows, cols = input_size
    input_grad = input_grad.view(n, rows, cols, channels).permute(0, 3, 1, 2).contiguous()
    return (
        input_grad.to(grad.dtype) if want_input else grad.new_empty(0),
        prob_grad.view(prob.shape).to(prob.dtype) if want_prob else prob.new_empty(0),
    )


def _setup_context(ctx, inputs, output):
    input, rois, prob, _, _, *ctx.where = inputs
    ctx.input_size = input.shape
    # The gradient of the features does without the features.
    ctx.save_for_backward(input if prob.requires_grad else None, rois, prob)


def _backward(ctx, grad):
    input, rois, prob = ctx.saved_tensors
    want_input, _, want_prob, *_ = ctx.needs_input_grad
    input_grad, prob_grad = torch.ops.mmplus.shape_aware_roi_align_backward(
        grad,
        grad if input is None else input,
        rois,
        prob,
        ctx.input_size,
        *ctx.where,
        want_input,
        want_prob,
    )
    rest = (None,) * 5
    return input_grad if want_input else None, None, prob_grad if want_prob else None, *rest


_operator = define(
    "shape_aware_roi_align(Tensor input, Tensor rois, Tensor prob, int bins_h, int bins_w, "
    "float spatial_scale, int sampling_ratio, bool aligned) -> Tensor",
    fake=_fake,
    plain=plain_shape_aware_roi_align,
)
define(
    "shape_aware_roi_align_backward(Tensor grad, Tensor input, Tensor rois, Tensor prob, "
    "SymInt[] input_size, float spatial_scale, int sampling_ratio, bool aligned, "
    "bool want_input, bool want_prob) -> (Tensor, Tensor)",
    fake=_fake_backward,
    plain=_plain_backward,
)
differentiate("shape_aware_roi_align", _backward, _setup_context)
