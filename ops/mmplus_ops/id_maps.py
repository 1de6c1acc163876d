"""Maps of segment ids, compared in pairs, in whole numbers."""

import torch
from torch import Tensor

from ._checks import check_id_maps
from ._registration import define, takes_operator


def pair_areas(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Count the pixels of all pairs of ids that two maps have in common places.

    A map is (H, W) int32, or still in the scanlines of its PNG: (H, 1 + 3 W) uint8, what the
    ``IDAT`` chunks inflate to if it has three colours of 8 bits and is not interlaced. Their
    filters are undone row by row, so that the ids of the whole image are nowhere in memory. An id
    is R + 256 G + 65536 B then.

    Args:
        first: A map.
        second: A map of the same size.

    Returns:
        (K, 2) int64, the pairs (id in ``first``, id in ``second``) that occur, sorted; and (K,)
        int64, the pixels of each.

    Raises:
        TypeError: A map is neither int32 nor uint8, or they are on different devices.
        ValueError: A map has not the shape, they differ in size, or a scanline begins with no
            filter of PNGs (0 to 4).
    """
    check_id_maps(first, second)
    return (_pair_areas if takes_operator(first) else plain_pair_areas)(first, second)


def plain_pair_areas(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`pair_areas` in plain PyTorch: of each run, the first pixel counts for all."""
    first, second = (_ids(value).flatten() for value in (first, second))
    change = (first[1:] != first[:-1]) | (second[1:] != second[:-1])
    begins = torch.cat([first.new_zeros(min(len(first), 1)).long(), change.nonzero()[:, 0] + 1])
    lengths = torch.diff(begins, append=begins.new_tensor([len(first)]))
    # Whole numbers of 64 bits, which sort as the pairs do.
    keys = first[begins].long() << 32 | second[begins].long() + 2**31
    pairs, number = keys.unique(return_inverse=True)
    areas = lengths.new_zeros(len(pairs)).index_add_(0, number, lengths)
    return torch.stack([pairs >> 32, (pairs & 0xFFFFFFFF) - 2**31], 1), areas


def _ids(value: Tensor) -> Tensor:
    """(H, W) int32 ids of a map; of scanlines row by row, and by pixels where it must be."""
    if value.dtype is torch.int32:
        return value
    width = (value.shape[1] - 1) // 3
    above = value.new_zeros(width, 3)
    rows = [value.new_zeros(0, width, 3)]
    for number, line in enumerate(value):
        kind, difference = int(line[0]), line[1:].reshape(width, 3)
        if kind == 0:
            row = difference
        elif kind == 1:
            row = difference.cumsum(0).to(torch.uint8)
        elif kind == 2:
            row = above + difference
        elif kind in (3, 4):
            row = _unfilter_by_pixels(kind, difference, above)
        else:
            raise ValueError(f"scanline {number} begins with {kind}, filters are 0 to 4")
        rows.append(row[None])
        above = row
    red, green, blue = torch.cat(rows).int().unbind(2)
    return red + 256 * green + 65536 * blue


def _unfilter_by_pixels(kind: int, difference: Tensor, above: Tensor) -> Tensor:
    """Undo the filters ``Average`` (3) and ``Paeth`` (4), that need the pixel to the left."""
    predict = _average if kind == 3 else _paeth
    left = corner = (0, 0, 0)
    row = []
    for pixel, over in zip(difference.tolist(), above.tolist(), strict=True):
        colours = zip(left, over, corner, pixel, strict=True)
        left = [(predict(a, b, c) + value) % 256 for a, b, c, value in colours]
        row.append(left)
        corner = over
    return difference.new_tensor(row).view(-1, 3)


def _average(left: int, above: int, corner: int) -> int:
    return (left + above) // 2


def _paeth(left: int, above: int, corner: int) -> int:
    """The neighbour that left + above - corner is nearest to; of equal ones, the first."""
    return min((left, above, corner), key=lambda value: abs(left + above - corner - value))


def _fake_pair_areas(first, second):
    count = torch.library.get_ctx().new_dynamic_size()
    return first.new_empty((count, 2), dtype=torch.int64), first.new_empty(
        (count,), dtype=torch.int64
    )


_pair_areas = define(
    "pair_areas(Tensor first, Tensor second) -> (Tensor, Tensor)",
    fake=_fake_pair_areas,
    plain=plain_pair_areas,
)
