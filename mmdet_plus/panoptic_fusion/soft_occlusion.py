"""The mathematics of REFINE's Soft Occlusion Estimation: who lies upon whom.

Shape letters: N instances, H x W the image.
"""

import math

import numpy as np
import torch
from torch import Tensor

from mmplus_ops import mask_intersections

from .arrays import Array, to_tensors


def soft_occlusion_score(scores: Array, occlusion: Array, sigma: float = 2.5) -> Array:
    """Weigh how likely one instance occludes another with how sure the model is of it (Eq. 7).

    ``out[i, j] = s_i * exp(-(O[i, j] - 1)^2 / sigma)``: of two instances the one in front is more
    often complete, and so has more often the higher score.

    Args:
        scores: (N,) class scores s in [0, 1].
        occlusion: (N, N) O in [0, 1], how likely i lies upon j; of the kind of ``scores``.
        sigma: The larger, the less O counts; Table 5 has 2.5 as the best.

    Returns:
        (N, N) in [0, 1], of the kind of ``scores``; i occludes j where it exceeds its transpose.
        Differentiable.

    Raises:
        ValueError: Shapes do not fit together, or ``sigma`` is not a positive number.
    """
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma must be a positive number, got {sigma!r}")
    (occlusion, scores), arrays = to_tensors(occlusion, scores)
    _check_pairs(scores, occlusion, "occlusion")
    soft = scores[:, None] * torch.exp(-((occlusion - 1) ** 2) / sigma)
    return soft.numpy() if arrays else soft


@torch.no_grad()
def pasting_order(scores: Array, soft: Array, overlap: Array) -> Array:
    """Order instances so that nobody lies below whom they occlude.

    Instance i occludes j if they overlap and ``soft[i, j] > soft[j, i]``. Repeatedly the
    highest-scoring instance is taken that none of the remaining ones occludes; where there is no
    such one, a cycle, the highest-scoring. (The paper tells the pairwise relation alone.)

    Among equal scores the one given first is taken; the fusers sort them by their masks before,
    so that the order of their arguments does not matter.

    Args:
        scores: (N,).
        soft: (N, N), see :func:`soft_occlusion_score`; the diagonal does not count.
        overlap: (N, N) bool, which pairs overlap, see :func:`overlapping`. All are tensors, or all
            are NumPy arrays.

    Returns:
        (N,) int64 places, top first, of the kind and on the device of ``scores``.

    Raises:
        ValueError: Shapes do not fit together.
    """
    (soft, overlap, scores), arrays = to_tensors(soft, overlap, scores)
    _check_pairs(scores, soft, "soft")
    _check_pairs(scores, overlap, "overlap")
    ranked = scores.argsort(descending=True, stable=True)
    occludes = (overlap.bool() & (soft > soft.T))[ranked][:, ranked].cpu().numpy()
    order = ranked[torch.from_numpy(_take_in_turn(occludes)).to(ranked.device)]
    return order.numpy() if arrays else order


def _take_in_turn(occludes: np.ndarray) -> np.ndarray:
    """The order of N instances that are sorted by score; ``occludes`` (N, N) bool."""
    number = len(occludes)
    occludes = occludes.astype(np.int64)
    occluders = occludes.sum(axis=0)
    remaining = np.ones(number, bool)
    order = np.empty(number, np.int64)
    for place in range(number):
        # The first of the largest values is the highest-scoring one.
        taken = (occluders == 0).argmax()
        if occluders[taken]:
            taken = remaining.argmax()
        order[place] = taken
        remaining[taken] = False
        occluders -= occludes[taken]
        # Never zero again: each may still lose one for everybody else.
        occluders[taken] = 2 * number
    return order


@torch.no_grad()
def overlapping(masks: Array, threshold: float = 0.2) -> Array:
    """Tell which instances overlap.

    Args:
        masks: (N, H, W), non-zero where the instance is, a tensor or a NumPy array.
        threshold: Two overlap if they share more than this part of the smaller one.

    Returns:
        (N, N) bool, of the kind of ``masks``; False on the diagonal and for empty masks.

    Raises:
        ValueError: ``masks`` is not (N, H, W).
    """
    (masks,), arrays = to_tensors(masks)
    if masks.dim() != 3:
        raise ValueError(f"masks must be (N, H, W), got shape {tuple(masks.shape)}")
    shared = mask_intersections(masks.bool())
    areas = shared.diagonal()
    smaller = torch.minimum(areas[:, None], areas)
    overlap = shared / smaller.clamp_min(1) > threshold
    overlap.fill_diagonal_(False)
    return overlap.numpy() if arrays else overlap


def _check_pairs(scores: Tensor, pairs: Tensor, name: str) -> None:
    if scores.dim() != 1:
        raise ValueError(f"scores must be (N,), got shape {tuple(scores.shape)}")
    if pairs.shape != (len(scores), len(scores)):
        raise ValueError(
            f"{name} must be ({len(scores)}, {len(scores)}), one row and one column for each "
            f"score, got shape {tuple(pairs.shape)}"
        )
