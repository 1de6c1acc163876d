"""MR R-CNN whose two mask branches have the techniques of MaskPlus."""

import copy

import pytest
import torch
from mmengine.structures import InstanceData
from tiny_maskplus import (
    SETTINGS,
    build,
    mask_rcnn_cfg,
    mr_rcnn_cfg,
    name_of,
    predict,
    same_predictions,
    step,
    two_images,
    with_maskplus,
)
from tiny_mr_rcnn import losses_of, total
from torch import nn

HANDFUL = [*({name: value} for name, value in SETTINGS.items()), SETTINGS]
BRANCHES = ("mask_head", "refining_mask_head")


@pytest.fixture(scope="module")
def mr_rcnn():
    """Config of MR R-CNN; everything detected is refined."""
    cfg = mr_rcnn_cfg()
    cfg.test_cfg.rcnn.candidates = dict(score_thr=0.0, max_per_img=30)
    return cfg


@pytest.fixture(scope="module")
def mask_rcnn():
    """A plain Mask R-CNN of mmdet."""
    return build(mask_rcnn_cfg(), seed=1)


@pytest.fixture
def batch():
    return two_images()


@pytest.mark.parametrize("switches", HANDFUL, ids=name_of)
def test_two_steps_reach_everything(mr_rcnn, switches, batch):
    model = build(with_maskplus(mr_rcnn, **switches))
    head, on = model.roi_head, set(switches)
    for branch in (head.mask_head, head.refining_mask_head):
        assert (branch.deconv_pyramid is not None) == ("deconv_pyramid" in on)
        assert (branch.boundary_refinement is not None) == ("boundary_refinement" in on)
        assert (branch.quasi_branch is not None) == ("quasi_multitask" in on)
    assert hasattr(head.mask_roi_extractor, "fusion") == ("contextual_fusion" in on)

    losses = losses_of(model, batch)
    expected = {f"{stage}loss_mask" for stage in ("", "refining.")}
    if "quasi_multitask" in on:
        expected |= {f"{name}_quasi" for name in expected}
    assert {name for name in losses if "mask" in name} == expected
    for _ in range(2):
        assert torch.isfinite(total(losses))
        assert step(model, losses) == []
        losses = losses_of(model, batch)
    # By the second step everything that started at zero has let the gradient through.
    dead = [
        name
        for name, p in head.named_parameters()
        if p.ndim > 1 and not p.grad.abs().sum() > 0 and "bbox" not in name
    ]
    assert dead == []
    assert head.fusion.weight.grad.abs().sum() > 0
    assert head.fusion.bias.grad.abs().sum() > 0
    for result in predict(model, batch):
        assert len(result) > 0 and result.masks.shape == (len(result), 64, 64)


def test_a_batch_is_learnt(mr_rcnn, batch):
    model = build(with_maskplus(mr_rcnn, **SETTINGS))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    history = []
    torch.manual_seed(0)
    for _ in range(15):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append([value.item() for name, value in losses.items() if "loss_mask" in name])
    history = torch.tensor(history)
    assert history.shape == (15, 4)
    assert (history[-3:].mean(0) < 0.8 * history[:3].mean(0)).all(), history


def test_with_all_off_it_is_mr_rcnn(mr_rcnn, batch):
    theirs, ours = build(mr_rcnn), build(with_maskplus(mr_rcnn))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    values = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        losses = losses_of(model, batch)
        total(losses).backward()
        values.append({n: v for n, v in losses.items() if not isinstance(v, list)})
    assert values[0].keys() == values[1].keys()
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad), name
    assert same_predictions(predict(ours, batch), predict(theirs, batch))


@pytest.mark.parametrize("switches", HANDFUL, ids=name_of)
@pytest.mark.parametrize("init", [True, False], ids=["", "no-init"])
def test_a_plain_mask_rcnn_starts_both_branches(mr_rcnn, mask_rcnn, switches, init, batch):
    ours = build(with_maskplus(mr_rcnn, **switches), seed=2, init=init)
    plain = build(mr_rcnn, seed=3)
    for model in (ours, plain):
        keys = model.load_state_dict(mask_rcnn.state_dict(), strict=False)
        assert keys.unexpected_keys == []
        assert not any("quasi_branch" in name for name in keys.missing_keys)
    weights = mask_rcnn.state_dict()
    for branch in BRANCHES:
        own = getattr(ours.roi_head, branch).state_dict()
        for name, value in mask_rcnn.roi_head.mask_head.state_dict().items():
            assert torch.equal(own[name], value) and f"roi_head.mask_head.{name}" in weights
    # What MR R-CNN predicts from these weights, so do we.
    assert same_predictions(predict(ours, batch), predict(plain, batch))


