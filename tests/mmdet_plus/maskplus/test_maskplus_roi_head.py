"""The RoI heads: all combinations of switches on Mask R-CNN, some on its cascade; edge cases."""

import copy
from types import SimpleNamespace

import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.roi_heads import CascadeRoIHead, SingleRoIExtractor, StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.registry import HOOKS
from mmengine.runner.checkpoint import load_state_dict
from mmengine.structures import InstanceData
from tiny_maskplus import (
    COMBINATIONS,
    SETTINGS,
    build,
    name_of,
    predict,
    same_predictions,
    step,
    two_images,
    with_maskplus,
)
from tiny_mr_rcnn import losses_of, total
from tiny_refine import CHANNELS, make_panoptic_batch, model_cfg
from torch import nn

from mmdet_plus.maskplus import MaskPlusCascadeRoIHead, MaskPlusHead, MaskPlusRoIHead
from mmseg_plus.common.config import read_config

# A handful for the cascade: each alone, and all.
HANDFUL = [dict(), *({name: value} for name, value in SETTINGS.items()), SETTINGS]
PARTS = {
    "contextual_fusion": "mask_roi_extractor.fusion",
    "deconv_pyramid": "mask_head.deconv_pyramid",
    "boundary_refinement": "mask_head.boundary_refinement",
    "quasi_multitask": "mask_head.quasi_branch",
}


def parts_of(model, stages):
    """The parts that the techniques have, of each stage, by switch."""
    head, found = model.roi_head, {}
    for switch, path in PARTS.items():
        name, _, part = path.partition(".")
        modules = [getattr(head, name)] if stages == 1 else list(getattr(head, name))
        assert len(modules) == stages
        found[switch] = [getattr(module, part, None) for module in modules]
    return found


def as_list(value):
    return value if isinstance(value, list) else [value]


def bias(model, weight):
    """Biased training as in its first half."""
    hook = HOOKS.build(dict(type="BiasedTrainingHook", weight=weight))
    runner = SimpleNamespace(
        model=model,
        iter=0,
        epoch=0,
        max_iters=2,
        train_loop=None,
        message_hub=SimpleNamespace(update_scalar=lambda *args: None),
    )
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)


def check_combination(cfg, switches, biased, stages, batch):
    model = build(with_maskplus(cfg, **switches))
    for switch, modules in parts_of(model, stages).items():
        assert all((module is not None) == (switch in switches) for module in modules), switch
    heads = model.roi_head.mask_head
    assert all(type(head) is MaskPlusHead for head in ([heads] if stages == 1 else heads))

    torch.manual_seed(1)
    plain = losses_of(model, batch)
    names = ["loss_mask"] + ["loss_mask_quasi"] * ("quasi_multitask" in switches)
    if stages > 1:
        names = [f"s{stage}.{name}" for stage in range(stages) for name in names]
    assert [name for name in plain if "mask" in name] == names
    if biased:
        bias(model, 1.5)
        torch.manual_seed(1)
        # Batch normalisation has moved its averages, which no loss of a training reads.
        weighed = losses_of(model, batch)
        assert list(weighed) == list(plain)
        for name, value in plain.items():
            factor = 1.5 if name in names else 1.0
            for a, b in zip(as_list(weighed[name]), as_list(value), strict=True):
                torch.testing.assert_close(a, factor * b)

    assert torch.isfinite(total(losses_of(model, batch)))
    assert step(model, losses_of(model, batch)) == []
    # The last layers have left zero, so that everything before them learns now.
    assert step(model, losses_of(model, batch)) == []
    for switch, modules in parts_of(model, stages).items():
        for module in modules:
            if module is not None:
                dead = [
                    name
                    for name, p in module.named_parameters()
                    if p.ndim > 1 and not p.grad.abs().sum() > 0
                ]
                assert dead == [], switch
    for result in predict(model, batch):
        assert result.masks.shape == (len(result), 64, 64) and len(result) == 10


@pytest.mark.parametrize("biased", [False, True], ids=["", "biased"])
@pytest.mark.parametrize("switches", COMBINATIONS, ids=name_of)
def test_any_combination_on_mask_rcnn(mask_rcnn, switches, biased, batch):
    check_combination(mask_rcnn, switches, biased, 1, batch)


@pytest.mark.parametrize(
    ("switches", "biased"), [(s, bool(i % 2)) for i, s in enumerate(HANDFUL)], ids=str
)
def test_combinations_on_every_stage_of_the_cascade(cascade, switches, biased, batch):
    check_combination(cascade, switches, biased, 3, batch)


