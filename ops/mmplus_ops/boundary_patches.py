"""Boundary patches (BPR, section 3.1): finding, cropping and putting them back.

Shape letters: N masks of one image, H x W pixels, P patches, S x S the network's input.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import (
    check_boxes,
    check_image,
    check_mask_planes,
    check_patches,
    check_positive,
    check_uncertainty,
)
from ._registration import define, takes_operator

SCHEMES = ("dense", "grid", "instance")
# A pixel's place among those of equal score, see `_order`.
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)


def extract_boundary_patches(
    masks: Tensor,
    patch_size: int = 64,
    iou_thr: float = 0.25,
    scheme: str = "dense",
    max_patches: int | None = None,
    uncertainty: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose the patches that cover the boundaries of masks.

    A boundary pixel is one whose 3 x 3 sum s of mask pixels, zeros outside the image, is neither 0
    nor 9; its score is ``min(9 - s, s) / 4.5``. Schemes:

    * ``'dense'``: each boundary pixel is the centre of a box; greedy suppression by score leaves
      boxes of which no two overlap beyond ``iou_thr``. Then they are moved inside the image. Among
      equal scores the order is scattered but fixed, which keeps fewer boxes than the order along
      the boundary.
    * ``'grid'``: the squares of a fixed grid that hold a boundary pixel.
    * ``'instance'``: the box around each mask, of any size.

    Args:
        masks: (N, H, W) bool or uint8, not 0 is foreground.
        patch_size: Side of a patch in pixels; where the image is smaller, the image's side.
        iou_thr: In [0, 1]; larger values leave more patches.
        scheme: See above.
        max_patches: Budget over all masks; the patches of the largest mean uncertainty over their
            boundary pixels stay, without ``uncertainty`` those of the highest score; among equals
            the first.
        uncertainty: (N, H, W) floating point, for example ``1 - |2p - 1|`` of soft masks; read in
            float32, NaN counts as the most uncertain.

    Returns:
        Boxes (P, 4) int64 as half-open (x1, y1, x2, y2), mask by mask, and the mask's index of each
        (P,) int64.

    Raises:
        TypeError: A tensor is of another type, or devices do not fit.
        ValueError: A shape, size, threshold or scheme is wrong.
    """
    check_mask_planes(masks)
    check_positive(patch_size, "patch_size")
    if not 0 <= iou_thr <= 1:
        raise ValueError(f"iou_thr must lie in [0, 1], got {iou_thr}")
    if scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(SCHEMES)}, got {scheme!r}")
    if max_patches is not None:
        check_positive(max_patches, "max_patches", least=0)
    if uncertainty is not None:
        check_uncertainty(uncertainty, masks)
    arguments = (masks, patch_size, iou_thr, scheme, max_patches, uncertainty)
    if not takes_operator(masks):
        return plain_extract_boundary_patches(*arguments)
    return _extract(*arguments)


def crop_patches(
    image: Tensor,
    masks: Tensor,
    boxes: Tensor,
    mask_index: Tensor,
    output_size: int,
    padding: int = 0,
) -> tuple[Tensor, Tensor]:
    """Cut patches out of an image and of the masks that they belong to, and resize them.

    Args:
        image: (H, W, 3) uint8; the order of channels is kept.
        masks: (N, H, W) bool or uint8.
        boxes: (P, 4) int64, half-open (x1, y1, x2, y2) inside the image.
        mask_index: (P,) int64 in [0, N).
        output_size: S.
        padding: Pixels by which boxes are grown on each side; outside the image is 0.

    Returns:
        (P, 3, S, S) float32 in [0, 255], resized bilinearly (``align_corners=False``, no
        smoothing), and (P, 1, S, S) float32 of 0 and 1, the nearest pixel's. Not normalised.

    Raises:
        TypeError: A tensor is of another type, or devices do not fit.
        ValueError: A shape or size is wrong, or a box or index lies outside.
    """
    check_image(image)
    check_mask_planes(masks, image)
    check_boxes(boxes, mask_index, masks)
    check_positive(output_size, "output_size")
    check_positive(padding, "padding", least=0)
    arguments = (image, masks, boxes, mask_index, output_size, padding)
    return (_crop if takes_operator(image) else plain_crop_patches)(*arguments)


