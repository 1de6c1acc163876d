"""Intersections of masks and connected components of label maps, in whole numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._checks import check_label_map, check_mask_planes
from ._registration import define, takes_operator


def mask_intersections(masks: Tensor) -> Tensor:
    """Count the pixels that every two masks have in common.

    Args:
        masks: (N, H, W) bool.

    Returns:
        (N, N) int64, symmetric, the areas on the diagonal.

    Raises:
        TypeError: ``masks`` is not bool.
        ValueError: It is not (N, H, W).
    """
    check_mask_planes(masks, only_bool=True)
    return (_intersections if takes_operator(masks) else plain_mask_intersections)(masks)


def connected_components(labels: Tensor, ignore: Sequence[int] = ()) -> Tensor:
    """Number the 8-connected regions of equal label.

    Args:
        labels: (H, W) of a whole-number type or bool.
        ignore: Labels that belong to no region.

    Returns:
        (H, W) int32: regions from 1 in the raster order of their first pixel; 0 for ignored labels.

    Raises:
        TypeError: ``labels`` is floating point.
        ValueError: It is not (H, W), or has 2^31 pixels or more.
    """
    check_label_map(labels)
    arguments = (labels, [int(label) for label in ignore])
    return (_components if takes_operator(labels) else plain_connected_components)(*arguments)


def plain_mask_intersections(masks: Tensor) -> Tensor:
    """:func:`mask_intersections` in plain PyTorch: a matrix product, exact in float64."""
    flat = masks.flatten(1)
    total = masks.new_zeros((len(masks), len(masks)), dtype=torch.float64)
    # Some pixels at a time: as floating point, masks take eight times their memory.
    for part in flat.split(1 << 16, dim=1):
        some = part.double()
        total += some @ some.T
    return total.to(torch.int64)


def plain_connected_components(labels: Tensor, ignore: list[int]) -> Tensor:
    """:func:`connected_components` in plain PyTorch.

    Every pixel starts with its own number; neighbours of equal label take the smaller one, and
    numbers lead to smaller numbers, until nothing changes.
    """
    rows, cols = labels.shape
    # Of the type of the ignored labels: beside 8 bits, -1 would be 255.
    labels = labels.long()
    ignored = torch.zeros_like(labels, dtype=torch.bool)
    for label in ignore:
        ignored |= labels == label
    number = torch.arange(rows * cols, device=labels.device).view(rows, cols)
    if labels.numel() == 0:
        return number.to(torch.int32)
    pairs = [_neighbours(labels, number, ignored, dy, dx) for dy, dx in _DIRECTIONS]
    first, second = (torch.cat(side) for side in zip(*pairs, strict=True))
    parent = number.flatten()
    while True:
        a, b = parent[first], parent[second]
        low, high = torch.minimum(a, b), torch.maximum(a, b)
        # What leads to the larger number leads to the smaller one now; then shortcuts.
        joined = parent.scatter_reduce(0, high, low, "amin")
        joined = torch.minimum(joined, joined[parent])
        while not torch.equal(joined, joined[joined]):
            joined = joined[joined]
        if torch.equal(joined, parent):
            break
        parent = joined
    roots = (parent == number.flatten()) & ~ignored.flatten()
    numbered = roots.cumsum(0)[parent]
    return numbered.masked_fill(ignored.flatten(), 0).view(rows, cols).to(torch.int32)


_DIRECTIONS = ((0, 1), (1, -1), (1, 0), (1, 1))


def _neighbours(
    labels: Tensor, number: Tensor, ignored: Tensor, dy: int, dx: int
) -> tuple[Tensor, Tensor]:
    """Numbers of pixels and of their neighbours (dy, dx) away, where both have one label."""
    rows, cols = labels.shape
    here = (slice(0, rows - dy), slice(max(0, -dx), cols - max(0, dx)))
    there = (slice(dy, rows), slice(max(0, dx), cols + min(0, dx)))
    same = (labels[here] == labels[there]) & ~ignored[here]
    return number[here][same], number[there][same]


def _fake_intersections(masks):
    return masks.new_empty((masks.shape[0], masks.shape[0]), dtype=torch.int64)


def _fake_components(labels, ignore):
    return labels.new_empty(labels.shape, dtype=torch.int32)


_intersections = define(
    "mask_intersections(Tensor masks) -> Tensor",
    fake=_fake_intersections,
    plain=plain_mask_intersections,
)
_components = define(
    "connected_components(Tensor labels, int[] ignore) -> Tensor",
    fake=_fake_components,
    plain=plain_connected_components,
)