@pytest.mark.parametrize(
    "switches", [dict(boundary_refinement="gcn"), dict(quasi_multitask=2)], ids=name_of
)
def test_the_other_settings(mask_rcnn, switches, batch):
    check_combination(mask_rcnn, switches, False, 1, batch)


def test_a_batch_is_learnt(mask_rcnn, batch):
    """The mask losses of all techniques together fall."""
    model = build(with_maskplus(mask_rcnn, **SETTINGS))
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    history = []
    torch.manual_seed(0)
    for _ in range(25):
        losses = losses_of(model, batch)
        optimizer.zero_grad()
        total(losses).backward()
        optimizer.step()
        history.append([losses[name].item() for name in ("loss_mask", "loss_mask_quasi")])
    history = torch.tensor(history)
    assert (history[-5:].mean(0) < 0.7 * history[:5].mean(0)).all(), history


# All off


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
def test_with_all_off_it_is_the_model_of_mmdet(name, request, batch):
    cfg = request.getfixturevalue(name)
    theirs, ours = build(cfg), build(with_maskplus(cfg))
    assert isinstance(ours.roi_head, (MaskPlusRoIHead, MaskPlusCascadeRoIHead))
    assert isinstance(ours.roi_head, (StandardRoIHead, CascadeRoIHead))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for model in (ours, theirs):
        torch.manual_seed(3)
        model.losses = losses_of(model, batch)
        total(model.losses).backward()
    assert list(ours.losses) == list(theirs.losses)
    for name, value in theirs.losses.items():
        for a, b in zip(as_list(ours.losses[name]), as_list(value), strict=True):
            assert torch.equal(a, b), name
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b) and torch.equal(a.grad, b.grad), name
    assert same_predictions(predict(ours, batch), predict(theirs, batch))
    ours.load_state_dict(build(cfg, seed=1).state_dict(), strict=True)


# From a trained Mask R-CNN


def check_start(cfg, switches, init, batch):
    theirs = build(cfg, seed=1)
    ours = build(with_maskplus(cfg, **switches), seed=2, init=init)
    assert not same_predictions(predict(ours, batch), predict(theirs, batch))
    keys = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    added = set(ours.state_dict()) - set(theirs.state_dict())
    scaffold = ("quasi_branch.", "num_batches_tracked")
    assert set(keys.missing_keys) == {n for n in added if not any(s in n for s in scaffold)}
    assert same_predictions(predict(ours, batch), predict(theirs, batch))
    # It is the last layers that keep the techniques still.
    for module in ours.roi_head.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and not module.weight.any():
            nn.init.normal_(module.weight)
    still = not set(switches) - {"quasi_multitask"}
    assert same_predictions(predict(ours, batch), predict(theirs, batch)) == still


@pytest.mark.parametrize("init", [True, False], ids=["", "no-init"])
@pytest.mark.parametrize(
    "switches",
    [*COMBINATIONS, dict(boundary_refinement="gcn"), dict(quasi_multitask=2)],
    ids=name_of,
)
def test_every_variant_starts_as_the_mask_rcnn_it_is_given(mask_rcnn, switches, init, batch):
    check_start(mask_rcnn, switches, init, batch)


@pytest.mark.parametrize("switches", HANDFUL[1:], ids=name_of)
def test_the_cascade_starts_as_the_cascade_it_is_given(cascade, switches, batch):
    check_start(cascade, switches, True, batch)


@pytest.mark.parametrize("switches", HANDFUL, ids=name_of)
@pytest.mark.parametrize("agnostic", [True, False], ids=["agnostic", "by-class"])
def test_a_mask_rcnn_starts_every_stage_of_the_cascade(mask_rcnn, cascade, switches, agnostic):
    cfg = with_maskplus(cascade, **switches)
    for box_head in cfg.roi_head.bbox_head:
        box_head.reg_class_agnostic = agnostic
    theirs, ours = build(mask_rcnn, seed=1), build(cfg, seed=2)
    weights = theirs.state_dict()
    # mmengine's loader, as load_from has it: a shape that differs would be an error in torch's.
    load_state_dict(ours, weights, logger=None)
    keys = ours.load_state_dict(weights, strict=False)
    assert keys.unexpected_keys == [] and weights.keys() == theirs.state_dict().keys()
    plain = theirs.roi_head
    for stage in range(3):
        for name in ("mask_head", "bbox_head"):
            own = getattr(ours.roi_head, name)[stage].state_dict()
            for part, value in getattr(plain, name).state_dict().items():
                if agnostic and part.startswith("fc_reg."):
                    assert f"roi_head.{name}.{stage}.{part}" in keys.missing_keys
                else:
                    assert torch.equal(own[part], value)
    heads = {name for name in keys.missing_keys if "_head" in name}
    added = set(ours.state_dict()) - set(build(cascade).state_dict())
    assert {n for n in heads if n not in added} == {
        f"roi_head.bbox_head.{stage}.fc_reg.{kind}"
        for stage in range(3 if agnostic else 0)
        for kind in ("weight", "bias")
    }


