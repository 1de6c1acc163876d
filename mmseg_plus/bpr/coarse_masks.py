"""Coarse masks made from ground truth, so that a refiner trains without a segmenter's results.

Three kinds of errors: what a mask head's small grid does to a mask, a polygon of few vertices, and
a boundary that is moved in or out. How large they are is not in the paper; with the defaults,
coarse and true masks of COCO's instances have a mean IoU of 0.91 (0.88 to 0.95 by kind).

All functions take one mask (H, W) bool and a generator, and return a new mask (H, W) bool. They
work on the part of the image around the instance, so that the cost follows the instance's size.
A mask that is not empty never becomes empty; an empty one stays as it is.
"""

import math
from collections.abc import Callable, Sequence

import cv2
import numpy as np

# Vertices are drawn in sixteenths of a pixel.
_SHIFT = 4
# Beyond this many standard deviations nothing is drawn.
_FARTHEST = 2.5
# Errors in pixels do not shrink with the instance below these: how far boundaries move, and which
# side a square has that gives the unit of outlines.
_LEAST_SHIFT = 0.6
_LEAST_SIDE = 20.0
# How far a mask head's certainty goes: logits of about -4 and 4.
_LEAST_PROBABILITY = 0.02


def mask_head_degradation(
    mask: np.ndarray,
    rng: np.random.Generator,
    size: int | Sequence[int] = (14, 28, 28),
    noise: float = 1.0,
    box_jitter: float = 0.03,
) -> np.ndarray:
    """What a mask head of Mask R-CNN's kind makes of a perfect mask.

    The mask's box, moved a little as predicted boxes are, becomes a grid of ``size`` x ``size``
    probabilities (mean over each cell, blurred, smooth noise on the logits), which is resized
    bilinearly to the box and cut at 0.5.

    Args:
        mask: (H, W) bool.
        rng: Source of all random numbers.
        size: Side of the grid in cells; one of several is drawn.
        noise: Standard deviation of the logits' noise at most; drawn between 0 and this.
        box_jitter: Standard deviation of each side's place, as a part of the box's width or height;
            at least 0.6 pixels.

    Returns:
        (H, W) bool.
    """

    def change(crop: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        cells = int(rng.choice(np.atleast_1d(size)))
        x, y, width, height = box
        sides = np.array([[x, x + width], [y, y + height]], np.float64)
        lengths = np.array([[width], [height]])
        moved = _bounded_normal(rng, (2, 2)) * np.maximum(box_jitter * lengths, _LEAST_SHIFT)
        sides = np.clip(sides + moved, 0, np.array([[crop.shape[1]], [crop.shape[0]]]))
        sides[:, 1] = np.maximum(sides[:, 1], sides[:, 0] + 1e-3)
        columns = _cell_means(sides[0], crop.shape[1], cells)
        rows = _cell_means(sides[1], crop.shape[0], cells)
        grid = rows @ crop.astype(np.float32) @ columns.T
        # Of the grid, and of features that do not see single pixels of small instances.
        sigmas = np.maximum(rng.uniform(0.4, 0.8), rng.uniform(0.4, 0.8) * cells / lengths[:, 0])
        grid = cv2.GaussianBlur(grid, (0, 0), *sigmas, borderType=cv2.BORDER_REFLECT)
        grid = np.clip(grid, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
        logits = np.log(grid / (1 - grid))
        logits += rng.uniform(0, noise) * _smooth_field(rng, grid.shape, int(rng.integers(4, 9)))
        grid = 1 / (1 + np.exp(-logits))
        pasted = _pasting(sides[1], crop.shape[0], cells) @ grid
        return pasted @ _pasting(sides[0], crop.shape[1], cells).T >= 0.5

    return _around_instance(mask, _FARTHEST * box_jitter, _FARTHEST * _LEAST_SHIFT + 1, change)


def polygon_simplification(
    mask: np.ndarray,
    rng: np.random.Generator,
    tolerance: float = 0.06,
    jitter: float = 0.01,
) -> np.ndarray:
    """The mask as somebody outlines it in a hurry: polygons of few vertices, holes included.

    Args:
        mask: (H, W) bool.
        rng: Source of all random numbers.
        tolerance: How far the outline may lie from the true one, as a part of the square root of
            the mask's area (of 20 pixels at least); drawn between a quarter of this and this.
        jitter: Standard deviation of a vertex's place, in the same unit.

    Returns:
        (H, W) bool.
    """

    def change(crop: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        unit = max(math.sqrt(np.count_nonzero(crop)), _LEAST_SIDE)
        epsilon = unit * rng.uniform(tolerance / 4, tolerance)
        contours, _ = cv2.findContours(crop, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        polygons = []
        for contour in contours:
            polygon = cv2.approxPolyDP(contour, epsilon, closed=True).astype(np.float64)
            polygon += _bounded_normal(rng, polygon.shape) * jitter * unit
            polygons.append(np.round(polygon * (1 << _SHIFT)).astype(np.int32))
        # Together, so that outlines inside of outlines are holes.
        drawn = np.zeros_like(crop)
        cv2.fillPoly(drawn, polygons, 1, shift=_SHIFT)
        return drawn != 0

    return _around_instance(mask, _FARTHEST * jitter, _FARTHEST * jitter * _LEAST_SIDE + 1, change)


def random_morphology(
    mask: np.ndarray,
    rng: np.random.Generator,
    max_fraction: float = 0.04,
    waves: float = 0.4,
) -> np.ndarray:
    """Move the boundary out or in, by a distance that varies smoothly along it.

    Args:
        mask: (H, W) bool.
        rng: Source of all random numbers.
        max_fraction: The largest mean distance as a part of the square root of the mask's area;
            drawn between minus and plus this. It is 0.6 pixels at least.
        waves: Standard deviation of the distance along the boundary, as a part of the largest mean.

    Returns:
        (H, W) bool.
    """

    def change(crop: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        largest = max(max_fraction * math.sqrt(np.count_nonzero(crop)), _LEAST_SHIFT)
        mean = rng.uniform(-largest, largest)
        # To the next pixel of the other kind; the image's border is none, so that instances which
        # leave the image go on doing so.
        inside = cv2.distanceTransform(crop, cv2.DIST_L2, 5)
        outside = cv2.distanceTransform(1 - crop, cv2.DIST_L2, 5)
        signed = np.where(crop, inside - 0.5, 0.5 - outside)
        waviness = int(rng.integers(3, 8))
        return signed + mean + waves * largest * _smooth_field(rng, crop.shape, waviness) > 0

    reach = 1 + _FARTHEST * waves
    return _around_instance(mask, reach * max_fraction, reach * _LEAST_SHIFT + 1, change)


KINDS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "mask_head": mask_head_degradation,
    "polygon": polygon_simplification,
    "morphology": random_morphology,
}


def degrade(
    mask: np.ndarray,
    rng: np.random.Generator,
    kinds: Sequence[str] = tuple(KINDS),
    min_iou: float = 0.5,
    chain: float = 0.25,
    tries: int = 4,
) -> np.ndarray:
    """Make a coarse mask by one kind of error, or by two of them one after the other.

    Args:
        mask: (H, W) bool.
        rng: Source of all random numbers.
        kinds: Of :data:`KINDS`, drawn evenly.
        min_iou: Of the result with the mask; training takes instances of more than 0.5 only.
        chain: Probability of a second, other kind.
        tries: How often to draw again for the sake of ``min_iou``.

    Returns:
        (H, W) bool; the mask itself where no draw was good enough.

    Raises:
        ValueError: A kind is unknown, or there is none.
    """
    if not kinds or not set(kinds) <= KINDS.keys():
        raise ValueError(f"kinds must be some of {', '.join(KINDS)}, got {', '.join(kinds)}")

    def change(crop: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        true = crop.view(bool)
        for _ in range(tries):
            number = min(1 + (rng.random() < chain), len(kinds))
            coarse = true
            for kind in rng.permutation(kinds)[:number]:
                coarse = KINDS[kind](coarse, rng)
            union = np.count_nonzero(coarse | true)
            if np.count_nonzero(coarse & true) > min_iou * union:
                return coarse
        return true

    # What two kinds reach together; farther off, the crop's border is taken for the image's.
    return _around_instance(mask, 1.0, 8, change)


def _around_instance(
    mask: np.ndarray,
    part: float,
    least: float,
    change: Callable[[np.ndarray, tuple[int, int, int, int]], np.ndarray],
) -> np.ndarray:
    """Change a mask inside its box grown by a margin, clipped at the image.

    Args:
        mask: (H, W) bool.
        part: The margin as a part of the box's longer side, which is no less than the square root
            of the mask's area.
        least: Pixels that are added to it.
        change: From the crop (h, w) uint8 of 0 and 1 and the box (x, y, width, height) in it to
            (h, w) bool. What it leaves empty is not changed.

    Returns:
        (H, W) bool, a new array.
    """
    changed = np.zeros(mask.shape, bool)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return changed
    x, y = int(columns[0]), int(rows[0])
    width, height = int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y
    grow = math.ceil(part * max(width, height) + least)
    left, top = max(0, x - grow), max(0, y - grow)
    window = (slice(top, y + height + grow), slice(left, x + width + grow))
    crop = mask[window].astype(np.uint8, order="C")
    result = change(crop, (x - left, y - top, width, height))
    changed[window] = result if result.any() else crop
    return changed


def _bounded_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.clip(rng.standard_normal(shape), -_FARTHEST, _FARTHEST)


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], knots: int) -> np.ndarray:
    """(h, w) float32 of about unit variance that varies over a ``knots``-th of the size."""
    field = _bounded_normal(rng, (knots, knots)).astype(np.float32)
    # Interpolation between independent knots takes some of their variance.
    field = 1.3 * cv2.resize(field, shape[::-1], interpolation=cv2.INTER_CUBIC)
    return np.clip(field, -_FARTHEST, _FARTHEST)


def _cell_means(side: np.ndarray, pixels: int, cells: int) -> np.ndarray:
    """(cells, pixels) float32: the part of each pixel in the mean over each cell of a box's side.

    Pixel i covers [i, i + 1).
    """
    edges = np.linspace(side[0], side[1], cells + 1)
    starts, ends = edges[:-1, None], edges[1:, None]
    place = np.arange(pixels)[None]
    overlap = np.minimum(ends, place + 1) - np.maximum(starts, place)
    return (np.maximum(overlap, 0) / (ends - starts)).astype(np.float32)


def _pasting(side: np.ndarray, pixels: int, cells: int) -> np.ndarray:
    """(pixels, cells) float32: bilinear weights of the cells at the pixels' centres.

    As mmdet pastes masks: outside of the grid is 0.
    """
    place = (np.arange(pixels) + 0.5 - side[0]) / (side[1] - side[0]) * cells - 0.5
    distance = np.abs(place[:, None] - np.arange(cells)[None])
    return np.maximum(1 - distance, 0).astype(np.float32)