def test_features_of_the_vanilla_branch_are_those_before_the_pyramid(mr_rcnn):
    """F^- is read after the convolutions; P comes from all of the branch."""
    head = build(with_maskplus(mr_rcnn, **SETTINGS)).roi_head.eval()
    for parameter in head.mask_head.parameters():
        nn.init.normal_(parameter, std=0.2)
    levels = tuple(torch.randn(1, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64))
    x = head.with_image_features(levels, [(64, 64)])
    rois = torch.tensor([[0, 10.0, 10, 50, 60]])
    with torch.no_grad():
        features = head.conv_features(x, rois)
        y = head.mask_roi_extractor(x, rois)
        pooled = y
        for conv in head.mask_head.convs:
            y = conv(y)
        assert torch.equal(features, y)
        prob = head.probability(features, torch.tensor([2]))
        assert torch.equal(prob, head.mask_head(pooled)[:, 2].sigmoid())
        # The guidance pass of a training gives P too, and no masks of another size.
        head.train()
        assert head.probability(features, torch.tensor([2])).shape == (1, 28, 28)


def test_both_branches_see_the_context(mr_rcnn, batch):
    model = build(with_maskplus(mr_rcnn, contextual_fusion=[8, 16])).eval()
    calls = []
    fusion = model.roi_head.mask_roi_extractor.fusion
    fusion.register_forward_hook(lambda m, args, y: calls.append(tuple(args[1].shape)))
    predict(model, batch)
    # Candidates on the way, and detections in the end.
    assert calls == [(2, 16, 14, 14)] * 2
    losses_of(model.train(), batch)
    # The vanilla loss, the guidance pass, F^- and the refining loss.
    assert calls == [(2, 16, 14, 14)] * 6


def test_counters_can_run_it(mr_rcnn, batch):
    model = build(with_maskplus(mr_rcnn, **SETTINGS)).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), training=False)
    with torch.no_grad():
        (outputs,) = model(**data, mode="tensor")
    assert outputs[2].shape[1:] == (28, 28) and outputs[5].shape[1:] == (3, 28, 28)


@pytest.mark.parametrize("boxes", [[[], []], [[], [(8, 8, 40, 44)]]], ids=["none", "one"])
def test_images_without_ground_truth(mr_rcnn, boxes):
    model = build(with_maskplus(mr_rcnn, **SETTINGS))
    losses = losses_of(model, two_images(boxes))
    assert torch.isfinite(total(losses))
    assert step(model, losses) == []
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        assert torch.isfinite(value).all(), name


def test_no_proposal_and_no_detection(mr_rcnn, batch):
    model = build(with_maskplus(mr_rcnn, **SETTINGS)).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), training=False)
    none = [InstanceData(bboxes=torch.zeros(0, 4)) for _ in range(2)]
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        results = model.roi_head.predict(x, none, data["data_samples"], rescale=True)
    model.roi_head.test_cfg.score_thr = 1.0
    for result in (*results, *predict(model, batch)):
        assert len(result) == 0 and result.masks.shape == (0, 64, 64)


def test_half_precision(mr_rcnn, batch):
    model = build(with_maskplus(mr_rcnn, **SETTINGS)).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        proposals = model.rpn_head.predict(x, data["data_samples"], rescale=False)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.roi_head.loss(x, proposals, data["data_samples"])
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.roi_head.parameters())


def test_weights_without_the_scaffold_are_whole(mr_rcnn):
    """As :mod:`tests.mmdet_plus.maskplus.test_quasi_multitask` has it, in two branches."""
    trained = build(with_maskplus(mr_rcnn, **SETTINGS), seed=1)
    rest = {k: v for k, v in SETTINGS.items() if k != "quasi_multitask"}
    other = build(with_maskplus(mr_rcnn, **rest), seed=2)
    assert str(other.load_state_dict(trained.state_dict())) == "<All keys matched successfully>"
    assert str(trained.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    cfg = with_maskplus(mr_rcnn, **SETTINGS)
    cfg.train_cfg = None
    assert list(build(cfg).state_dict()) == list(other.state_dict())
