"""The free functions of MR R-CNN."""

import pytest
import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead

from mmdet_plus.mr_rcnn.guidance import (
    average_scores,
    class_probability,
    conv_features,
    guidance_classes,
    inherited_assignment,
    mask_logits,
    select_candidates,
    select_detections,
)


def test_background_takes_the_foreground_class_of_largest_score():
    labels = torch.tensor([1, 3, 3, 0])
    # Background itself scores highest in every row, and must not be taken.
    score = torch.tensor([[9.0, 0, 0, 99], [1, 5, 2, 99], [7, 5, 6, 99], [0, 0, 9, 99]])
    assert guidance_classes(labels, score).tolist() == [1, 1, 0, 0]


def test_no_roi_no_class():
    assert guidance_classes(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)).shape == (0,)


def test_scores_are_averaged_as_the_paper_writes():
    vanilla, refining = torch.tensor([2.0, -1.0]), torch.tensor([5.0, 2.0])
    assert average_scores(vanilla, refining, 0.0).tolist() == [2.0, -1.0]
    assert average_scores(vanilla, refining, 1.0).tolist() == [3.5, 0.5]
    assert average_scores(vanilla, refining, 0.5).tolist() == [3.0, 0.0]


def test_probability_is_that_of_the_class():
    logits = torch.randn(3, 4, 5, 5)
    prob = class_probability(logits, torch.tensor([2, 0, 3]))
    for k, c in enumerate([2, 0, 3]):
        torch.testing.assert_close(prob[k], logits[k, c].sigmoid())
    agnostic = class_probability(logits[:, :1], torch.tensor([2, 0, 3]))
    torch.testing.assert_close(agnostic, logits[:, 0].sigmoid())


@pytest.mark.parametrize("upsample", ["deconv", "bilinear", None])
def test_the_mask_head_in_two_parts_is_the_mask_head(upsample):
    head = FCNMaskHead(
        num_convs=4,
        in_channels=6,
        conv_out_channels=8,
        num_classes=3,
        upsample_cfg=dict(type=upsample, scale_factor=2),
    )
    feats = torch.randn(2, 6, 14, 14)
    features = conv_features(head, feats)
    assert torch.equal(features, head.convs[3](head.convs[2](head.convs[1](head.convs[0](feats)))))
    assert torch.equal(mask_logits(head, features), head(feats))


def test_candidates_keep_track_of_the_roi():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.9, 0.02, 0.08], [0.04, 0.7, 0.26]])
    cfg = dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10)
    chosen, labels, rows = select_candidates(boxes, scores, cfg)
    # Class 0: row 1 removes row 0. Class 1: rows 2 and 0 lie apart; row 1 is under the threshold.
    assert list(zip(labels.tolist(), rows.tolist(), strict=True)) == [(0, 1), (1, 2), (1, 0)]
    assert torch.equal(chosen, boxes[rows])
    cfg["max_per_img"] = 1
    assert select_candidates(boxes, scores, cfg)[2].tolist() == [1]
    # A box per class: class 1 of row 1 lies elsewhere.
    per_class = torch.cat([boxes, boxes + 100], 1)
    chosen, labels, rows = select_candidates(per_class, scores, cfg | dict(max_per_img=10))
    expected = [boxes[r] + 100 * c for c, r in zip(labels.tolist(), rows.tolist(), strict=True)]
    assert torch.equal(chosen, torch.stack(expected))


def test_detections_compete_in_their_class_alone():
    boxes = torch.tensor([[5.0, 5, 9, 9], [0, 0, 10, 10], [0, 0, 10, 11], [0, 0, 10, 10]])
    scores, classes = torch.tensor([0.04, 0.6, 0.9, 0.7]), torch.tensor([1, 0, 0, 1])
    cfg = dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10)
    dets, rows = select_detections(boxes, scores, classes, cfg)
    assert rows.tolist() == [2, 3]
    assert torch.equal(dets, torch.cat([boxes[rows], scores[rows, None]], 1))
    assert select_detections(boxes, scores, classes, cfg | dict(max_per_img=1))[1].tolist() == [2]
    everything = select_detections(boxes, scores, classes, cfg | dict(max_per_img=-1))
    assert everything[1].tolist() == [2, 3]
    dets, rows = select_detections(boxes, scores, classes, cfg | dict(score_thr=0.95))
    assert dets.shape == (0, 5) and rows.shape == (0,)


def test_inherited_assignment_leaves_boxes_without_a_side_out():
    boxes = torch.tensor(
        [[0.0, 0, 9, 9], [5, 5, 5, 9], [1, 1, 1.25, 8], [1, 1, 8, 8], [3, 3, 3, 3]]
    )
    result = inherited_assignment(torch.tensor([1, 0, 0]), torch.tensor([7, 4, 4]), 2, boxes)
    assert result.gt_inds.tolist() == [2, -1, 1, 0, 0]
    assert result.labels.tolist() == [7, 4, 4, -1, -1]