def reassemble_patches(
    masks: Tensor,
    boxes: Tensor,
    mask_index: Tensor,
    patches: Tensor,
    threshold: float = 0.5,
    padding: int = 0,
) -> Tensor:
    """Put refined patches back: their mean where they lie, the coarse mask everywhere else.

    Args:
        masks: (N, H, W) bool or uint8, the coarse ones.
        boxes: (P, 4) int64, half-open (x1, y1, x2, y2) inside the image.
        mask_index: (P,) int64 in [0, N).
        patches: (P, h, w) foreground probabilities of the padded boxes; resized bilinearly where
            the size differs, then the padding is cut off. Summed in float32 in the boxes' order.
        threshold: A pixel is foreground where the mean is larger.
        padding: As the patches were cropped.

    Returns:
        (N, H, W) bool.

    Raises:
        TypeError: A tensor is of another type, or devices do not fit.
        ValueError: A shape or size is wrong, or a box or index lies outside.
    """
    check_mask_planes(masks)
    check_boxes(boxes, mask_index, masks)
    check_patches(patches, boxes)
    check_positive(padding, "padding", least=0)
    arguments = (masks, boxes, mask_index, patches, threshold, padding)
    return (_reassemble if takes_operator(masks) else plain_reassemble_patches)(*arguments)


def boundary_support(masks: Tensor) -> Tensor:
    """``min(s, 9 - s)`` of each pixel, s as in :func:`extract_boundary_patches`: (N, H, W)."""
    if masks.numel() == 0:
        return masks.new_zeros(masks.shape, dtype=torch.int64)
    planes = (masks != 0).to(torch.float32)[:, None]
    sums = F.avg_pool2d(planes, 3, 1, 1, divisor_override=1)[:, 0]
    return torch.minimum(sums, 9 - sums).to(torch.int64)


