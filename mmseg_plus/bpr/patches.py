"""Cutting training patches out of an image, its coarse masks and their ground truth.

Shape legend: N instances, H and W the image's size, P patches.
"""

import numpy as np
import torch
from torch import Tensor

from mmplus_ops import mask_intersections


def crop_training_patches(
    image: np.ndarray,
    coarse: np.ndarray,
    target: np.ndarray,
    boxes: Tensor,
    mask_index: Tensor,
    padding: int = 0,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cut out patches at their own size, zeros outside of the image.

    Args:
        image: (H, W, 3) uint8 BGR.
        coarse: (N, H, W) bool.
        target: (N, H, W) bool, the ground truth of each coarse mask.
        boxes: (P, 4) int64 (x1, y1, x2, y2), half open.
        mask_index: (P,) int64 in [0, N).
        padding: Pixels by which boxes are grown on each side.

    Returns:
        P times an image (h, w, 3) uint8, a coarse mask and a target (h, w) uint8 of 0 and 1, where
        h x w is the padded box.
    """
    patches = []
    for box, index in zip(boxes.tolist(), mask_index.tolist(), strict=True):
        patches.append(
            tuple(
                _crop(plane, box, padding)
                for plane in (image, coarse[index].view(np.uint8), target[index].view(np.uint8))
            )
        )
    return patches


def _crop(plane: np.ndarray, box: list[int], padding: int) -> np.ndarray:
    x1, y1, x2, y2 = box
    left, top, right, bottom = x1 - padding, y1 - padding, x2 + padding, y2 + padding
    crop = np.zeros((bottom - top, right - left, *plane.shape[2:]), plane.dtype)
    part = plane[max(top, 0) : bottom, max(left, 0) : right]
    down, across = max(-top, 0), max(-left, 0)
    crop[down : down + part.shape[0], across : across + part.shape[1]] = part
    return crop


def match(
    coarse: np.ndarray,
    coarse_labels: np.ndarray,
    truth: np.ndarray,
    truth_labels: np.ndarray,
    crowd: np.ndarray,
    min_iou: float = 0.5,
) -> np.ndarray:
    """Give each coarse mask the ground truth of its class that it overlaps most.

    Args:
        coarse: (N, H, W) bool.
        coarse_labels: (N,) int.
        truth: (M, H, W) bool.
        truth_labels: (M,) int.
        crowd: (M,) bool; crowds are never matched.
        min_iou: Only a larger IoU counts.

    Returns:
        (N,) int64 in [0, M), or -1 where nothing overlaps enough. A ground truth may be given to
        several masks.
    """
    if not len(coarse) or not len(truth):
        return np.full(len(coarse), -1, np.int64)
    areas = mask_intersections(torch.from_numpy(np.concatenate([coarse, truth]))).numpy()
    own = np.diag(areas)
    shared = areas[: len(coarse), len(coarse) :]
    unions = own[: len(coarse), None] + own[None, len(coarse) :] - shared
    ious = shared / np.maximum(unions, 1)
    ious[(coarse_labels[:, None] != truth_labels[None]) | crowd[None]] = 0
    best = ious.argmax(axis=1)
    return np.where(ious[np.arange(len(best)), best] > min_iou, best, -1)