def test_what_no_stage_has_is_not_passed_over(mask_rcnn, cascade):
    pyramid = build(with_maskplus(mask_rcnn, deconv_pyramid=True))
    keys = build(with_maskplus(cascade)).load_state_dict(pyramid.state_dict(), strict=False)
    assert any("mask_head.2.deconv_pyramid" in name for name in keys.unexpected_keys)


# With other models


def test_in_a_panoptic_model(mask_rcnn):
    cfg = model_cfg(0)
    cfg.type = "PanopticFPN"
    cfg.roi_head = with_maskplus(mask_rcnn, **dict(SETTINGS, contextual_fusion=[CHANNELS])).roi_head
    for extractor in (cfg.roi_head.bbox_roi_extractor, cfg.roi_head.mask_roi_extractor):
        extractor.out_channels = CHANNELS
    for head in (cfg.roi_head.bbox_head, cfg.roi_head.mask_head):
        head.in_channels = CHANNELS
    cfg.semantic_head.update(type="PanopticFPNHead")
    cfg.panoptic_fusion_head.update(type="HeuristicFusionHead")
    model = build(cfg)
    panoptic = make_panoptic_batch([[(4, 6, 40, 44), (20, 30, 62, 60)], [(10, 10, 50, 54)]])
    for _ in range(2):
        losses = losses_of(model, panoptic)
        assert {"loss_mask", "loss_mask_quasi", "loss_seg"} <= set(losses)
        assert step(model, losses) == []
    model.eval()
    with torch.no_grad():
        for sample in model.test_step(copy.deepcopy(panoptic)):
            assert (sample.pred_panoptic_seg.sem_seg >= INSTANCE_OFFSET).any()


def test_with_a_swin_transformer(mask_rcnn, batch):
    """As of configs/maskplus/maskplus_swin-t-p4-w7_fpn_1x_coco.py, of 8 channels."""
    cfg = copy.deepcopy(mask_rcnn)
    swin = copy.deepcopy(read_config("maskplus_swin-t-p4-w7_fpn_1x_coco").model.backbone)
    swin.update(embed_dims=8, num_heads=[1, 2, 4, 8], init_cfg=None)
    cfg.backbone, cfg.neck.in_channels = swin, [8, 16, 32, 64]
    check_combination(cfg, SETTINGS, True, 1, batch)


# Configs


def test_configs_may_be_of_ours_or_of_mmdet_and_a_list_for_the_stages(cascade, mask_rcnn):
    for kinds in (
        ("mmdet.FCNMaskHead", "mmdet.SingleRoIExtractor"),
        (FCNMaskHead, SingleRoIExtractor),
    ):
        scoped = with_maskplus(mask_rcnn, **SETTINGS)
        scoped.roi_head.mask_head.type, scoped.roi_head.mask_roi_extractor.type = kinds
        assert all(m is not None for (m,) in parts_of(build(scoped), 1).values())

    cfg = with_maskplus(cascade, **SETTINGS)
    for name, kind in (("mask_head", "MaskPlusHead"), ("mask_roi_extractor", "SingleRoIExtractor")):
        one = {**cfg.roi_head[name], "type": kind}
        cfg.roi_head[name] = [copy.deepcopy(one) for _ in range(3)]
    cfg.roi_head.mask_head[1].quasi_loss_weight = 0.25
    before = copy.deepcopy(cfg)
    model = build(cfg)
    assert cfg == before
    assert all(m is not None for modules in parts_of(model, 3).values() for m in modules)
    assert [head.quasi_loss_weight for head in model.roi_head.mask_head] == [1, 0.25, 1]


