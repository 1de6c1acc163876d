"""The orders of pasting by occlusion: OCFusion's hard one and REFINE's soft one.

Shape letters: K instances, H x W the image.
"""

from typing import Any

import torch
from torch import Tensor

from .arrays import Array, to_tensors
from .pasting import fuse_in_order
from .soft_occlusion import overlapping, pasting_order, soft_occlusion_score


def fuse_occlusion(
    masks: Array,
    scores: Array,
    labels: Array,
    sem: Array,
    occlusion: Array,
    occlusion_thr: float = 0.2,
    overlap_thr: float = 0.5,
    stuff_area_limit: int = 4096,
    score_thr: float = 0.5,
) -> tuple[Array, list[dict[str, Any]]]:
    """Combine instances and a semantic map by hard occlusion (OCFusion; REFINE's strong baseline).

    As :func:`fuse_heuristic` but for the order: of two instances that overlap, i comes upon j if
    ``occlusion[i, j] > occlusion[j, i]``; see :func:`pasting_order`.

    Args:
        masks: (K, H, W), non-zero where the instance is.
        scores: (K,) in [0, 1].
        labels: (K,) classes of the instances, whole numbers.
        sem: (H, W) whole numbers, 0 = thing, any other a stuff class.
        occlusion: (K, K) in [0, 1], how likely i lies upon j, of the kind of ``sem``; the diagonal
            does not count.
        occlusion_thr: Two instances overlap if they share more than this part of the smaller one;
            others follow their scores.
        overlap_thr: Largest covered share of an instance's area, in [0, 1].
        stuff_area_limit: Least pixels of a stuff class.
        score_thr: Least score of an instance; those below take no part in the order either.

    Returns:
        The panoptic map and its segments, as :func:`fuse_heuristic` gives them.

    Raises:
        TypeError: ``sem`` or ``labels`` are not whole numbers.
        ValueError: Shapes do not fit together, or ``occlusion`` is not (K, K) or not in [0, 1].
    """
    occlusion = _checked(occlusion, len(masks))

    def order(masks: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
        return _in_front(masks, scores, kept, occlusion[kept][:, kept], occlusion_thr)

    return fuse_in_order(
        masks, scores, labels, sem, order, overlap_thr, stuff_area_limit, score_thr
    )


def fuse_soft_occlusion(
    masks: Array,
    scores: Array,
    labels: Array,
    sem: Array,
    occlusion: Array,
    sigma: float = 2.5,
    occlusion_thr: float = 0.2,
    overlap_thr: float = 0.5,
    stuff_area_limit: int = 4096,
    score_thr: float = 0.5,
) -> tuple[Array, list[dict[str, Any]]]:
    """Combine instances and a semantic map by Soft Occlusion Estimation (REFINE, Eq. 7).

    As :func:`fuse_occlusion`, with :func:`soft_occlusion_score` in place of ``occlusion``.

    Args:
        masks: (K, H, W), non-zero where the instance is.
        scores: (K,) in [0, 1]; the confidences s of Eq. 7, too.
        labels: (K,) classes of the instances, whole numbers.
        sem: (H, W) whole numbers, 0 = thing, any other a stuff class.
        occlusion: (K, K) in [0, 1], how likely i lies upon j, of the kind of ``sem``; the diagonal
            does not count.
        sigma: Of Eq. 7, positive; the larger, the less ``occlusion`` counts.
        occlusion_thr: Two instances overlap if they share more than this part of the smaller one;
            others follow their scores.
        overlap_thr: Largest covered share of an instance's area, in [0, 1].
        stuff_area_limit: Least pixels of a stuff class.
        score_thr: Least score of an instance; those below take no part in the order either.

    Returns:
        The panoptic map and its segments, as :func:`fuse_heuristic` gives them.

    Raises:
        TypeError: ``sem`` or ``labels`` are not whole numbers.
        ValueError: Shapes do not fit together, ``occlusion`` is not (K, K) or not in [0, 1], or
            ``sigma`` is not positive.
    """
    occlusion = _checked(occlusion, len(masks))

    def order(masks: Tensor, scores: Tensor, kept: Tensor) -> Tensor:
        soft = soft_occlusion_score(scores[kept], occlusion[kept][:, kept], sigma)
        return _in_front(masks, scores, kept, soft, occlusion_thr)

    return fuse_in_order(
        masks, scores, labels, sem, order, overlap_thr, stuff_area_limit, score_thr
    )


def _in_front(
    masks: Tensor, scores: Tensor, kept: Tensor, soft: Tensor, occlusion_thr: float
) -> Tensor:
    # Masks are large: no copy where all take part, in whatever order.
    places, turn = kept.sort()
    overlap = overlapping(masks if len(kept) == len(masks) else masks[places], occlusion_thr)
    turn = turn.argsort()
    return kept[pasting_order(scores[kept], soft, overlap[turn][:, turn])]


def _checked(occlusion: Array, number: int) -> Tensor:
    (pairs,), _ = to_tensors(occlusion)
    if pairs.shape != (number, number):
        raise ValueError(
            f"occlusion must be ({number}, {number}), one row and one column for each mask, got "
            f"shape {tuple(pairs.shape)}"
        )
    apart = ~torch.eye(number, dtype=torch.bool, device=pairs.device)
    # NaN is not inside either.
    if not ((pairs >= 0) & (pairs <= 1))[apart].all():
        raise ValueError("occlusion must be in [0, 1], how likely one instance lies upon another")
    return pairs
