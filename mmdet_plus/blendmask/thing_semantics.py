"""Targets of the thing-semantic loss, made from the instances' masks as they are needed."""

import numpy as np
import torch
from mmengine.structures import InstanceData
from torch import Tensor


def thing_semantics(
    instances: InstanceData,
    crowds: InstanceData | None,
    image_size: tuple[int, int],
    size: tuple[int, int],
    ignore_index: int = 255,
) -> Tensor:
    """Draw the classes of an image's instances as a label map.

    The label is the class + 1. Where masks overlap, that of the smaller area lies on top.

    Args:
        instances: ``labels`` (G,) and ``masks``, mmdet's, of G instances.
        crowds: ``masks`` of crowds: what no instance covers of them gets ``ignore_index``.
        image_size: Height and width in pixels of the padded image.
        size: Height and width of the map. Its cell (i, j) is the image's pixel
            (floor(i * step), floor(j * step)): interpolation of kind "nearest".
        ignore_index: The label of crowds.

    Returns:
        ``size`` labels, int64, on the device of ``labels``; 0 where there is nothing.
    """
    rows, cols = (
        np.arange(cells) * pixels // cells for cells, pixels in zip(size, image_size, strict=True)
    )
    target = np.zeros(size, np.int64)
    if crowds is not None and len(crowds) and "masks" in crowds:
        planes = crowds.masks.pad(image_size).to_ndarray()
        target[planes[:, rows[:, None], cols].any(0)] = ignore_index
    if len(instances):
        planes = instances.masks.pad(image_size).to_ndarray().astype(bool)
        order = np.argsort(-planes.sum((1, 2)), kind="stable")
        labels = instances.labels.tolist()
        for i in order:
            target[planes[i, rows[:, None], cols]] = labels[i] + 1
    return torch.from_numpy(target).to(instances.labels.device)