def test_what_the_mask_head_says_itself_stays(mask_rcnn):
    own = dict(type="MaskPlusHead", deconv_pyramid=True, quasi_multitask=2)
    head = build(with_maskplus(mask_rcnn, own, boundary_refinement="gcn")).roi_head.mask_head
    assert head.deconv_pyramid is not None and head.quasi_branch.scale == 2
    assert type(head.boundary_refinement).__name__ == "GCNBoundaryRefinement"
    # Where the RoI head says something else, that counts.
    head = build(with_maskplus(mask_rcnn, own, quasi_multitask=0.5)).roi_head.mask_head
    assert head.quasi_branch.scale == 0.5


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(contextual_fusion=True), r"filters \(720, 512, 512, 256\) must equal the 16"),
        (dict(contextual_fusion=[16, 8]), "must equal the 16 channels"),
        (dict(boundary_refinement="none"), "one of improved, gcn"),
        (dict(quasi_multitask=True), "must be 0.5 or 2, got True"),
        (dict(mask_head=dict(type="HTCMaskHead")), "mask_head of type FCNMaskHead, not HTC"),
        (
            dict(contextual_fusion=[16], mask_roi_extractor=dict(type="GenericRoIExtractor")),
            "mask_roi_extractor of type SingleRoIExtractor, not Generic",
        ),
        (dict(contextual_fusion=[16], mask_roi_extractor=None), "SingleRoIExtractor, not None"),
    ],
)
def test_wrong_settings_are_named(mask_rcnn, change, text):
    cfg = with_maskplus(mask_rcnn)
    cfg.roi_head.update(change)
    with pytest.raises(ValueError, match=text):
        build(cfg)


@pytest.mark.parametrize("switch", [None, False, []])
def test_fusion_that_is_off_needs_no_extractor_of_its_own(mask_rcnn, switch, batch):
    """Without one, mmdet's head pools for boxes and masks at once."""
    cfg = with_maskplus(mask_rcnn, contextual_fusion=switch, deconv_pyramid=True)
    del cfg.roi_head["mask_roi_extractor"]
    cfg.roi_head.bbox_roi_extractor.roi_layer.output_size = 14
    cfg.roi_head.bbox_head.roi_feat_size = 14
    model = build(cfg)
    assert step(model, losses_of(model, batch)) == []
    assert [len(result) for result in predict(model, batch)] == [10, 10]


# Odd inputs


def statistics(model):
    return {
        name: buffer.clone()
        for name, buffer in model.roi_head.named_buffers()
        if "boundary_refinement" in name
    }


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
@pytest.mark.parametrize("boxes", [[[], []], [[], [(8, 8, 40, 44)]]], ids=["none", "one"])
def test_images_without_ground_truth(name, boxes, request):
    model = build(with_maskplus(request.getfixturevalue(name), **SETTINGS))
    before = statistics(model)
    losses = losses_of(model, two_images(boxes))
    assert torch.isfinite(total(losses))
    masks = [value.item() for name, value in losses.items() if "loss_mask" in name]
    assert all((value > 0) == (len(boxes[1]) > 0) for value in masks)
    assert step(model, losses) == []
    assert all(torch.isfinite(p).all() for p in model.parameters())
    for name, buffer in statistics(model).items():
        assert torch.isfinite(buffer).all(), name
        # Where there is no RoI there is nothing to learn statistics from.
        assert torch.equal(buffer, before[name]) == (not boxes[1]), name


@pytest.mark.parametrize("training", [True, False])
def test_no_positive_roi(mask_rcnn, training):
    """All RoIs of the batch are background though there is ground truth."""
    cfg = with_maskplus(mask_rcnn, **SETTINGS)
    cfg.train_cfg.rcnn.sampler.add_gt_as_proposals = False
    cfg.train_cfg.rcnn.assigner.update(pos_iou_thr=0.99, neg_iou_thr=0.99, min_pos_iou=0.99)
    model = build(cfg)
    # Batch normalisation in either mode; the rest trains, for the branch to be there.
    model.train()
    model.roi_head.mask_head.boundary_refinement.train(training)
    before = statistics(model)
    losses = losses_of(model, two_images())
    assert losses["loss_cls"] > 0
    assert losses["loss_mask"] == losses["loss_mask_quasi"] == 0
    assert step(model, losses) == []
    assert all(torch.equal(buffer, before[n]) for n, buffer in statistics(model).items())
    assert all(torch.isfinite(p).all() for p in model.parameters())


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
def test_no_detection(name, request, batch):
    model = build(with_maskplus(request.getfixturevalue(name), **SETTINGS))
    model.roi_head.test_cfg.score_thr = 1.0
    for result in predict(model, batch):
        assert len(result) == 0 and result.masks.shape == (0, 64, 64)


