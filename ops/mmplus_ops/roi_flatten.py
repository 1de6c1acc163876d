"""ROI-Flatten (REFINE, section 3.2): the instance masks of a class on one canvas.

Shape letters: K instances, m x m masks, N images, C classes, H x W canvas.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_labels, check_masks, check_output_size, check_positive, check_rois
from ._registration import define, differentiate, takes_operator

# So many canvas cells are sampled at a time.
_CELLS_AT_ONCE = 1 << 24


def roi_flatten(
    masks: Tensor,
    rois: Tensor,
    labels: Tensor,
    num_classes: int,
    batch_size: int,
    out_size: int | tuple[int, int],
    spatial_scale: float = 0.25,
    reduce: str = "max",
) -> Tensor:
    """Paste instance masks onto one canvas for each image and class.

    The canvas cell (i, j), with its centre at ``((j + 0.5) / s, (i + 0.5) / s)`` in image pixels,
    samples a mask as mmdet's pasting does with boxes times s: bilinearly, zeros outside. A box
    without width or height draws nothing. Differentiable in ``masks``.

    Args:
        masks: (K, m, m) probabilities, >= 0.
        rois: (K, 5) as (batch index, x1, y1, x2, y2) in image pixels.
        labels: (K,) classes in [0, C), of a whole-number type.
        num_classes: C.
        batch_size: N.
        out_size: (H, W), or one number for both.
        spatial_scale: s, canvas cells per image pixel.
        reduce: ``'max'``: the largest value, at least 0; its gradient goes to the first instance
            that has it, and nowhere where the canvas is 0. ``'sum'``: the sum.

    Returns:
        (N, C, H, W), of the type of ``masks``.

    Raises:
        TypeError: ``masks`` or ``rois`` are not floating point, ``labels`` are, or devices do not
            fit.
        ValueError: A shape is wrong, a label or batch index lies outside its range, or ``reduce``
            is another word.
    """
    check_masks(masks)
    check_rois(rois, masks, count=masks.shape[0])
    check_labels(labels, rois)
    check_positive(num_classes, "num_classes")
    check_positive(batch_size, "batch_size", least=0)
    height, width = check_output_size(out_size, "out_size")
    if reduce not in ("max", "sum"):
        raise ValueError(f"reduce must be 'max' or 'sum', got {reduce!r}")
    where = (num_classes, batch_size, height, width, float(spatial_scale), reduce == "max")
    return (_operator if takes_operator(masks) else plain_roi_flatten)(masks, rois, labels, *where)


def plain_roi_flatten(
    masks: Tensor,
    rois: Tensor,
    labels: Tensor,
    num_classes: int,
    batch_size: int,
    height: int,
    width: int,
    spatial_scale: float,
    maximum: bool,
) -> Tensor:
    """:func:`roi_flatten` in plain PyTorch: every instance on a canvas of its own."""
    _check_places(rois, labels, num_classes, batch_size)
    dtype = torch.promote_types(masks.dtype, torch.float32)
    planes = rois[:, 0].long() * num_classes + labels.long()
    canvas = masks.new_zeros((batch_size * num_classes, height, width), dtype=dtype)
    # Tied to the masks, so that a rank without instances still takes part in the backward pass.
    canvas = canvas + masks.sum().to(dtype) * 0
    step = max(1, _CELLS_AT_ONCE // max(1, height * width))
    parts = []
    for plane in planes.unique().tolist():
        members = (planes == plane).nonzero()[:, 0]
        total = canvas[plane]
        for some in members.split(step):
            drawn = _draw(masks[some].to(dtype), rois[some, 1:], height, width, spatial_scale)
            if maximum:
                # Of equal values max over a dimension takes the first, and so must the canvas.
                best, _ = drawn.max(0)
                total = torch.where(best > total, best, total)
            else:
                total = total + drawn.sum(0)
        parts.append((plane, total))
    if parts:
        index = torch.tensor([plane for plane, _ in parts], device=masks.device)
        canvas = canvas.index_copy(0, index, torch.stack([part for _, part in parts]))
    return canvas.view(batch_size, num_classes, height, width).to(masks.dtype)


def _draw(masks: Tensor, boxes: Tensor, height: int, width: int, spatial_scale: float) -> Tensor:
    """Masks (K, m, m) on canvases of their own, (K, H, W)."""
    grid = _grid(boxes.to(masks.dtype), height, width, spatial_scale)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]


def _grid(boxes: Tensor, height: int, width: int, spatial_scale: float) -> Tensor:
    """Where the cells of a canvas lie on the masks, (K, H, W, 2) as for ``grid_sample``."""
    x1, y1, x2, y2 = (boxes * spatial_scale).unbind(1)
    wide, tall = x2 - x1, y2 - y1
    ys = torch.arange(height, device=boxes.device, dtype=boxes.dtype) + 0.5
    xs = torch.arange(width, device=boxes.device, dtype=boxes.dtype) + 0.5
    ys = (ys - y1[:, None]) / tall[:, None] * 2 - 1
    xs = (xs - x1[:, None]) / wide[:, None] * 2 - 1
    # Not finite too where a coordinate is not.
    flat = (wide == 0) | (tall == 0) | ~(wide.isfinite() & tall.isfinite())
    shape = (len(boxes), height, width)
    grid = torch.stack([xs[:, None, :].expand(shape), ys[:, :, None].expand(shape)], dim=3)
    # Far outside of the mask zeros are read.
    return grid.clamp(-9, 9).masked_fill(flat[:, None, None, None], 9)


def _check_places(rois: Tensor, labels: Tensor, num_classes: int, batch_size: int) -> None:
    for name, values, limit in (
        ("batch indices of rois", rois[:, 0], batch_size),
        ("labels", labels, num_classes),
    ):
        if len(values) and not bool(((values >= 0) & (values < limit)).all()):
            raise ValueError(
                f"{name} must lie in [0, {limit}), got {float(values.min()):g} to "
                f"{float(values.max()):g}"
            )


def _fake(masks, rois, labels, num_classes, batch_size, height, width, spatial_scale, maximum):
    return masks.new_empty((batch_size, num_classes, height, width))


def _fake_backward(grad, masks, rois, labels, spatial_scale, maximum):
    return masks.new_empty(masks.shape)


def _plain_backward(grad, masks, rois, labels, spatial_scale, maximum):
    """The gradient, as this runs below autograd: each instance's own canvas and who won there."""
    dtype = torch.promote_types(masks.dtype, torch.float32)
    batch, classes, height, width = grad.shape
    planes = rois[:, 0].long() * classes + labels.long()
    grads = masks.new_zeros(masks.shape, dtype=dtype)
    flat = grad.reshape(batch * classes, height, width).to(dtype)
    step = max(1, _CELLS_AT_ONCE // max(1, height * width))
    for plane in planes.unique().tolist():
        members = (planes == plane).nonzero()[:, 0]
        best = masks.new_zeros((height, width), dtype=dtype)
        winner = torch.full((height, width), -1, device=masks.device)
        for some in members.split(step) if maximum else ():
            drawn = _draw(masks[some].to(dtype), rois[some, 1:], height, width, spatial_scale)
            value, which = drawn.max(0)
            winner = torch.where(value > best, some[which], winner)
            best = torch.maximum(best, value)
        for some in members.split(step):
            received = flat[plane].expand(len(some), -1, -1)
            if maximum:
                received = received * (winner == some[:, None, None])
            grid = _grid(rois[some, 1:].to(dtype), height, width, spatial_scale)
            given, _ = torch.ops.aten.grid_sampler_2d_backward(
                received[:, None].contiguous(),
                masks[some, None].to(dtype),
                grid,
                0,  # bilinear
                0,  # zeros outside
                False,
                [True, False],
            )
            grads[some] = given[:, 0]
    return grads.to(masks.dtype)


def _setup_context(ctx, inputs, output):
    masks, rois, labels, *_, ctx.spatial_scale, ctx.maximum = inputs
    ctx.save_for_backward(masks, rois, labels)


def _backward(ctx, grad):
    masks_grad = torch.ops.mmplus.roi_flatten_backward(
        grad, *ctx.saved_tensors, ctx.spatial_scale, ctx.maximum
    )
    return masks_grad, None, None, None, None, None, None, None, None


_operator = define(
    "roi_flatten(Tensor masks, Tensor rois, Tensor labels, SymInt num_classes, SymInt batch_size, "
    "SymInt height, SymInt width, float spatial_scale, bool maximum) -> Tensor",
    fake=_fake,
    plain=plain_roi_flatten,
)
define(
    "roi_flatten_backward(Tensor grad, Tensor masks, Tensor rois, Tensor labels, "
    "float spatial_scale, bool maximum) -> Tensor",
    fake=_fake_backward,
    plain=_plain_backward,
)
differentiate("roi_flatten", _backward, _setup_context)