def plain_extract_boundary_patches(
    masks: Tensor,
    patch_size: int,
    iou_thr: float,
    scheme: str,
    max_patches: int | None,
    uncertainty: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """:func:`extract_boundary_patches` in plain PyTorch."""
    boxes, ranks = [], []
    for n, support in enumerate(boundary_support(masks)):
        if scheme == "dense":
            found, scores = _dense(support, patch_size, iou_thr)
        elif scheme == "grid":
            found, scores = _grid(support, patch_size)
        else:
            found, scores = _instance(masks[n])
        if max_patches is not None and uncertainty is not None:
            scores = _mean_uncertainty(found, support, uncertainty[n])
        boxes.append(found)
        ranks.append(scores)
    index = torch.repeat_interleave(
        torch.arange(len(boxes), device=masks.device),
        torch.tensor([len(found) for found in boxes], device=masks.device, dtype=torch.int64),
    )
    everything = torch.cat([masks.new_zeros((0, 4), dtype=torch.int64), *boxes])
    if max_patches is not None and max_patches < len(index):
        order = torch.cat(ranks).sort(descending=True, stable=True).indices
        kept = order[:max_patches].sort().values
        everything, index = everything[kept], index[kept]
    return everything, index


def _dense(support: Tensor, size: int, iou_thr: float) -> tuple[Tensor, Tensor]:
    ys, xs = support.nonzero(as_tuple=True)
    scores = support[ys, xs]
    # The order among equal scores: the index times the golden ratio, in whole numbers that wrap.
    scattered = (torch.arange(len(ys), device=ys.device) * _GOLDEN >> 34) & 0x3FFFFFFF
    order = scattered.sort(stable=True).indices
    order = order[scores[order].sort(descending=True, stable=True).indices]
    ys, xs, scores = ys[order], xs[order], scores[order]
    limit = 2.0 * size * size * iou_thr / (1.0 + iou_thr)
    left = torch.ones_like(ys, dtype=torch.bool)
    kept = []
    for i in range(len(ys)):
        if left[i]:
            kept.append(i)
            overlap = (size - (ys - ys[i]).abs()).clamp(min=0)
            overlap = overlap * (size - (xs - xs[i]).abs()).clamp(min=0)
            left &= overlap.double() <= limit
    ys, xs, scores = ys[kept], xs[kept], scores[kept]
    return _inside(xs - size // 2, ys - size // 2, size, support.shape), scores


def _grid(support: Tensor, size: int) -> tuple[Tensor, Tensor]:
    rows, cols = support.shape
    if support.numel() == 0:
        return support.new_zeros((0, 4)), support.new_zeros(0)
    # Larger squares than the image are that one square all the same.
    size = min(size, max(rows, cols))
    grown = F.pad(support[None].float(), (0, -cols % size, 0, -rows % size))
    best = F.max_pool2d(grown, size)[0].to(torch.int64)
    ys, xs = best.nonzero(as_tuple=True)
    return _inside(xs * size, ys * size, size, support.shape), best[ys, xs]


def _instance(mask: Tensor) -> tuple[Tensor, Tensor]:
    ys, xs = mask.nonzero(as_tuple=True)
    if len(ys) == 0:
        return ys.new_zeros((0, 4)), ys.new_zeros(0)
    box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
    return box[None], ys.new_full((1,), 4)


def _inside(x: Tensor, y: Tensor, size: int, shape: torch.Size) -> Tensor:
    """Boxes of one size from their left upper corners, moved inside the image."""
    height, width = min(size, shape[0]), min(size, shape[1])
    x, y = x.clamp(0, shape[1] - width), y.clamp(0, shape[0] - height)
    return torch.stack([x, y, x + width, y + height], dim=1)


def _mean_uncertainty(boxes: Tensor, support: Tensor, uncertainty: Tensor) -> Tensor:
    boundary = support > 0
    uncertainty = uncertainty.float()
    means = [
        uncertainty[y1:y2, x1:x2][boundary[y1:y2, x1:x2]].double().mean()
        if boundary[y1:y2, x1:x2].any()
        else uncertainty.new_zeros((), dtype=torch.float64)
        for x1, y1, x2, y2 in boxes.tolist()
    ]
    if not means:
        return uncertainty.new_zeros(0, dtype=torch.float64)
    ranks = torch.stack(means)
    return ranks.masked_fill(ranks.isnan(), math.inf)


def plain_crop_patches(
    image: Tensor, masks: Tensor, boxes: Tensor, mask_index: Tensor, output_size: int, padding: int
) -> tuple[Tensor, Tensor]:
    """:func:`crop_patches` in plain PyTorch."""
    size = (output_size, output_size)
    border = (padding,) * 4
    pixels = F.pad(image.permute(2, 0, 1).float(), border)
    planes = F.pad((masks != 0).float(), border)
    images = [image.new_zeros((0, 3, *size), dtype=torch.float32)]
    crops = [image.new_zeros((0, 1, *size), dtype=torch.float32)]
    for (x1, y1, x2, y2), n in zip(boxes.tolist(), mask_index.tolist(), strict=True):
        window = (slice(y1, y2 + 2 * padding), slice(x1, x2 + 2 * padding))
        patch = pixels[(slice(None), *window)][None]
        images.append(F.interpolate(patch, size, mode="bilinear", align_corners=False))
        crops.append(F.interpolate(planes[(n, *window)][None, None], size, mode="nearest"))
    return torch.cat(images), torch.cat(crops)


def plain_reassemble_patches(
    masks: Tensor,
    boxes: Tensor,
    mask_index: Tensor,
    patches: Tensor,
    threshold: float,
    padding: int,
) -> Tensor:
    """:func:`reassemble_patches` in plain PyTorch, with full-size sums for each mask."""
    refined = (masks != 0).contiguous()
    for n in mask_index.unique().tolist():
        total = torch.zeros(masks.shape[1:], device=masks.device)
        count = torch.zeros_like(total)
        for p in (mask_index == n).nonzero()[:, 0].tolist():
            x1, y1, x2, y2 = boxes[p].tolist()
            size = (y2 - y1 + 2 * padding, x2 - x1 + 2 * padding)
            patch = patches[p].float()
            if patch.shape != size:
                patch = F.interpolate(
                    patch[None, None], size, mode="bilinear", align_corners=False
                )[0, 0]
            patch = patch[padding : size[0] - padding, padding : size[1] - padding]
            total[y1:y2, x1:x2] += patch
            count[y1:y2, x1:x2] += 1
        refined[n] = torch.where(count > 0, total / count.clamp(min=1) > threshold, refined[n])
    return refined


def _fake_extract(masks, patch_size, iou_thr, scheme, max_patches, uncertainty):
    count = torch.library.get_ctx().new_dynamic_size()
    return masks.new_empty((count, 4), dtype=torch.int64), masks.new_empty(
        (count,), dtype=torch.int64
    )


def _fake_crop(image, masks, boxes, mask_index, output_size, padding):
    shape = (boxes.shape[0], 3, output_size, output_size)
    images = image.new_empty(shape, dtype=torch.float32)
    return images, image.new_empty((shape[0], 1, *shape[2:]), dtype=torch.float32)


def _fake_reassemble(masks, boxes, mask_index, patches, threshold, padding):
    return masks.new_empty(masks.shape, dtype=torch.bool)


_extract = define(
    "extract_boundary_patches(Tensor masks, int patch_size, float iou_thr, str scheme, "
    "int? max_patches, Tensor? uncertainty) -> (Tensor, Tensor)",
    fake=_fake_extract,
    plain=plain_extract_boundary_patches,
)
_crop = define(
    "crop_patches(Tensor image, Tensor masks, Tensor boxes, Tensor mask_index, int output_size, "
    "int padding) -> (Tensor, Tensor)",
    fake=_fake_crop,
    plain=plain_crop_patches,
)
_reassemble = define(
    "reassemble_patches(Tensor masks, Tensor boxes, Tensor mask_index, Tensor patches, "
    "float threshold, int padding) -> Tensor",
    fake=_fake_reassemble,
    plain=plain_reassemble_patches,
)
