"""What all fusers share: paste instances in some order, then fill in the stuff.

Shape letters: K instances, H x W the image.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .arrays import Array, to_tensors

#: Masks (K, H, W), scores (K,), the places of those who take part as :func:`ranked` gives them ->
#: these in order, top first.
Order = Callable[[Tensor, Tensor, Tensor], Tensor]

# Labels within so small a range are counted, others sorted.
_COUNTED_RANGE = 1 << 16


@torch.no_grad()
def fuse_in_order(
    masks: Array,
    scores: Array,
    labels: Array,
    sem: Array,
    order: Order,
    overlap_thr: float,
    stuff_area_limit: int,
    score_thr: float,
) -> tuple[Array, list[dict[str, Any]]]:
    """Fuse as :func:`fuse_heuristic` does, in another order of pasting.

    Args:
        masks: See :func:`fuse_heuristic`, as for all others that are not told here.
        scores: See there.
        labels: See there.
        sem: See there.
        order: Tells the order of the instances of sufficient score. Those that it does not tell
            apart must stay as they are, so that no order of the input matters.
        overlap_thr: See there.
        stuff_area_limit: See there.
        score_thr: See there.

    Returns:
        See there.

    Raises:
        TypeError: See there.
        ValueError: See there.
    """
    (masks, scores, labels, sem), arrays = to_tensors(masks, scores, labels, sem)
    _check(masks, scores, labels, sem)
    sem = sem.long()
    kept = ranked(masks, scores, labels, (scores >= score_thr).nonzero()[:, 0])
    instances = order(masks, scores, kept)
    panoptic, free, pasted = paste(masks, instances.tolist(), overlap_thr)
    classes, values = labels.tolist(), scores.tolist()
    things = [
        dict(
            id=number,
            isthing=True,
            score=values[instance],
            category_id=classes[instance],
            instance_id=instance,
        )
        for number, instance in enumerate(pasted, 1)
    ]
    stuff = fill_in_stuff(panoptic, free, sem, len(things) + 1, stuff_area_limit)
    return (panoptic.numpy() if arrays else panoptic), things + stuff


def ranked(masks: Tensor, scores: Tensor, labels: Tensor, kept: Tensor) -> Tensor:
    """Sort instances by score, and equal ones by what does not depend on their order.

    Args:
        masks: (K, H, W), non-zero where the instance is.
        scores: (K,).
        labels: (K,).
        kept: Places of those who take part.

    Returns:
        The places, highest score first. Of equal scores the smallest mask comes first, which would
        hide least; of equal areas that with the first pixel that the other has not, row by row; of
        equal masks that of the lower label.
    """
    kept = kept[scores[kept].argsort(descending=True, stable=True)]
    values = scores[kept].tolist()
    if len(set(values)) == len(values):
        return kept

    def key(place: tuple[int, float]) -> tuple[Any, ...]:
        instance, score = place
        if values.count(score) == 1:
            return (-score,)
        pixels = masks[instance].flatten().nonzero().cpu().numpy().astype(">i8")
        return -score, len(pixels), pixels.tobytes(), int(labels[instance])

    in_order = sorted(zip(kept.tolist(), values, strict=True), key=key)
    return kept.new_tensor([instance for instance, _ in in_order])


def paste(masks: Tensor, order: list[int], overlap_thr: float) -> tuple[Tensor, Tensor, list[int]]:
    """Paste masks one below the other.

    Args:
        masks: (K, H, W), non-zero where the instance is.
        order: Places of those to be pasted, top first.
        overlap_thr: One of which a larger share is covered is left out.

    Returns:
        The map (H, W) int32, with numbers from 1 in the order of pasting and 0 elsewhere; where it
        is 0, (H, W) bool; and which masks were pasted.
    """
    panoptic = torch.zeros(masks.shape[1:], dtype=torch.int32, device=masks.device)
    free = torch.ones_like(panoptic, dtype=torch.bool)
    pasted: list[int] = []
    for instance in order:
        mask = masks[instance].bool()
        visible = mask & free
        # Both numbers at once: on a GPU the program waits for them.
        area, visible_area = torch.stack([mask.count_nonzero(), visible.count_nonzero()]).tolist()
        if area == 0 or (area - visible_area) / area > overlap_thr:
            continue
        # All of it may be covered where `overlap_thr` is 1: detectron2 counts it all the same.
        pasted.append(instance)
        panoptic.masked_fill_(visible, len(pasted))
        free ^= visible
    return panoptic, free, pasted


def fill_in_stuff(
    panoptic: Tensor, free: Tensor, sem: Tensor, first_id: int, area_limit: int
) -> list[dict[str, Any]]:
    """Give each stuff class the free pixels, if they are enough.

    Args:
        panoptic: (H, W) int32; changed in place.
        free: (H, W) bool.
        sem: (H, W) int64, 0 = no stuff.
        first_id: Number of the first class; they come in ascending order.
        area_limit: Least pixels of a class.

    Returns:
        Their segments: ``id``, ``isthing``, ``category_id``, ``area``.
    """
    if sem.numel() == 0:
        return []
    labels, places = _numbered(sem)
    present = places.flatten().bincount(minlength=len(labels)).tolist()
    areas = places[free].bincount(minlength=len(labels)).tolist()
    numbers, segments = [0] * len(labels), []
    for place, label in enumerate(labels):
        if label != 0 and present[place] and areas[place] >= area_limit:
            numbers[place] = first_id + len(segments)
            segments.append(
                dict(id=numbers[place], isthing=False, category_id=label, area=areas[place])
            )
    panoptic += panoptic.new_tensor(numbers)[places].masked_fill_(~free, 0)
    return segments


def _numbered(sem: Tensor) -> tuple[list[int], Tensor]:
    """Ascending labels, maybe some that do not occur; and each pixel's place (H, W) among them."""
    least, most = sem.min().item(), sem.max().item()
    if most - least < _COUNTED_RANGE:
        return list(range(least, most + 1)), sem - least
    labels, places = sem.unique(return_inverse=True)
    return labels.tolist(), places


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
    if scores.isnan().any():
        raise ValueError("scores holds NaN")
