"""OANet's ranking head: its canvas, its scores, and its place in a model."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from tiny_mr_rcnn import TWO_IMAGES
from tiny_refine import (
    THINGS,
    build,
    found,
    losses_of,
    make_panoptic_batch,
    model_cfg,
    truth,
)

from mmdet_plus.refine import SpatialRankingHead
from mmdet_plus.refine.spatial_ranking_head import LargeKernelConv

ONES = torch.ones(4)


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = SpatialRankingHead(THINGS, score_thr=0.0, channels=8)
    head.init_weights()
    return head


def test_a_large_kernel_reaches_as_far_as_its_size():
    conv = LargeKernelConv(1, 4, 1, 7)
    x = torch.zeros(1, 1, 21, 21, requires_grad=True)
    conv(x)[0, 0, 10, 10].backward()
    seen = x.grad[0, 0] != 0
    assert seen[7:14, 7:14].all() and seen.sum() == 49
    with pytest.raises(ValueError, match="odd"):
        LargeKernelConv(1, 4, 1, 6)


def test_the_canvas_holds_each_class_s_masks(head):
    results = found()
    labels = torch.tensor([0, 0, 2])
    canvas = head.paint(results.masks, labels)
    assert torch.equal(canvas[0].bool(), results.masks[0] | results.masks[1])
    assert not canvas[1].any() and torch.equal(canvas[2].bool(), results.masks[2])
    assert canvas.max() == 1


@pytest.mark.parametrize("front", [0, 1])
def test_it_learns_which_class_lies_on_top(head, front):
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-2)
    results, samples = [found(), found()], [truth(front), truth(front)]
    first = head.loss((), results, samples)["loss_ranking"]
    for _ in range(40):
        losses = head.loss((), results, samples)
        optimizer.zero_grad()
        losses["loss_ranking"].backward()
        optimizer.step()
    assert losses["loss_ranking"] < 0.3 * first and losses["acc_ranking"] > 95
    ranking = head.predict((), [found()], [ONES])[0].ranking_scores
    assert ranking[front] > ranking[1 - front] + 0.1
    # The square that is alone is sure to be its own.
    assert ranking[2] > 0.9


def test_scores_are_means_over_the_masks(head, monkeypatch):
    probs = torch.full((THINGS, 16, 16), 0.1)
    probs[0, :, :5] = 0.8  # of the first square, 4 to 36, the part left of 20
    monkeypatch.setattr(head.conv, "forward", lambda canvas: probs.log()[None])
    (results,) = head.predict((), [found()], [ONES])
    normal = probs / probs.sum(0)
    expected = (normal[0, :, 1:5].mean() * 4 + normal[0, :, 5:9].mean() * 4) / 8
    torch.testing.assert_close(results.ranking_scores[0], expected)


def test_the_canvas_is_a_quarter_of_the_network_s_input(head, monkeypatch):
    sizes = []

    def conv(canvas):
        sizes.append(tuple(canvas.shape[-2:]))
        return canvas

    monkeypatch.setattr(head.conv, "forward", conv)
    head.predict((), [found(), found()], [ONES, torch.tensor([2.0, 0.5, 2.0, 0.5])])
    assert sizes == [(16, 16), (8, 32)]


def test_low_scores_are_neither_painted_nor_ranked(head):
    alone = head.predict((), [found()[:2]], [ONES])[0].ranking_scores
    head.score_thr = 0.75
    ranking = head.predict((), [found()], [ONES])[0].ranking_scores
    assert ranking[2] == 0
    torch.testing.assert_close(ranking[:2], alone)
    head.score_thr = 0.99
    assert head.predict((), [found()], [ONES])[0].ranking_scores.tolist() == [0, 0, 0]
    # Training has a threshold of its own.
    assert head.loss((), [found()], [truth(0)])["loss_ranking"] > 0
    head.train_score_thr = 0.99
    assert head.loss((), [found()], [truth(0)])["loss_ranking"] == 0


def test_nothing_to_learn_leaves_no_parameter_out(head):
    empty = truth(0)
    empty.gt_instances = empty.gt_instances[:0]
    for results, sample in ((found()[:0], truth(0)), (found(), empty)):
        losses = head.loss((), [results], [sample])
        assert losses["loss_ranking"] == 0 and losses["acc_ranking"] == 100 / THINGS
        losses["loss_ranking"].backward()
    assert all(parameter.grad is not None for parameter in head.parameters())
    assert head.predict((), [found()[:0]], [ONES])[0].ranking_scores.shape == (0,)


@pytest.fixture(scope="module")
def batch():
    return make_panoptic_batch(TWO_IMAGES)


@pytest.mark.parametrize("occlusion_only", [False, True])
def test_in_the_model(batch, occlusion_only):
    cfg = model_cfg(1)
    cfg.occlusion_head = ConfigDict(
        type="SpatialRankingHead", num_classes=THINGS, score_thr=0.0, channels=4
    )
    cfg.panoptic_fusion_head.type = "SpatialRankingFusion"
    cfg.update(occlusion_only=occlusion_only)
    model = build(cfg).train()
    losses = losses_of(model, batch)
    assert {"loss_ranking", "acc_ranking"} <= losses.keys()
    assert ("loss_seg" in losses) is not occlusion_only
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.occlusion_head.parameters())
    data = model.eval().data_preprocessor(copy.deepcopy(batch), False)
    with torch.no_grad():
        samples = model.predict(data["inputs"], data["data_samples"])
    assert all(sample.pred_panoptic_seg.sem_seg.shape == (1, 96, 96) for sample in samples)
