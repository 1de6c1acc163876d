import pytest
import torch
from mmengine.structures import InstanceData

from mmdet_plus.evaluation.mask_tta import merge_views, unflip

NMS = dict(type="nms", iou_threshold=0.5)
SHAPE = (20, 30)


def instances(*boxes, scores, labels):
    masks = torch.zeros(len(boxes), *SHAPE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[y1:y2, x1:x2] = True
    return InstanceData(
        bboxes=torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
        scores=torch.tensor(scores),
        labels=torch.tensor(labels, dtype=torch.long),
        masks=masks,
    )


def meta(direction=None):
    return dict(ori_shape=SHAPE, flip=direction is not None, flip_direction=direction)


@pytest.mark.parametrize(
    ("direction", "box"),
    [
        (None, (2, 3, 12, 9)),
        ("horizontal", (18, 3, 28, 9)),
        ("vertical", (2, 11, 12, 17)),
        ("diagonal", (18, 11, 28, 17)),
    ],
)
def test_masks_and_boxes_turn_together(direction, box):
    turned = unflip(instances((2, 3, 12, 9), scores=[0.9], labels=[0]), meta(direction))
    expected = instances(box, scores=[0.9], labels=[0])
    assert torch.equal(turned.bboxes, expected.bboxes)
    assert torch.equal(turned.masks, expected.masks)


def test_the_better_view_of_an_instance_stays():
    plain = instances((2, 3, 12, 9), (20, 2, 28, 18), scores=[0.6, 0.5], labels=[0, 1])
    # The mirror image of (2, 3, 12, 10), found with a higher score, and a new instance.
    mirrored = instances((18, 3, 28, 10), (0, 0, 4, 4), scores=[0.9, 0.3], labels=[0, 1])
    merged = merge_views([plain, mirrored], [meta(), meta("horizontal")], NMS, 100)
    assert merged.scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert merged.labels.tolist() == [0, 1, 1]
    assert merged.masks[0, 3:10, 2:12].all() and merged.masks[0].sum() == 70
    assert torch.equal(merged.masks[1], plain.masks[1])
    assert merged.masks[2, 0:4, 26:30].all() and merged.masks[2].sum() == 16
    assert len(merge_views([plain, mirrored], [meta(), meta("horizontal")], NMS, 1)) == 1


def test_nothing_detected():
    none = instances(scores=[], labels=[])
    merged = merge_views([none, none], [meta(), meta("horizontal")], NMS, 100)
    assert len(merged) == 0 and merged.masks.shape == (0, *SHAPE)
