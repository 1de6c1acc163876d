"""The crop around an instance."""

import numpy as np
import pytest
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

from mmdet_plus.blendmask.instance_crop import InstanceCrop

SIZE = (60, 100)


def sample(boxes):
    planes = np.zeros((len(boxes), *SIZE), np.uint8)
    image = np.zeros((*SIZE, 3), np.uint8)
    for plane, (x1, y1, x2, y2) in zip(planes, boxes, strict=True):
        plane[y1:y2, x1:x2] = 1
        image[(y1 + y2) // 2, (x1 + x2) // 2] = 255
    return dict(
        img=image,
        gt_bboxes=HorizontalBoxes(np.array(boxes, np.float32).reshape(-1, 4)),
        gt_bboxes_labels=np.arange(len(boxes)),
        gt_ignore_flags=np.zeros(len(boxes), bool),
        gt_masks=BitmapMasks(planes, *SIZE),
    )


@pytest.mark.parametrize(
    "box", [(0, 0, 4, 4), (96, 56, 100, 60), (90, 0, 100, 6), (40, 20, 61, 41), (0, 0, 100, 60)]
)
def test_the_centre_stays_inside(box):
    np.random.seed(0)
    offsets = set()
    for _ in range(60):
        results = InstanceCrop((0.3, 0.3))(sample([box]))
        assert results["img"].max() == 255
        rows, cols = results["img_shape"]
        assert 18 <= rows <= 60 and 30 <= cols <= 100
        assert len(results["gt_masks"]) == 1 and results["gt_masks"].masks.shape[1:] == (rows, cols)
        offsets.add((rows, cols, *results["homography_matrix"][:2, 2].tolist()))
    assert len(offsets) > 40


def test_one_of_several_instances_and_none():
    np.random.seed(0)
    boxes = [(0, 0, 6, 6), (94, 54, 100, 60)]
    kept = [InstanceCrop((0.4, 0.4))(sample(boxes))["gt_bboxes_labels"] for _ in range(40)]
    assert {tuple(labels) for labels in kept} >= {(0,), (1,)}
    crop = InstanceCrop((0.4, 0.4), allow_negative_crop=True)
    shapes = {crop(sample([]))["img_shape"] for _ in range(10)}
    assert len(shapes) > 5
