"""The heuristic of Panoptic-FPN: paste instances by score, then fill in the stuff.

Shape letters: K instances, H x W the image.
"""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


@torch.no_grad()
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

    Instances are pasted in the order of their scores, equal ones in the order given. One of which
    more than ``overlap_thr`` is covered already is left out, any other gets its uncovered pixels.
    Then each stuff class gets the pixels that no instance took, if they are enough. The
    conventions are detectron2's.

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
        ValueError: Shapes do not fit together.
    """
    arrays = isinstance(sem, np.ndarray)
    given = (masks, scores, labels, sem)
    if arrays:
        # PyTorch takes no views with negative strides.
        given = map(np.ascontiguousarray, given)
    masks, scores, labels, sem = map(torch.as_tensor, given)
    _check(masks, scores, labels, sem)
    sem = sem.long()
    panoptic = torch.zeros(sem.shape, dtype=torch.int32, device=sem.device)
    segments = []
    order = scores.argsort(descending=True, stable=True).tolist()
    kept = (scores >= score_thr).tolist()
    classes, values = labels.tolist(), scores.tolist()
    for instance in order:
        if not kept[instance]:
            continue
        mask = masks[instance].bool()
        free = mask & (panoptic == 0)
        area, free_area = int(mask.sum()), int(free.sum())
        if area == 0 or (area - free_area) / area > overlap_thr:
            continue
        # All of it may be covered where `overlap_thr` is 1: detectron2 counts it all the same.
        segments.append(
            dict(
                id=len(segments) + 1,
                isthing=True,
                score=values[instance],
                category_id=classes[instance],
                instance_id=instance,
            )
        )
        panoptic[free] = len(segments)
    for label in sem.unique().tolist():
        stuff = (sem == label) & (panoptic == 0)
        area = int(stuff.sum())
        if label == 0 or area < stuff_area_limit:
            continue
        segments.append(dict(id=len(segments) + 1, isthing=False, category_id=label, area=area))
        panoptic[stuff] = len(segments)
    return (panoptic.numpy() if arrays else panoptic), segments


def _check(masks: Tensor, scores: Tensor, labels: Tensor, sem: Tensor) -> None:
    for value, name in ((sem, "sem"), (labels, "labels")):
        # An empty list of labels has no type to speak of.
        if value.numel() and (value.is_floating_point() or value.dtype is torch.bool):
            raise TypeError(f"{name} must be whole numbers, got {value.dtype}")
    if sem.dim() != 2:
        raise ValueError(f"sem must be (H, W), got shape {tuple(sem.shape)}")
    if masks.dim() != 3 or masks.shape[1:] != sem.shape:
        raise ValueError(
            f"masks must be (K, {sem.shape[0]}, {sem.shape[1]}) like sem, got shape "
            f"{tuple(masks.shape)}"
        )
    for value, name in ((scores, "scores"), (labels, "labels")):
        if value.shape != masks.shape[:1]:
            raise ValueError(
                f"{name} must be ({len(masks)},), one for each mask, got shape {tuple(value.shape)}"
            )
