"""The free functions of MR R-CNN."""

import torch
from mmdet.models.roi_heads.mask_heads import FCNMaskHead

from mmdet_plus.mr_rcnn.guidance import (
    average_scores,
    class_probability,
    guidance_classes,
    inherited_assignment,
    run_with_conv_features,
    select_by_class,
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


def test_conv_features_are_those_before_the_upsampling():
    head = FCNMaskHead(num_convs=4, in_channels=6, conv_out_channels=8, num_classes=3)
    feats = torch.randn(2, 6, 14, 14)
    logits, kept = run_with_conv_features(head, feats)
    expected = feats
    for conv in head.convs:
        expected = conv(expected)
    assert torch.equal(kept, expected)
    assert torch.equal(logits, head(feats))
    assert not head.convs[-1]._forward_hooks, "the hook must not outlive the call"


def test_selection_keeps_track_of_the_row():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60]])
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.9, 0.02, 0.08], [0.04, 0.7, 0.26]])
    cfg = dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=10)
    dets, labels, rows = select_by_class(boxes, scores, cfg)
    # Class 0: row 1 removes row 0. Class 1: rows 2 and 0 lie apart; row 1 is under the threshold.
    assert list(zip(labels.tolist(), rows.tolist(), strict=True)) == [(0, 1), (1, 2), (1, 0)]
    assert torch.equal(dets[:, :4], boxes[rows])
    cfg["max_per_img"] = 1
    assert select_by_class(boxes, scores, cfg)[2].tolist() == [1]


def test_inherited_assignment_leaves_boxes_without_a_side_out():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 5, 5, 9], [1, 1, 8, 8], [3, 3, 3, 3]])
    result = inherited_assignment(torch.tensor([1, 0]), torch.tensor([7, 4]), 2, boxes)
    assert result.gt_inds.tolist() == [2, -1, 0, 0]
    assert result.labels.tolist() == [7, 4, -1, -1]
