"""Unknown Erasing of REFINE: regions of stuff that the model is not sure of become void.

Shape letters: C classes, H x W the image, R regions, K runs of pixels within a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mmplus_ops import connected_components

from .arrays import Array, to_tensors


@torch.no_grad()
def unknown_erasing(
    sem_probs: Array,
    threshold: float = 0.5,
    dilation: int = 3,
    stuff_classes: Sequence[int] | None = None,
    void: int = 0,
) -> Array:
    """Predict a semantic map and set uncertain regions of stuff to void (REFINE, Unknown Erasing).

    A region is an 8-connected component of pixels whose most probable class is the same. Its
    confidence is the mean probability of that class over the region grown by ``dilation`` pixels,
    so that a small fragment scores low however sure the model is of its few pixels. A wrong segment
    costs more panoptic quality than a missing one (Eq. 8).

    Args:
        sem_probs: (C, H, W) probabilities of the classes, in [0, 1], a tensor or a NumPy array.
        threshold: Regions of lower confidence are erased. The paper does not tell its value, nor
            the next one; these are ours.
        dilation: By how many pixels a region is grown before its confidence is taken, to all eight
            sides, up to the border of the image.
        stuff_classes: The classes whose regions are tested; by default all but ``void``.
        void: The label of erased pixels. The default, and that of ``stuff_classes``, suit maps
            whose class 0 stands for all things, as ``fuse_heuristic`` takes them.

    Returns:
        (H, W) int64 labels, of the kind of ``sem_probs``.

    Raises:
        TypeError: ``sem_probs`` is not floating point.
        ValueError: ``sem_probs`` is not (C, H, W) or holds NaN, ``threshold`` is not in [0, 1],
            ``dilation`` is negative, or a stuff class is not one of the C.
    """
    (probs,), arrays = to_tensors(sem_probs)
    if not probs.is_floating_point():
        raise TypeError(f"sem_probs must be floating point, got {probs.dtype}")
    if probs.dim() != 3 or len(probs) == 0:
        raise ValueError(f"sem_probs must be (C, H, W), C >= 1, got shape {tuple(probs.shape)}")
    classes = range(len(probs))
    if stuff_classes is None:
        stuff_classes = [label for label in classes if label != void]
    unknown = sorted({int(label) for label in stuff_classes} - {*classes})
    if unknown:
        raise ValueError(f"stuff_classes: {unknown} are not in [0, {len(probs)}), sem_probs' C")
    best, labels = probs.max(dim=0)
    if best.isnan().any():
        raise ValueError("sem_probs holds NaN")
    labels = erase_regions(labels, probs, threshold, dilation, stuff_classes, void)
    return labels.numpy() if arrays else labels


def erase_regions(
    labels: Tensor,
    probs: Tensor,
    threshold: float,
    dilation: int,
    stuff_classes: Sequence[int],
    void: int,
) -> Tensor:
    """Set the uncertain regions of a given label map to void.

    Args:
        labels: (H, W) int64 in [-1, C); -1 is no class.
        probs: (C, H, W) probabilities.
        threshold: Regions of lower confidence are erased, in [0, 1].
        dilation: By how many pixels a region is grown, >= 0.
        stuff_classes: The classes whose regions are tested.
        void: The label of erased pixels.

    Returns:
        (H, W) int64.
    """
    if isinstance(dilation, bool) or dilation != int(dilation) or dilation < 0:
        raise ValueError(f"dilation must be a whole number of pixels >= 0, got {dilation!r}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be a probability in [0, 1], got {threshold!r}")
    ignored = {-1, *range(len(probs))} - {int(label) for label in stuff_classes}
    regions = connected_components(labels, sorted(ignored)).long()
    confidence = region_confidence(regions, labels, probs, int(dilation))
    # Number 0 are the pixels of other classes; their confidence is not asked for.
    erased = confidence < threshold
    return labels.masked_fill(erased[regions], void)


def region_confidence(regions: Tensor, labels: Tensor, probs: Tensor, dilation: int) -> Tensor:
    """Average each region's own class over the region grown by a square.

    All regions at once: a region is runs of pixels within rows, and grown it is, in every row, the
    union of the longer runs of the rows around. Differences of running sums along a class's
    probabilities give the sum over a run of any length. The work grows with the runs and with the
    classes that occur, not with regions times pixels.

    Args:
        regions: (H, W) int64, the number of each pixel's region, 0 for none.
        labels: (H, W) int64, equal within a region.
        probs: (C, H, W).
        dilation: Pixels, >= 0.

    Returns:
        (R + 1,) float64, by number; 1 for 0.
    """
    rows, cols = regions.shape
    number = int(regions.max()) if regions.numel() else 0
    totals = torch.zeros(number + 1, dtype=torch.float64, device=regions.device)
    areas = torch.zeros_like(totals)
    totals[0] = areas[0] = 1
    if number == 0:
        return totals
    row, start, end = _runs(regions)
    label, region = labels[row, start], regions[row, start]
    # Regions of one class one after the other, so that each class is gone through once.
    by_class = (label * (number + 1) + region).argsort(stable=True)
    row, start, end, label, region = (value[by_class] for value in (row, start, end, label, region))
    # The first stays 0. Memory that every class uses again is far quicker than new memory.
    sums = totals.new_zeros(rows * cols + 1)
    counts = label.bincount(minlength=len(probs)).tolist()
    parts = (value.split(counts) for value in (row, start, end, region))
    for plane, *runs in zip(probs, *parts, strict=True):
        if len(runs[0]):
            region, row, start, end = _grown(*runs, dilation, rows, cols)
            top, bottom = int(row.min()), int(row.max()) + 1
            window = sums[1 : 1 + (bottom - top) * cols]
            window.copy_(plane[top:bottom].flatten()).cumsum_(0)
            base = (row - top) * cols
            totals.index_add_(0, region, sums[base + end] - sums[base + start])
            areas.index_add_(0, region, (end - start).double())
    return totals / areas


def _runs(regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, first and past-the-last columns (K,) of the runs of one region, in raster order."""
    cols = regions.shape[1]
    begins = torch.ones_like(regions, dtype=torch.bool)
    begins[:, 1:] = regions[:, 1:] != regions[:, :-1]
    first = begins.flatten().nonzero()[:, 0]
    past = torch.cat([first[1:], first.new_tensor([regions.numel()])])
    taken = regions.flatten()[first] != 0
    first, past = first[taken], past[taken]
    row = first.div(cols, rounding_mode="floor")
    return row, first - row * cols, past - row * cols


def _grown(
    row: Tensor, start: Tensor, end: Tensor, region: Tensor, dilation: int, rows: int, cols: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Runs of the grown regions, none of which overlap within a region: region, row, start, end."""
    shift = torch.arange(-dilation, dilation + 1, device=row.device)
    row = row[:, None] + shift
    inside = (row >= 0) & (row < rows)
    # A line of numbers with room for each row of each region: what overlaps there, overlaps.
    line = (region[:, None] * rows + row) * (cols + 1)
    start = (line + (start - dilation).clamp_min(0)[:, None])[inside]
    end = (line + (end + dilation).clamp_max(cols)[:, None])[inside]
    start, order = start.sort()
    reached = end[order].cummax(0).values
    # Each run without what the runs before it have covered.
    start[1:] = torch.maximum(start[1:], reached[:-1])
    new = reached > start
    start, end = start[new], reached[new]
    line = start.div(cols + 1, rounding_mode="floor")
    region = line.div(rows, rounding_mode="floor")
    origin = line * (cols + 1)
    return region, line - region * rows, start - origin, end - origin