def test_no_proposal(mask_rcnn, batch):
    model = build(with_maskplus(mask_rcnn, **SETTINGS)).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), training=False)
    none = [InstanceData(bboxes=torch.zeros(0, 4)) for _ in range(2)]
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        for result in model.roi_head.predict(x, none, data["data_samples"], rescale=True):
            assert len(result) == 0 and result.masks.shape == (0, 64, 64)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
def test_batch_sizes(name, size, request):
    model = build(with_maskplus(request.getfixturevalue(name), **SETTINGS))
    images = two_images([[(4 + 4 * i, 6, 40 + 4 * i, 44)] for i in range(size)])
    assert step(model, losses_of(model, images)) == []
    assert [len(result) for result in predict(model, images)] == [10] * size


def test_a_batch_gives_what_its_images_give(mask_rcnn, batch):
    model = build(with_maskplus(mask_rcnn, **SETTINGS))
    for module in (model.roi_head.mask_roi_extractor.fusion, model.roi_head.mask_head):
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.2)
    both = predict(model, batch)
    for image in range(2):
        alone = {name: values[image : image + 1] for name, values in batch.items()}
        (single,) = predict(model, alone)
        assert len(single) == len(both[image]) > 0
        torch.testing.assert_close(single.bboxes, both[image].bboxes, rtol=1e-3, atol=1e-2)
        assert (single.masks != both[image].masks).float().mean() < 0.01
    assert (both[0].masks != both[1].masks).float().mean() > 0.05


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
@pytest.mark.parametrize("empty", [False, True])
def test_half_precision(name, empty, request, batch):
    """The RoI head under autocast, as in mixed-precision training; with no RoI too."""
    model = build(with_maskplus(request.getfixturevalue(name), **SETTINGS)).eval()
    batch = two_images([[], []]) if empty else batch
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        proposals = model.rpn_head.predict(x, data["data_samples"], rescale=False)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.roi_head.loss(x, copy.deepcopy(proposals), data["data_samples"])
    assert torch.isfinite(total(losses))
    total(losses).backward()
    without = [n for n, p in model.roi_head.named_parameters() if p.grad is None]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.roi_head.parameters())
    model.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        results = model.roi_head.predict(x, proposals, data["data_samples"])
    assert all(len(r) == 10 and r.masks.shape == (10, 64, 64) for r in results)


@pytest.mark.parametrize("head", [dict(class_agnostic=True), dict(num_classes=1)], ids=str)
@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
def test_one_mask_for_all_classes(name, head, request):
    cfg = with_maskplus(request.getfixturevalue(name), head, **SETTINGS)
    if "num_classes" in head:
        boxes = cfg.roi_head.bbox_head
        for box in boxes if isinstance(boxes, list) else [boxes]:
            box.num_classes = 1
    model = build(cfg)
    images = two_images([[(4, 6, 40, 44)], [(10, 10, 50, 54)]])
    losses = losses_of(model, images)
    assert torch.isfinite(total(losses)) and step(model, losses) == []
    heads = model.roi_head.mask_head
    for mask_head in [heads] if name == "mask_rcnn" else heads:
        assert mask_head.boundary_refinement.residual.out_channels == 1
        assert mask_head.quasi_branch.conv_logits.out_channels == 1
    assert all(len(result) > 0 for result in predict(model, images))


@pytest.mark.parametrize(("scale", "size"), [(0.5, 8), (2, 32)])
def test_masks_of_another_size(mask_rcnn, scale, size, batch):
    """RoIs of 8 x 8 have masks of 16 x 16, and quasi masks of half or twice that."""
    cfg = with_maskplus(mask_rcnn, **{**SETTINGS, "quasi_multitask": scale})
    cfg.roi_head.mask_roi_extractor.roi_layer.output_size = 8
    cfg.train_cfg.rcnn.mask_size = 16
    model = build(cfg)
    seen = []
    branch = model.roi_head.mask_head.quasi_branch
    branch.loss_mask.register_forward_hook(lambda loss, args, y: seen.append(args[1].shape[1:]))
    assert step(model, losses_of(model, batch)) == []
    assert seen == [(size, size)]
