"""The thing-semantic targets."""

import numpy as np
import pytest
import torch
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.structures import InstanceData

from mmdet_plus.blendmask.thing_semantics import thing_semantics


def make(boxes, labels=(), size=(32, 48)):
    planes = np.zeros((len(boxes), *size), np.uint8)
    for plane, (x1, y1, x2, y2) in zip(planes, boxes, strict=True):
        plane[y1:y2, x1:x2] = 1
    data = InstanceData(masks=BitmapMasks(planes, *size))
    if len(labels):
        data.labels = torch.tensor(labels)
    elif not len(boxes):
        data.labels = torch.zeros(0, dtype=torch.long)
    return data


def test_every_eighth_pixel_is_taken():
    # Columns 8 to 15: only the cell that begins there; rows 1 to 15 miss the first cell.
    target = thing_semantics(make([(8, 1, 16, 16)], [2]), None, (32, 48), (4, 6))
    expected = torch.zeros(4, 6, dtype=torch.long)
    expected[1, 1] = 3
    assert torch.equal(target, expected)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_smaller_area_lies_on_top(order):
    boxes = [(0, 0, 48, 32), (0, 0, 24, 24), (0, 0, 9, 9)]
    gt = make([boxes[i] for i in order], list(order))
    target = thing_semantics(gt, None, (32, 48), (4, 6))
    assert target[:2, :2].unique().tolist() == [3] and target[2, 2] == 2 and target[3, 5] == 1
    assert (target == 3).sum() == 4 and (target == 2).sum() == 5


def test_the_area_is_the_mask_s_not_the_box_s():
    """A thin frame around a block: its box is larger, its area smaller."""
    gt = make([(8, 8, 40, 32), (0, 0, 48, 32)], [0, 1])
    gt.masks.masks[1, 1:31, 1:47] = 0
    gt.masks.masks[1, 16, 16:20] = 1
    target = thing_semantics(gt, None, (32, 48), (4, 6))
    assert target[2, 2] == 2 and target[1, 1] == 1 and target[0, 0] == 2


def test_crowds_are_ignored_where_no_instance_is():
    target = thing_semantics(
        make([(0, 0, 16, 16)], [4]), make([(8, 0, 32, 32)]), (32, 48), (4, 6), ignore_index=255
    )
    assert target[:2, :2].unique().tolist() == [5]
    assert target[0, 2:4].tolist() == [255, 255] and target[3, 1] == 255 and target[0, 4] == 0


def test_padding_is_background():
    target = thing_semantics(make([(0, 0, 48, 32)], [0]), make([]), (64, 64), (8, 8))
    assert target[:4, :6].unique().tolist() == [1]
    assert not target[4:].any() and not target[:, 6:].any()


def test_nothing():
    target = thing_semantics(make([]), None, (32, 48), (4, 6))
    assert target.shape == (4, 6) and target.dtype is torch.int64 and not target.any()


def test_polygons():
    polygon = np.array([0.0, 0, 24, 0, 24, 24, 0, 24])
    gt = InstanceData(masks=PolygonMasks([[polygon]], 32, 48), labels=torch.tensor([1]))
    target = thing_semantics(gt, None, (64, 64), (8, 8))
    assert (target == 2).sum() == 9 and target[2, 2] == 2
