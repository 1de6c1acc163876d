"""The blender: its losses, and masks pasted into images."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmdet_plus.blendmask import Blender
from mmdet_plus.blendmask.blender import paste_masks
from mmplus_ops import blend_bases

register_all_modules()
BASES = dict(
    type="ProtoNet",
    in_channels=4,
    feat_channels=4,
    num_classes=3,
    num_bases=2,
    norm_cfg=dict(type="BN"),
)


@pytest.fixture
def blender():
    torch.manual_seed(0)
    return Blender(bases=dict(BASES), mask_size=10, test_cfg=ConfigDict())


@pytest.fixture
def levels():
    torch.manual_seed(1)
    return [torch.randn(2, 4, *size) for size in ((8, 12), (4, 6), (2, 3))]


def infos(counts=(3, 2)):
    generator = torch.Generator().manual_seed(2)
    boxes = torch.tensor([[4.0, 6, 44, 50], [20, 10, 96, 64], [-9, -7, 30, 20]])
    return [
        InstanceData(
            bboxes=boxes[:count],
            gt_index=torch.arange(count) % 2,
            centerness=torch.linspace(0.3, 0.9, 3)[:count],
            attention=torch.randn(count, 2, 5, 5, generator=generator),
        )
        for count in counts
    ]


def test_masks_are_blended_from_the_bases_of_their_image(blender, levels):
    found = infos()
    blender.eval()
    (masks,) = blender(levels, found)
    assert masks.shape == (5, 10, 10)
    bases = blender.bases(levels)
    for image, (info, own) in enumerate(zip(found, masks.split([3, 2]), strict=True)):
        rois = F.pad(info.bboxes, (1, 0))
        expected = blend_bases(bases[image : image + 1], rois, info.attention, 10, 0.25)
        torch.testing.assert_close(own, expected)


def test_stride_of_the_bases(levels):
    torch.manual_seed(0)
    eighth = Blender(bases=dict(BASES), mask_size=10, stride=8, test_cfg=ConfigDict()).eval()
    torch.manual_seed(0)
    quarter = Blender(bases=dict(BASES), mask_size=10, test_cfg=ConfigDict()).eval()
    doubled = infos()
    for info in doubled:
        info.bboxes = info.bboxes * 2
    torch.testing.assert_close(eighth(levels, doubled)[0], quarter(levels, infos())[0])


def ground_truth(size=(64, 96)):
    planes = np.zeros((2, *size), np.uint8)
    planes[0, 6:50, 4:28] = 1
    planes[1, 10:64, 20:96] = 1
    planes[1, 30:40, 50:60] = 0
    return InstanceData(
        bboxes=torch.tensor([[4.0, 6, 44, 50], [20, 10, 96, 64]]),
        labels=torch.tensor([2, 0]),
        masks=BitmapMasks(planes, *size),
    )


def losses(blender, levels, found, gts=None, crowds=(None, None)):
    gts = gts or [ground_truth(), ground_truth()]
    masks, semantics = blender.train()(levels, found)
    metas = [dict(batch_input_shape=(64, 96))] * 2
    return masks, semantics, blender.loss_by_feat(masks, semantics, gts, metas, found, list(crowds))


@pytest.mark.parametrize("counts", [(3, 2), (0, 1)])
def test_the_mask_loss_is_weighted_by_centreness(blender, levels, counts):
    found = infos(counts)
    masks, _, got = losses(blender, levels, found)
    targets = blender.mask_targets(ground_truth())
    assert targets.shape == (2, 10, 10)
    # The left 24 of 40 columns.
    assert targets[0, :, :6].all() and not targets[0, :, 6:].any()
    wanted = torch.cat([targets[info.gt_index] for info in found])
    weights = torch.cat([info.centerness for info in found])
    each = F.binary_cross_entropy_with_logits(masks, wanted, reduction="none").mean((1, 2))
    torch.testing.assert_close(got["loss_mask"], (each * weights).sum() / weights.sum())


def test_the_sum_of_centreness_is_the_mean_over_processes(blender, levels, monkeypatch):
    found = infos()
    alone = losses(blender, levels, found)[2]["loss_mask"]
    monkeypatch.setattr("mmdet_plus.blendmask.blender.reduce_mean", lambda x: 4 * x)
    torch.testing.assert_close(losses(blender, levels, found)[2]["loss_mask"], alone / 4)


def test_the_semantic_loss(blender, levels):
    crowd = InstanceData(masks=BitmapMasks(np.ones((1, 64, 96), np.uint8), 64, 96))
    target = torch.zeros(2, 8, 12, dtype=torch.long)
    target[:, 2:, 3:] = 1
    target[:, 4, 7] = 0
    target[:, 1:7, 1:4] = 3
    for crowds in (None, crowd):
        _, semantics, got = losses(blender, levels, infos(), crowds=(None, crowds))
        if crowds is not None:
            target[1][target[1] == 0] = 255
        expected = F.cross_entropy(semantics, target, ignore_index=255)
        torch.testing.assert_close(got["loss_basis_sem"], 0.3 * expected)


def test_no_positives(blender, levels):
    found = infos((0, 0))
    _, _, got = losses(blender, levels, found)
    assert float(got["loss_mask"].detach()) == 0
    sum(got.values()).backward()
    assert [name for name, p in blender.named_parameters() if p.grad is None] == []


def test_half_precision_makes_finite_losses(blender, levels):
    with torch.autocast("cpu", torch.bfloat16):
        _, _, got = losses(blender, levels, infos())
    assert all(torch.isfinite(loss) for loss in got.values())


def results(boxes):
    boxes = torch.tensor(boxes)
    count = len(boxes)
    return InstanceData(
        bboxes=boxes,
        scores=torch.linspace(0.9, 0.5, count),
        labels=torch.arange(count),
        attention=torch.zeros(count, 2, 5, 5),
    )


BOXES = [[-10.0, -8, 30, 40], [20, 10, 120, 90], [100, 5, 130, 30], [10, 70, 40, 90], [4, 5, 9, 9]]


def predict(blender, logits, rescale=False, **changes):
    """Of an image of 48 x 64 pixels, resized from 96 x 192."""
    blender.test_cfg = ConfigDict(mask_thr=0.5, **changes)
    meta = dict(img_shape=(48, 64), ori_shape=(96, 192), scale_factor=(1 / 3, 1 / 2))
    (found,) = blender.predict_by_feat(logits, [meta], [results(BOXES)], rescale=rescale)
    return found


@pytest.fixture
def logits():
    return torch.randn(5, 10, 10, generator=torch.Generator().manual_seed(3))


def paste(logits, box, rows, cols):
    part, _ = _do_paste_mask(logits.sigmoid()[None, None], box[None], rows, cols, skip_empty=False)
    return part[0] >= 0.5


def test_boxes_are_clipped_and_those_outside_dropped(blender, logits):
    found = predict(blender, logits)
    clipped = torch.tensor([[0.0, 0, 30, 40], [20, 10, 64, 48], [4, 5, 9, 9]])
    assert torch.equal(found.bboxes, clipped) and found.labels.tolist() == [0, 1, 4]
    assert found.masks.shape == (3, 48, 64) and found.masks.dtype is torch.bool
    assert set(found.keys()) == {"bboxes", "scores", "labels", "masks"}
    for mask, box, own in zip(found.masks, clipped, logits[[0, 1, 4]], strict=True):
        assert torch.equal(mask, paste(own, box, 48, 64))


def test_masks_over_the_boxes_they_were_predicted_for(blender, logits):
    found = predict(blender, logits, paste_clipped=False)
    assert torch.equal(found.bboxes, predict(blender, logits).bboxes)
    whole = torch.tensor(BOXES)[[0, 1, 4]]
    for mask, box, own in zip(found.masks, whole, logits[[0, 1, 4]], strict=True):
        assert torch.equal(mask, paste(own, box, 48, 64))


def test_rescaling(blender, logits):
    found = predict(blender, logits, rescale=True)
    expected = torch.tensor([[0.0, 0, 90, 80], [60, 20, 192, 96], [12, 10, 27, 18]])
    torch.testing.assert_close(found.bboxes, expected)
    assert found.masks.shape == (3, 96, 192)
    for mask, box, own in zip(found.masks, expected, logits[[0, 1, 4]], strict=True):
        assert (mask != paste(own, box, 96, 192)).float().mean() < 1e-3


def test_threshold(blender, logits):
    blender.test_cfg = ConfigDict(mask_thr=0.7)
    meta = dict(img_shape=(48, 64), ori_shape=(48, 64), scale_factor=(1.0, 1.0))
    (found,) = blender.predict_by_feat(logits, [meta], [results(BOXES)], rescale=True)
    part, _ = _do_paste_mask(
        logits[4].sigmoid()[None, None], torch.tensor([BOXES[4]]), 48, 64, skip_empty=False
    )
    assert torch.equal(found.masks[2], part[0] >= 0.7)


def test_nothing_found(blender):
    meta = dict(img_shape=(48, 64), ori_shape=(96, 192), scale_factor=(1 / 3, 1 / 2))
    empty = results(np.zeros((0, 4), np.float32))
    both = [copy.deepcopy(empty), results(BOXES)]
    found = blender.predict_by_feat(torch.zeros(5, 10, 10), [meta, meta], both, rescale=True)
    assert found[0].masks.shape == (0, 96, 192) and found[0].bboxes.shape == (0, 4)
    assert len(found[1]) == 3
    assert paste_masks(torch.zeros(0, 3, 3), torch.zeros(0, 4), 5, 6, 0.5).shape == (0, 5, 6)


def test_a_probability_at_the_threshold_belongs_to_the_mask():
    box = torch.tensor([[0.0, 0, 4, 4]])
    assert paste_masks(torch.full((1, 4, 4), 0.5), box, 4, 4, 0.5).all()
