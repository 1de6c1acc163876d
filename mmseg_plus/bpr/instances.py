"""The instances of one image, as every reader of results and of ground truth hands them out.

Shape legend: N instances, H and W the image's height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mmseg_plus.common.coco_checks import read_picture


@dataclass
class ImageInstances:
    """One image with its instances.

    Attributes:
        image_id: Of the image in its annotation file, or its name where there is none.
        image_path: The image file.
        height: Of the image in pixels.
        width: Of the image in pixels.
        masks: (N, H, W) bool.
        labels: (N,) int64, the category ids.
        scores: (N,) float64 of results; ones for ground truth.
        crowd: (N,) bool; no instance of results is a crowd.
        records: The position of each instance in its file.
    """

    image_id: int | str
    image_path: str
    height: int
    width: int
    masks: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    crowd: np.ndarray
    records: Sequence[int] = field(default_factory=list)

    def read_image(self) -> np.ndarray:
        """Read the image itself, (H, W, 3) uint8 BGR; see :func:`read_picture` for errors."""
        return read_picture(self.image_id, self.image_path, self.height, self.width)


class InstanceSource(Protocol):
    """A file or folder of instances, read image by image."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, index: int) -> ImageInstances:
        """Decode the instances of one image; the image itself is not read."""
