"""The order of pasting of OANet: by a ranking score that a network gives each instance.

Shape letters: K instances, H x W the image.
"""

from typing import Any

from .arrays import Array, to_tensors
from .pasting import fuse_in_order


def fuse_spatial_ranking(
    masks: Array,
    scores: Array,
    labels: Array,
    sem: Array,
    ranking_scores: Array,
    overlap_thr: float = 0.5,
    stuff_area_limit: int = 4096,
    score_thr: float = 0.5,
) -> tuple[Array, list[dict[str, Any]]]:
    """Combine instances and a semantic map by ranking scores (OANet, Liu et al., CVPR 2019).

    As :func:`fuse_heuristic` but for the order: the highest ranking score comes on top, equal ones
    by ``scores``. ``score_thr`` is still a matter of ``scores``.

    Args:
        masks: (K, H, W), non-zero where the instance is.
        scores: (K,) in [0, 1].
        labels: (K,) classes of the instances, whole numbers.
        sem: (H, W) whole numbers, 0 = thing, any other a stuff class.
        ranking_scores: (K,) any numbers, of the kind of ``sem``.
        overlap_thr: Largest covered share of an instance's area, in [0, 1].
        stuff_area_limit: Least pixels of a stuff class.
        score_thr: Least score, not ranking score, of an instance.

    Returns:
        The panoptic map and its segments, as :func:`fuse_heuristic` gives them.

    Raises:
        TypeError: ``sem`` or ``labels`` are not whole numbers.
        ValueError: Shapes do not fit together, or ``ranking_scores`` is not (K,) or holds NaN.
    """
    (ranking,), _ = to_tensors(ranking_scores)
    if ranking.shape != (len(masks),):
        raise ValueError(
            f"ranking_scores must be ({len(masks)},), one for each mask, got shape "
            f"{tuple(ranking.shape)}"
        )
    if ranking.isnan().any():
        raise ValueError("ranking_scores holds NaN")
    return fuse_in_order(
        masks,
        scores,
        labels,
        sem,
        lambda masks, scores, kept: kept[ranking[kept].argsort(descending=True, stable=True)],
        overlap_thr,
        stuff_area_limit,
        score_thr,
    )
