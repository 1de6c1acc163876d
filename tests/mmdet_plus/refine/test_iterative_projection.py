"""IBPP: the equations, whose gradient goes where, and the RoI heads around them."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures import DetDataSample
from tiny_mr_rcnn import TWO_IMAGES
from tiny_refine import (
    CHANNELS,
    NORM,
    STUFF,
    THINGS,
    build,
    losses_of,
    make_panoptic_batch,
    model_cfg,
)

from mmdet_plus.engine import CPUAmpOptimWrapper
from mmdet_plus.refine import IterativeProjection
from mmplus_ops import roi_flatten

MASK_HEAD = dict(
    type="FCNMaskHead",
    num_convs=1,
    in_channels=CHANNELS,
    conv_out_channels=8,
    num_classes=THINGS,
)
ROIS = torch.tensor([[0.0, 8, 8, 40, 30], [1, 4, 10, 60, 61], [1, 20, 20, 50, 40]])
LABELS = torch.tensor([2, 0, 0])
SCORES = torch.tensor([0.9, 0.5, 0.25])


def projection(**changes):
    torch.manual_seed(0)
    settings = dict(num_iterations=2, mask_head=MASK_HEAD, num_stuff_classes=STUFF, norm_cfg=NORM)
    module = IterativeProjection(**(settings | changes))
    # Far from the start, where all logits are nearly 0.
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.double()


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return dict(
        roi_feats=draw(3, CHANNELS, 14, 14),
        sem_feats=draw(2, CHANNELS, 16, 16),
        seg_preds=draw(2, THINGS + STUFF, 16, 16),
    )


def run(module, t, features, seg_preds=None, **changes):
    values = dict(labels=LABELS, scores=SCORES.double()) | changes
    rois = ROIS.double()
    enhanced = module.enhance(features["roi_feats"], features["sem_feats"], rois)
    seg_preds = features["seg_preds"] if seg_preds is None else seg_preds
    return module(
        t, enhanced, rois, values["labels"], values["scores"], features["sem_feats"], seg_preds
    )


@pytest.mark.parametrize("weight", ["score", "none"])
def test_the_equations(features, weight):
    module = projection(canvas_weight=weight)
    rois = ROIS.double()
    f_sem = roi_align(features["sem_feats"], rois, 14, 0.25, 0, "avg", True)
    p_sem = roi_align(features["seg_preds"].softmax(1), rois, 14, 0.25, 0, "avg", True)
    wanted_masks = module.mask_heads[0](torch.cat([features["roi_feats"] + f_sem, p_sem], 1))
    chosen = torch.stack([wanted_masks[i, label] for i, label in enumerate(LABELS)]).sigmoid()
    if weight == "score":
        chosen = chosen * SCORES[:, None, None]
    canvas = torch.zeros(2, THINGS, 16, 16, dtype=torch.float64)
    for i, label in enumerate(LABELS):
        image = int(ROIS[i, 0])
        alone = roi_flatten(chosen[i : i + 1], rois[i : i + 1], LABELS[i : i + 1], THINGS, 2, 16)
        canvas[image, label] = torch.maximum(canvas[image, label], alone[image, label])
    head = module.semantic_heads[0]
    inner = F.conv2d(
        torch.cat([canvas, features["sem_feats"]], 1), head.conv.conv.weight, padding=1
    )
    inner = F.relu(F.group_norm(inner, 2, head.conv.norm.weight, head.conv.norm.bias))
    wanted_seg = F.conv2d(inner, head.conv_logits.weight, head.conv_logits.bias)
    masks, seg = run(module, 1, features)
    torch.testing.assert_close(masks, wanted_masks)
    torch.testing.assert_close(seg, wanted_seg)
    assert masks.shape == (3, THINGS, 28, 28) and seg.shape == (2, THINGS + STUFF, 16, 16)


def test_each_iteration_has_heads_of_its_own_unless_shared(features):
    apart, shared = projection(), projection(share_heads=True)
    assert len(apart.mask_heads) == len(apart.semantic_heads) == 2
    assert len(shared.mask_heads) == len(shared.semantic_heads) == 1
    for index in (0, 1):
        first, second = run(apart, 1, features)[index], run(apart, 2, features)[index]
        assert not torch.allclose(first, second)
        assert torch.equal(run(shared, 1, features)[index], run(shared, 2, features)[index])


def test_a_class_s_canvas_is_the_largest_of_its_instances(features):
    module = projection()
    with_all = run(module, 1, features)[1]
    surer = run(module, 1, features, scores=torch.tensor([0.9, 0.5, 0.5]).double())[1]
    assert not torch.allclose(with_all, surer)
    assert torch.allclose(with_all[0], surer[0]), "the other image's instance"


def test_gradients_flow_from_each_task_into_the_other_s_heads(features):
    module = projection()
    seg_preds = features["seg_preds"].requires_grad_()
    scores = SCORES.double().requires_grad_()
    _, first = run(module, 1, features, scores=scores)
    masks, _ = run(module, 2, features, seg_preds=first, scores=scores)
    # From the second masks through P_sem^(1) and the canvas into the first mask head ...
    masks.square().sum().backward(retain_graph=True)
    assert module.mask_heads[0].conv_logits.weight.grad.abs().sum() > 0
    assert module.semantic_heads[0].conv_logits.weight.grad.abs().sum() > 0
    assert seg_preds.grad.abs().sum() > 0
    # ... and from the first semantics into the first mask head, but into no box score.
    module.zero_grad()
    first.square().sum().backward()
    assert module.mask_heads[0].conv_logits.weight.grad.abs().sum() > 0
    assert module.mask_heads[1].conv_logits.weight.grad is None
    assert scores.grad is None


def test_no_instances_leave_the_semantics_to_f_sem(features):
    module = projection()
    none = torch.zeros(0, dtype=torch.long)
    rois = ROIS[:0].double()
    enhanced = module.enhance(features["roi_feats"][:0], features["sem_feats"], rois)
    scores = rois.new_zeros(0)
    masks, seg = module(
        1, enhanced, rois, none, scores, features["sem_feats"], features["seg_preds"]
    )
    assert masks.shape == (0, THINGS, 28, 28)
    canvas = torch.zeros(2, THINGS, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(seg, module.semantic_heads[0](canvas, features["sem_feats"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_iterations=0), "num_iterations"),
        (dict(canvas_weight="sum"), "canvas_weight"),
        (dict(mask_head=dict(MASK_HEAD, class_agnostic=True)), "class_agnostic"),
    ],
)
def test_settings_that_there_are_not(changes, message):
    with pytest.raises(ValueError, match=message):
        projection(**changes)


# The RoI heads and the detector


@pytest.fixture(scope="module")
def batch():
    return make_panoptic_batch(TWO_IMAGES)


@pytest.mark.parametrize("num_iterations", [1, 2, 3])
def test_losses_of_every_iteration(batch, num_iterations):
    losses = losses_of(build(model_cfg(num_iterations)), batch)
    iterations = range(1, num_iterations + 1)
    wanted = {f"loss_{kind}_{t}" for t in iterations for kind in ("mask", "seg")}
    found = {name for name in losses if name.startswith(("loss_mask", "loss_seg"))}
    assert found == wanted | {"loss_seg"}
    assert {"loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "acc"} <= losses.keys()


def test_losses_of_a_cascade(batch):
    losses = losses_of(build(model_cfg(3, cascade=True)), batch)
    found = {name for name in losses if "mask" in name or "seg" in name}
    stages = {f"s{t - 1}.loss_mask_{t}" for t in (1, 2, 3)}
    assert found == stages | {"loss_seg", "loss_seg_1", "loss_seg_2", "loss_seg_3"}
    # The iterations weigh the same, whatever a cascade's stages do.
    equal = model_cfg(3, cascade=True)
    equal.roi_head.stage_loss_weights = [1, 1, 1]
    others = losses_of(build(equal), batch)
    for name in sorted(stages):
        torch.testing.assert_close(losses[name], others[name])
    torch.testing.assert_close(losses["s2.loss_bbox"], others["s2.loss_bbox"] / 4)


@pytest.mark.parametrize("cascade", [False, True])
def test_every_parameter_learns(batch, cascade):
    model = build(model_cfg(3, cascade=cascade))
    # Blocks of ResNet end in a normalisation that starts at zero: gradients stop there at first.
    for module in model.backbone.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    total, _ = model.parse_losses(losses_of(model, batch))
    total.backward()
    stuck = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert stuck == []


@pytest.mark.parametrize("cascade", [False, True])
def test_the_loss_of_one_task_reaches_the_other_s_heads_in_the_model(batch, cascade):
    model = build(model_cfg(3 if cascade else 1, cascade))
    losses = losses_of(model, batch)
    for t, mask_head in enumerate(model.roi_head.projection.mask_heads, 1):
        model.zero_grad()
        (seg,) = (value for name, value in losses.items() if name.endswith(f"loss_seg_{t}"))
        seg.backward(retain_graph=True)
        assert mask_head.convs[0].conv.weight.grad.any()
        model.zero_grad()
        (mask,) = (value for name, value in losses.items() if name.endswith(f"loss_mask_{t}"))
        mask.backward(retain_graph=True)
        assert model.semantic_head.conv_logits.weight.grad.any()


def test_the_loss_goes_down(batch):
    model = build(model_cfg(2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(12):
        total, _ = model.parse_losses(losses_of(model, batch))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(float(total))
    assert totals[-1] < 0.8 * totals[0]


@pytest.mark.parametrize("cascade", [False, True])
def test_without_iterations_it_is_panoptic_fpn(batch, cascade):
    cfg = model_cfg(0, cascade)
    cfg.semantic_head.type = "PanopticFPNHead"
    cfg.panoptic_fusion_head.type = "HeuristicFusionHead"
    ours = build(cfg)
    plain = {key: cfg.roi_head[key] for key in cfg.roi_head}
    for key in ("num_iterations", "num_stuff_classes", "semantic_norm_cfg"):
        del plain[key]
    plain["type"] = "CascadeRoIHead" if cascade else "StandardRoIHead"
    cfg.type, cfg.roi_head = "PanopticFPN", plain
    theirs = build(cfg)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    first, second = losses_of(ours, batch), losses_of(theirs, batch)
    assert first.keys() == second.keys()
    assert ours.parse_losses(first)[0] == theirs.parse_losses(second)[0]
    maps = [predictions(model, batch, rescale=True) for model in (ours, theirs)]
    for one, other in zip(*maps, strict=True):
        assert torch.equal(one.pred_panoptic_seg.sem_seg, other.pred_panoptic_seg.sem_seg)


def predictions(model, batch, rescale):
    data = model.eval().data_preprocessor(batch, False)
    with torch.no_grad():
        return model.predict(data["inputs"], data["data_samples"], rescale=rescale)


def sized(shown, original):
    """An image of which the batch shows so many rows and columns."""
    return DetDataSample(
        metainfo=dict(
            img_id=0,
            img_shape=shown,
            ori_shape=original,
            batch_input_shape=(96, 128),
            pad_shape=(96, 128),
            scale_factor=(shown[1] / original[1], shown[0] / original[0]),
        )
    )


SIZES = [((96, 100), (50, 61)), ((60, 128), (201, 333))]


def test_semantics_of_the_original_images_lack_the_padding():
    head = build(model_cfg(1)).semantic_head
    torch.manual_seed(0)
    logits = torch.randn(2, THINGS + STUFF, 24, 32)
    metas = [sized(*sizes).metainfo for sizes in SIZES]
    for one, enlarged, (shown, original) in zip(
        logits, head.predict_by_feat(logits, metas, rescale=True), SIZES, strict=True
    ):
        whole = F.interpolate(one[None], (96, 128), mode="bilinear", align_corners=False)
        inside = whole[..., : shown[0], : shown[1]]
        expected = F.interpolate(inside, original, mode="bilinear", align_corners=False)[0]
        torch.testing.assert_close(enlarged, expected)


@pytest.mark.parametrize("cascade", [False, True])
def test_images_of_a_batch_are_predicted_as_alone(cascade, monkeypatch):
    cfg = model_cfg(3 if cascade else 2, cascade)
    cfg.occlusion_head = dict(type="SpatialRankingHead", num_classes=THINGS, score_thr=0.0)
    cfg.panoptic_fusion_head.type = "SpatialRankingFusion"
    cfg.test_cfg.panoptic.score_thr = 0.0
    model = build(cfg).eval()
    # With their first weights predictions hardly depend on the image.
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    told = []
    predict = model.occlusion_head.predict

    def noting(x, results, scales):
        told.extend(scale.tolist() for scale in scales)
        return predict(x, results, scales)

    monkeypatch.setattr(model.occlusion_head, "predict", noting)
    inputs = torch.randn(2, 3, 96, 128)
    for image, (shown, _) in zip(inputs, SIZES, strict=True):
        image[:, shown[0] :] = image[:, :, shown[1] :] = 0
    with torch.no_grad():
        both = model.predict(inputs, [sized(*sizes) for sizes in SIZES], rescale=True)
        for place, (shown, original) in enumerate(SIZES):
            image = inputs[place : place + 1]
            (alone,) = model.predict(image, [sized(shown, original)], rescale=True)
            maps = [sample.pred_panoptic_seg.sem_seg for sample in (both[place], alone)]
            assert maps[0].shape == maps[1].shape == (1, *original)
            assert len(maps[1].unique()) > 2
            # Convolutions of a batch round otherwise than those of one image.
            assert (maps[0] != maps[1]).float().mean() < 1e-3
    factors = [sized(*sizes).metainfo["scale_factor"] for sizes in SIZES]
    for scale, factor in zip(told, factors * 2, strict=True):
        assert scale == pytest.approx([*factor, *factor])


def test_a_cascade_has_as_many_iterations_as_stages():
    with pytest.raises(ValueError, match="num_iterations must not be 2"):
        build(model_cfg(2, cascade=True))


@pytest.mark.parametrize("cascade", [False, True])
@pytest.mark.parametrize("boxes", [[[], []], [[], TWO_IMAGES[0]]], ids=["none", "one"])
def test_images_without_ground_truth(boxes, cascade):
    model = build(model_cfg(3 if cascade else 2, cascade))
    total, _ = model.parse_losses(losses_of(model, make_panoptic_batch(boxes)))
    total.backward()
    assert total.isfinite()
    missing = [n for n, p in model.named_parameters() if p.grad is None]
    assert missing == [], "distributed training waits for these"


@pytest.mark.parametrize(("things", "stuff"), [(1, 2), (3, 0), (1, 0)])
@pytest.mark.parametrize("occlusion", [False, True])
@pytest.mark.parametrize("cascade", [False, True])
def test_one_class_and_no_stuff(batch, things, stuff, occlusion, cascade):
    cfg = model_cfg(3 if cascade else 2, cascade)
    head = cfg.roi_head
    head.num_stuff_classes = stuff
    head.mask_head.num_classes = things
    for box_head in head.bbox_head if cascade else [head.bbox_head]:
        box_head.num_classes = things
    for part in (cfg.semantic_head, cfg.panoptic_fusion_head):
        part.update(num_things_classes=things, num_stuff_classes=stuff)
    cfg.panoptic_fusion_head.type = "HeuristicFusion"
    cfg.test_cfg.panoptic.score_thr = 0.0
    if occlusion:
        cfg.panoptic_fusion_head.update(type="SoftOcclusionFusion", unknown_erasing=dict())
        cfg.occlusion_head = dict(
            type="OcclusionHead",
            num_classes=things,
            roi_extractor=head.mask_roi_extractor,
            score_thr=0.0,
            conv_channels=8,
            fc_channels=8,
        )
    model = build(cfg)
    few = copy.deepcopy(batch)
    for sample in few["data_samples"]:
        labels = sample.gt_sem_seg.sem_seg
        thing, is_stuff = labels < THINGS, (labels >= THINGS) & (labels < 255)
        relabelled = torch.full_like(labels, 255)
        relabelled[thing] = labels[thing].clamp(max=things - 1)
        if stuff:
            relabelled[is_stuff] = labels[is_stuff] - THINGS + things
        sample.gt_sem_seg.sem_seg = relabelled
        sample.gt_instances.labels.clamp_(max=things - 1)
    total, _ = model.parse_losses(losses_of(model, few))
    total.backward()
    assert total.isfinite() and all(p.grad is not None for p in model.parameters())
    for sample in predictions(model, few, rescale=True):
        classes = sample.pred_panoptic_seg.sem_seg.unique() % 1000
        assert classes.max() <= things + stuff


@pytest.mark.parametrize("cascade", [False, True])
def test_void_everywhere_trains_the_instances_alone(batch, cascade):
    model = build(model_cfg(3 if cascade else 1, cascade))
    unlabelled = copy.deepcopy(batch)
    for sample in unlabelled["data_samples"]:
        sample.gt_sem_seg.sem_seg = torch.full_like(sample.gt_sem_seg.sem_seg, 255)
    losses = losses_of(model, unlabelled)
    semantic = [value for name, value in losses.items() if "loss_seg" in name]
    masks = [value for name, value in losses.items() if "loss_mask" in name]
    assert len(semantic) == len(masks) + 1 == (4 if cascade else 2)
    assert not any(semantic) and all(value > 0 for value in masks)
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_void_does_not_count(batch):
    head = build(model_cfg(1)).semantic_head
    logits = torch.randn(2, THINGS + STUFF, 24, 24)
    samples = batch["data_samples"]
    before = head.loss_by_feat(logits, samples)
    logits[:, :, 0] += 100 * torch.randn(2, THINGS + STUFF, 24)
    assert torch.equal(head.loss_by_feat(logits, samples), before)
    labels = torch.stack([s.gt_sem_seg.sem_seg[0, ::4, ::4] for s in samples])
    wanted = 0.5 * F.cross_entropy(logits, labels.masked_fill(labels == 255, -100))
    torch.testing.assert_close(before, wanted)


@pytest.mark.parametrize("cascade", [False, True])
def test_masks_and_semantics_at_test(batch, cascade):
    """Of a cascade, too, all iterations look at the final boxes."""
    iterations = 3 if cascade else 2
    model = build(model_cfg(iterations, cascade)).eval()
    data = model.data_preprocessor(batch, False)
    x = model.extract_feat(data["inputs"])
    samples = data["data_samples"]
    with torch.no_grad():
        proposals = model.rpn_head.predict(x, samples, rescale=False)
        state = model._with_semantics(x)
        first = state[-1]
        results = model.roi_head.predict(state, proposals, samples, rescale=False)
        metas = [sample.metainfo for sample in samples]
        again = model._with_semantics(x)
        boxes = model.roi_head.predict_bbox(
            again, metas, model.rpn_head.predict(x, samples, rescale=False), model.test_cfg.rcnn
        )
        rois = torch.cat([F.pad(r.bboxes, (1, 0), value=float(i)) for i, r in enumerate(boxes)])
        labels, scores = (torch.cat([r[key] for r in boxes]) for key in ("labels", "scores"))
        seg, module = again[-1], model.roi_head.projection
        enhanced = model.roi_head.enhanced_features(again, rois)
        for t in range(1, iterations + 1):
            masks, seg = module(t, enhanced, rois, labels, scores, again[-2], seg)
    assert not torch.equal(state[-1], first) and torch.equal(state[-1], seg)
    assert sum(map(len, results)) == len(rois) > 0
    head = module.mask_head(iterations)
    wanted = head.predict_by_feat(
        masks.split([len(r) for r in boxes]), boxes, metas, model.test_cfg.rcnn, rescale=False
    )
    for one, other in zip(results, wanted, strict=True):
        assert torch.equal(one.masks, other.masks)


@pytest.mark.parametrize("cascade", [False, True])
def test_no_detection_still_refines_the_semantics(batch, cascade):
    cfg = model_cfg(3, cascade)
    cfg.test_cfg.rcnn.score_thr = 2.0
    model = build(cfg).eval()
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        state = model._with_semantics(x)
        first = state[-1]
        proposals = model.rpn_head.predict(x, data["data_samples"], rescale=False)
        results = model.roi_head.predict(state, proposals, data["data_samples"])
    assert [len(result) for result in results] == [0, 0]
    assert all(result.masks.shape == (0, 96, 96) for result in results)
    assert not torch.equal(state[-1], first)


@pytest.mark.parametrize("cascade", [False, True])
def test_mixed_precision(batch, cascade):
    model = build(model_cfg(3 if cascade else 2, cascade))
    wrapper = CPUAmpOptimWrapper(optimizer=torch.optim.SGD(model.parameters(), lr=0.01))
    with wrapper.optim_context(model):
        total, _ = model.parse_losses(losses_of(model, batch))
    wrapper.update_params(total)
    assert total.isfinite()
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("cascade", [False, True])
def test_counters_can_run_it(batch, cascade):
    model = build(model_cfg(3, cascade)).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    with torch.no_grad():
        *_, masks, semantics = model(data["inputs"], data["data_samples"], mode="tensor")
    masks = masks[-1] if isinstance(masks, list | tuple) else masks
    assert masks.shape[1:] == (THINGS, 28, 28)
    assert semantics.shape == (2, THINGS + STUFF, 24, 24)


def test_proposals_that_are_given_are_used(batch):
    cfg = model_cfg(1)
    cfg.test_cfg.panoptic.score_thr = 0.0
    model = build(cfg).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    samples = data["data_samples"]
    maps = []
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        found = model.rpn_head.predict(x, samples, rescale=False)
        for given in (None, found, [proposals[:0] for proposals in found]):
            for sample, proposals in zip(samples, given or (), strict=False):
                sample.proposals = proposals
            results = model.predict(data["inputs"], samples)
            maps.append(torch.stack([sample.pred_panoptic_seg.sem_seg for sample in results]))
    plain, same, none = maps
    assert (plain >= INSTANCE_OFFSET).any() and torch.equal(plain, same)
    assert (none < INSTANCE_OFFSET).all()


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("roi_head", dict(num_stuff_classes=53), "num_stuff_classes: .* roi_head 53"),
        ("roi_head.mask_head", dict(num_classes=4), "num_things_classes: .* roi_head 4"),
        ("semantic_head", dict(num_stuff_classes=1), "num_stuff_classes: semantic_head 1, "),
        ("panoptic_fusion_head", dict(num_things_classes=80), "panoptic_fusion_head 80"),
        ("panoptic_fusion_head", dict(type="HeuristicFusionHead"), "take HeuristicFusion"),
        (
            "panoptic_fusion_head",
            dict(type="SoftOcclusionFusion"),
            "needs an occlusion_head of type OcclusionHead, not None",
        ),
    ],
)
def test_parts_that_do_not_fit_together(part, change, message):
    cfg = model_cfg(1)
    functools.reduce(getattr, part.split("."), cfg).update(change)
    with pytest.raises(ValueError, match=message):
        build(cfg)


@pytest.mark.parametrize("score_thr", [0.0, 2.0], ids=["found", "nothing"])
def test_instances_beside_the_map(batch, score_thr):
    cfg = model_cfg(1)
    cfg.test_cfg.rcnn.score_thr = score_thr
    cfg.test_cfg.panoptic.score_thr = 0.0
    model = build(cfg)
    assert "pred_instances" not in predictions(model, batch, rescale=True)[0]
    cfg.test_cfg.instance_on = True
    for sample in predictions(build(cfg), batch, rescale=True):
        found, panoptic = sample.pred_instances, sample.pred_panoptic_seg.sem_seg
        assert (panoptic % INSTANCE_OFFSET <= THINGS + STUFF).all()
        pasted = panoptic[panoptic >= INSTANCE_OFFSET] % INSTANCE_OFFSET
        assert set(pasted.tolist()) <= set(found.labels.tolist())
        assert (len(pasted) > 0) == (score_thr == 0)
        assert (len(found) > 0) == (score_thr == 0)
        assert found.masks.shape == (len(found), 96, 96)
        assert found.bboxes.shape == (len(found), 4) and len(found.scores) == len(found.labels)


@pytest.mark.parametrize("score_thr", [0.0, 2.0], ids=["found", "nothing"])
def test_a_padded_batch_without_rescaling(batch, score_thr):
    cfg = model_cfg(1)
    cfg.test_cfg.rcnn.score_thr = score_thr
    cfg.panoptic_fusion_head.type = "HeuristicFusion"
    cfg.test_cfg.panoptic.score_thr = 0.0
    model = build(cfg)
    small = copy.deepcopy(batch)
    small["inputs"][1] = small["inputs"][1][:, :64, :80]
    for sample, shape in zip(small["data_samples"], [(96, 96), (64, 80)], strict=True):
        sample.set_metainfo(
            dict(img_shape=shape, ori_shape=(2 * shape[0], 2 * shape[1]), scale_factor=(0.5, 0.5))
        )
    first, second = predictions(model, small, rescale=False)
    assert first.pred_panoptic_seg.sem_seg.shape == (1, 96, 96)
    assert second.pred_panoptic_seg.sem_seg.shape == (1, 64, 80)
    _, second = predictions(model, small, rescale=True)
    assert second.pred_panoptic_seg.sem_seg.shape == (1, 128, 160)
