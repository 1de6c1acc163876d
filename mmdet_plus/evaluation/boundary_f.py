"""The boundary F-score of two masks, on arrays or straight from COCO's RLEs.

A boundary pixel is a pixel of the mask that shares a side with a pixel outside of the mask. What
lies beyond the image is outside: where a mask touches the image's border, the pixels there are
boundary pixels, as they are in Boundary IoU (Cheng et al. 2021, whose code pads with zeros). So
every mask that is not empty has a boundary, and a mask equals itself with F = 1 even where it
fills the whole image.

Distances are Euclidean, between pixel centres: within 1 px are the pixel and its four neighbours.
"""

import functools
import math
from typing import NamedTuple

import cv2
import numpy as np

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


class MaskCrop(NamedTuple):
    """The part of a mask inside its bounding box.

    Attributes:
        mask: (h, w) uint8 of 0 and 1; (0, 0) for a mask without pixels.
        x: Column of the image where the crop starts.
        y: Row of the image where the crop starts.
    """

    mask: np.ndarray
    x: int
    y: int


def boundary_pixels(mask: np.ndarray) -> np.ndarray:
    """Find the pixels of a mask that share a side with a pixel outside of it.

    Args:
        mask: (H, W) bool, or numbers of which all but 0 are in the mask.

    Returns:
        (H, W) bool.

    Raises:
        ValueError: The mask is not two-dimensional.
    """
    return _boundary(_binary(mask)).view(bool)


def boundary_f(pred: np.ndarray, gt: np.ndarray, tolerance: float = 1.0) -> float:
    """Compute the boundary F-score of a predicted mask against a true one.

    Precision P is the share of predicted boundary pixels that have a true boundary pixel within
    ``tolerance``, recall R the share of true ones that have a predicted one; F = 2PR / (P + R).

    Args:
        pred: (H, W) predicted mask, bool or numbers.
        gt: (H, W) true mask.
        tolerance: Euclidean distance in pixels, 0 or more; any fraction is allowed.

    Returns:
        F in [0, 1]; 0 where no boundary pixel is near the other boundary, and so where one or both
        of the masks are empty.

    Raises:
        ValueError: The masks differ in size, one is not two-dimensional, or the tolerance is
            negative or not finite.
    """
    pred, gt = _binary(pred), _binary(gt)
    if pred.shape != gt.shape:
        raise ValueError(
            f"masks of one image have one size, not {list(pred.shape)} and {list(gt.shape)}"
        )
    near = _disk(tolerance)
    # Beyond the box around both masks there is no boundary pixel of either, so that no pixel
    # outside of it counts or is near to one that counts.
    rows, columns = np.flatnonzero((pred | gt).any(1)), np.flatnonzero((pred | gt).any(0))
    if not rows.size:
        return 0.0
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return _f_score(pred[box], gt[box], near)


def rle_boundary_f(pred: dict, gt: dict, tolerance: float = 1.0) -> float:
    """Compute :func:`boundary_f` of two compressed RLEs without ever decoding the whole image.

    Args:
        pred: COCO's ``{"size": [height, width], "counts": str or bytes}``.
        gt: The same, of the same size.
        tolerance: Euclidean distance in pixels.

    Returns:
        F in [0, 1].

    Raises:
        ValueError: The sizes differ, or the tolerance is negative or not finite.
    """
    if list(pred["size"]) != list(gt["size"]):
        raise ValueError(
            f"masks of one image have one size, not {list(pred['size'])} and {list(gt['size'])}"
        )
    near = _disk(tolerance)
    crops = [crop for crop in (decode_crop(pred), decode_crop(gt)) if crop.mask.size]
    if len(crops) < 2:
        return 0.0
    left, top = min(crop.x for crop in crops), min(crop.y for crop in crops)
    right = max(crop.x + crop.mask.shape[1] for crop in crops)
    bottom = max(crop.y + crop.mask.shape[0] for crop in crops)
    both = np.zeros((2, bottom - top, right - left), np.uint8)
    for canvas, (mask, x, y) in zip(both, crops, strict=True):
        canvas[y - top : y - top + mask.shape[0], x - left : x - left + mask.shape[1]] = mask
    return _f_score(both[0], both[1], near)


