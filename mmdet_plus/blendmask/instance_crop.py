"""A random crop that keeps the centre of an instance."""

from typing import Any

import numpy as np
from mmdet.datasets.transforms import RandomCrop
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import get_box_tensor


@TRANSFORMS.register_module()
class InstanceCrop(RandomCrop):
    """mmdet's ``RandomCrop`` that contains the centre of an instance drawn at random.

    As in the authors' training of their strongest models, other instances may be cut. An image
    without instances is cropped anywhere.

    Args:
        crop_size: Least shares (width, height) of the image, with the default ``crop_type``.
        crop_type: See ``RandomCrop``.
        **kwargs: Of ``RandomCrop``.
    """

    def __init__(
        self, crop_size: tuple = (0.9, 0.9), crop_type: str = "relative_range", **kwargs: Any
    ) -> None:
        super().__init__(crop_size, crop_type, **kwargs)

    def _crop_data(
        self, results: dict, crop_size: tuple[int, int], allow_negative_crop: bool
    ) -> dict | None:
        boxes = get_box_tensor(results["gt_bboxes"]).numpy()
        self._limits = None
        if len(boxes):
            x1, y1, x2, y2 = boxes[np.random.randint(len(boxes))]
            # First and last offset with which the centre's pixel is inside, by rows and columns.
            centre = np.array([(y1 + y2) / 2, (x1 + x2) / 2])
            self._limits = (
                np.floor(centre - crop_size).astype(int) + 1,
                np.floor(centre).astype(int),
            )
        return super()._crop_data(results, crop_size, allow_negative_crop)

    def _rand_offset(self, margin: tuple[int, int]) -> tuple[int, int]:
        first, last = np.zeros(2, int), np.asarray(margin)
        if self._limits is not None:
            last = np.minimum(last, self._limits[1])
            first = np.clip(self._limits[0], 0, last)
        return tuple(int(np.random.randint(a, b + 1)) for a, b in zip(first, last, strict=True))
