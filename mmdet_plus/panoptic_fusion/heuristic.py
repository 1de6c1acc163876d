"""The heuristic of Panoptic-FPN: paste instances by score, then fill in the stuff.

Shape letters: K instances, H x W the image.
"""

from typing import Any

from torch import Tensor

from .arrays import Array
from .pasting import fuse_in_order


def fuse_heuristic(
    masks: Array,
    scores: Array,
    labels: Array,
    sem: Array,
    overlap_thr: float = 0.5,
    stuff_area_limit: int = 4096,
    score_thr: float = 0.5,
) -> tuple[Array, list[dict[str, Any]]]:
    """Combine instances and a semantic map (Kirillov et al., *Panoptic Segmentation*, section 7).

    Instances are pasted in the order of their scores; of equal ones the smallest comes first, so
    that the order of the input does not matter. One of which more than ``overlap_thr`` is covered
    already is left out, any other gets its uncovered pixels. Then each stuff class gets the pixels
    that no instance took, if they are enough. The conventions are detectron2's.

    Args:
        masks: (K, H, W), non-zero where the instance is.
        scores: (K,).
        labels: (K,) classes of the instances, whole numbers.
        sem: (H, W) whole numbers, 0 = thing, any other a stuff class. All arguments are tensors of
            one device, or all are NumPy arrays.
        overlap_thr: Largest covered share of an instance's area, in [0, 1].
        stuff_area_limit: Least pixels of a stuff class.
        score_thr: Least score of an instance.

    Returns:
        The panoptic map (H, W), int32, of the kind of ``sem``: 0 = void, else a segment's id. And
        the segments by id, from 1 in the order of pasting: ``id``, ``isthing``, ``category_id``
        (the class as given), of things ``score`` and ``instance_id`` (the place in ``masks``), of
        stuff ``area`` in pixels.

    Raises:
        TypeError: ``sem`` or ``labels`` are not whole numbers.
        ValueError: Shapes do not fit together, or ``scores`` holds NaN.
    """
    return fuse_in_order(
        masks, scores, labels, sem, _as_ranked, overlap_thr, stuff_area_limit, score_thr
    )


def _as_ranked(masks: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
    return kept