def decode_crop(rle: dict) -> MaskCrop:
    """Decode a compressed RLE inside of its bounding box alone.

    Args:
        rle: COCO's ``{"size": [height, width], "counts": str or bytes}``, known to be sound.

    Returns:
        The crop and its place.
    """
    height = rle["size"][0]
    ends = np.cumsum(_counts(rle["counts"]))
    starts, stops = ends[0::2], ends[1::2]  # of foreground, in column-major order
    starts = starts[: len(stops)]
    filled = stops > starts
    starts, stops = starts[filled], stops[filled]
    if not starts.size:
        return MaskCrop(np.zeros((0, 0), np.uint8), 0, 0)
    first_column, last_column = starts // height, (stops - 1) // height
    x = int(first_column[0])
    width = int(last_column[-1]) - x + 1
    if (first_column != last_column).any():
        # A run that goes on in the next column touches the image's lower and upper border.
        y, crop_height = 0, height
    else:
        y = int((starts - first_column * height).min())
        crop_height = int((stops - last_column * height).max()) - y
    edges = np.zeros(width * crop_height + 1, np.int8)
    # Either no run crosses columns, or the crop is as high as the image: both times a run is one
    # piece in the crop as well. Where one ends as the next begins, the two steps cancel out.
    edges[(first_column - x) * crop_height + starts - first_column * height - y] += 1
    edges[(last_column - x) * crop_height + stops - last_column * height - y] -= 1
    filled_crop = np.cumsum(edges[:-1], dtype=np.int8).view(np.uint8)
    return MaskCrop(filled_crop.reshape(width, crop_height).T, x, y)


def _counts(text: str | bytes) -> np.ndarray:
    """Read the counts of a compressed RLE: lengths of runs, background first.

    A number is written in groups of 5 bits, lowest first, one character a group (48 added); bit 5
    says that more follows, bit 4 of the last group is the sign. From the fourth on, a number is
    the difference to the one two places before.
    """
    if isinstance(text, str):
        text = text.encode()
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    stops = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate(([0], stops[:-1] + 1))
    groups = stops - starts + 1
    place = np.arange(codes.size) - np.repeat(starts, groups)
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= (codes[stops] >> 4 & 1) << (5 * groups)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _f_score(pred: np.ndarray, gt: np.ndarray, near: np.ndarray) -> float:
    pred, gt = _boundary(pred), _boundary(gt)
    # What is dilated may not leave the crop, which holds all of both boundaries.
    precise = cv2.countNonZero(pred & cv2.dilate(gt, near))
    recalled = cv2.countNonZero(gt & cv2.dilate(pred, near))
    if not precise:  # nor is anything recalled
        return 0.0
    precision, recall = precise / cv2.countNonZero(pred), recalled / cv2.countNonZero(gt)
    return 2 * precision * recall / (precision + recall)


def _boundary(mask: np.ndarray) -> np.ndarray:
    if not mask.size:
        return np.zeros(mask.shape, np.uint8)
    return mask - cv2.erode(mask, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0)


def _binary(mask: np.ndarray) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.ndim != 2:
        raise ValueError(f"a mask has a height and a width, not the shape {mask.shape}")
    return np.ascontiguousarray(mask != 0).view(np.uint8)


@functools.lru_cache(maxsize=8)
def _disk(radius: float) -> np.ndarray:
    """All offsets not farther than ``radius``, as a structuring element."""
    if not (math.isfinite(radius) and radius >= 0):
        raise ValueError(f"the tolerance is a distance in pixels, 0 or more, not {radius!r}")
    side = np.arange(-math.floor(radius), math.floor(radius) + 1)
    return (side[:, None] ** 2 + side**2 <= radius**2).astype(np.uint8)
