"""The occlusion head beside a model: its targets, training alone and jointly, and at test."""

import copy
from contextlib import nullcontext

import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData
from tiny_mr_rcnn import TWO_IMAGES
from tiny_refine import (
    BOXES,
    CHANNELS,
    SIDE,
    STUFF,
    THINGS,
    build,
    drawn,
    found,
    losses_of,
    make_panoptic_batch,
    model_cfg,
    truth,
)

from mmdet_plus.refine import OcclusionHead, occlusion_head
from mmdet_plus.refine.occlusion_head import mask_crops, match, ownership

EXTRACTOR = dict(
    type="SingleRoIExtractor",
    roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
    out_channels=CHANNELS,
    featmap_strides=[4, 8, 16, 32],
)
HEAD = dict(
    type="OcclusionHead",
    num_classes=THINGS,
    roi_extractor=EXTRACTOR,
    score_thr=0.0,
    conv_channels=8,
    fc_channels=16,
    embedding=4,
)


RANKING = dict(type="SpatialRankingHead", num_classes=THINGS, channels=4)


@pytest.fixture
def features():
    generator = torch.Generator().manual_seed(0)
    sizes = (16, 8, 4, 2)
    return tuple(torch.randn(2, CHANNELS, s, s, generator=generator) for s in sizes)


@pytest.fixture
def head():
    init_default_scope("mmdet")
    arguments = {key: value for key, value in HEAD.items() if key != "type"}
    torch.manual_seed(0)
    head = OcclusionHead(**arguments)
    head.init_weights()
    return head


def test_matches_are_of_the_same_class_and_overlap_enough():
    masks, labels = drawn(BOXES), torch.tensor([0, 1, 2])
    assert match(masks, labels, masks.flip(0), labels.flip(0), 0.5).tolist() == [3, 2, 1]
    assert match(masks, labels, masks.flip(0), labels, 0.5).tolist() == [0, 2, 0]
    half = masks.clone()
    half[0, 20:] = False  # half of the first square
    assert match(half, labels, masks, labels, 0.5).tolist() == [1, 2, 3]
    assert match(half, labels, masks, labels, 0.6).tolist() == [0, 2, 3]
    assert match(masks, labels, masks[:0], labels[:0], 0.5).tolist() == [0, 0, 0]
    assert match(masks[:0], labels[:0], masks, labels, 0.5).shape == (0,)


def test_ownership():
    canvas = ownership(drawn(BOXES[[0, 2]]))
    assert canvas[10, 10] == 1 and canvas[5, 50] == 2 and canvas[40, 40] == 0


def test_it_learns_who_lies_on_top(head, features):
    optimizer = torch.optim.AdamW(head.parameters(), lr=3e-3)
    results, samples = [found(), found()], [truth(front=0), truth(front=0)]
    first = head.loss(features, results, samples)["loss_occlusion"]
    for _ in range(20):
        losses = head.loss(features, results, samples)
        optimizer.zero_grad()
        losses["loss_occlusion"].backward()
        optimizer.step()
    assert losses["loss_occlusion"] < 0.3 * first and losses["acc_occlusion"] == 100
    ones = [torch.ones(4)] * 2
    matrix = head.predict(features, [found(), found()], ones)[0].occlusion
    assert matrix[0, 1] > 0.7 > 0.3 > matrix[1, 0]
    # The other way round the same overlap has the opposite target.
    other = head.loss(features, results, [truth(front=1), truth(front=1)])
    assert other["acc_occlusion"] == 0


def test_only_pairs_that_overlap_have_a_prediction(head, features):
    (result,) = head.predict(features, [found()], [torch.ones(4)])
    assert result.occlusion.shape == (3, 3) and result.occlusion.count_nonzero() == 2
    assert result.occlusion[0, 1] > 0 and result.occlusion[1, 0] > 0
    head.score_thr = 0.85
    (result,) = head.predict(features, [found()], [torch.ones(4)])
    assert not result.occlusion.any(), "the second one counts for nothing"
    (result,) = head.predict(features, [found()[:0]], [torch.ones(4)])
    assert result.occlusion.shape == (0, 0)


def disc(side, x, y, radius):
    rows, cols = torch.arange(side)[:, None] + 0.5, torch.arange(side) + 0.5
    return ((cols - x) ** 2 + (rows - y) ** 2 < radius**2)[None]


@pytest.mark.parametrize("scale", [0.6, 1.0, 2.0], ids=str)
@pytest.mark.parametrize("radius", [6, 13])
def test_the_network_sees_the_same_at_any_size_of_the_original(head, features, scale, radius):
    """Masks are cropped in the original's pixels, features in those of the network's input."""
    x, y = 27.3, 30.9
    box = torch.tensor([[x - radius, y - radius, x + radius, y + radius]])
    reference = InstanceData(
        bboxes=box, labels=torch.tensor([1]), masks=disc(SIDE, x, y, radius), scores=torch.ones(1)
    )
    one = InstanceData(
        bboxes=box * scale,
        labels=torch.tensor([1]),
        masks=disc(round(SIDE * scale), x * scale, y * scale, radius * scale),
        scores=torch.ones(1),
    )
    wanted = head.priors(features, 1, reference, reference.bboxes)
    found = head.priors(features, 1, one, one.bboxes / scale)
    torch.testing.assert_close(found.features, wanted.features, rtol=1e-4, atol=1e-4)
    assert (found.masks - wanted.masks).abs().mean() < 0.09
    # The disc fills its box, in the middle: pi / 4 of it.
    middle = (torch.arange(28) + 0.5) / 28
    for crop in (found.masks[0], wanted.masks[0]):
        assert crop.mean() == pytest.approx(torch.pi / 4, abs=0.04)
        for profile in (crop.sum(0), crop.sum(1)):
            centre = float((profile * middle).sum() / profile.sum())
            assert centre == pytest.approx(0.5, abs=0.02)


def test_boxes_are_not_rounded_to_half_precision(head):
    masks = torch.zeros(1, 8, 1300, dtype=torch.bool)
    masks[:, :, 1201:1215] = True
    boxes = torch.tensor([[1201.0, 0, 1215, 8]])
    with torch.autocast("cpu", torch.bfloat16):
        crops = mask_crops(masks, boxes)
    assert crops.dtype == torch.float32 and crops.min() > 0.7
    assert mask_crops(masks[:0], boxes[:0]).shape == (0, 28, 28)


def test_many_masks_are_cropped_in_parts(monkeypatch):
    whole = mask_crops(drawn(BOXES), BOXES)
    monkeypatch.setattr(occlusion_head, "_MASKS_AT_A_TIME", 2)
    assert torch.equal(mask_crops(drawn(BOXES), BOXES), whole) and whole.shape == (3, 28, 28)


def test_predictions_use_boxes_of_the_network_s_input(head, features):
    """Far from the start, where all of O is about a half."""
    with torch.no_grad():
        head.network.fc_occlusion.weight.mul_(300)
    double = found()
    double.bboxes, double.masks = 2 * BOXES, found().masks.repeat_interleave(2, 1)
    double.masks = double.masks.repeat_interleave(2, 2)
    ones = torch.ones(4)
    (plain,) = head.predict(features, [found()], [ones])
    (scaled,) = head.predict(features, [double], [ones / 2])
    pair = [0, 1], [1, 0]
    assert (plain.occlusion[pair] - 0.5).abs().max() > 0.05
    torch.testing.assert_close(scaled.occlusion, plain.occlusion, rtol=0, atol=2e-3)
    wrong = found()
    wrong.bboxes, wrong.masks = double.bboxes, double.masks
    (unscaled,) = head.predict(features, [wrong], [ones])
    assert (unscaled.occlusion - plain.occlusion).abs().max() > 0.02


def test_training_looks_at_the_scores_it_is_told(head, features):
    samples = [truth(0)] * 2

    def learnt(threshold):
        head.train_score_thr = threshold
        return float(head.loss(features, [found(), found()[:0]], samples)["loss_occlusion"])

    assert learnt(0.0) == learnt(0.75) > 0  # the third instance overlaps with nobody
    assert learnt(0.85) == 0
    arguments = {key: value for key, value in HEAD.items() if key not in ("type", "score_thr")}
    assert OcclusionHead(score_thr=0.4, **arguments).train_score_thr == 0.4
    assert OcclusionHead(train_score_thr=0.1, **arguments).train_score_thr == 0.1


def test_no_more_pairs_than_told_are_learnt_from(head, features, monkeypatch):
    asked = []
    forward = head.network.forward
    monkeypatch.setattr(
        head.network, "forward", lambda priors, pairs: asked.append(pairs) or forward(priors, pairs)
    )
    for most, number in ((128, 2), (1, 1)):
        head.max_pairs = most
        losses = head.loss(features, [found()], [truth(0)])
        assert len(asked.pop()) == number and losses["loss_occlusion"] > 0


def test_features_that_are_not_read_are_not_computed(features, monkeypatch):
    init_default_scope("mmdet")
    arguments = {key: value for key, value in HEAD.items() if key != "type"}
    blind = OcclusionHead(use_features=False, **arguments)
    monkeypatch.setattr(blind.roi_extractor, "forward", None)
    assert blind.priors(features, 0, found(), BOXES).features is None
    (results,) = blind.predict(features, [found()], [torch.ones(4)])
    assert results.occlusion.count_nonzero() == 2


def test_features_are_those_of_the_image(head, features):
    first, second = (head.priors(features, image, found(), BOXES).features for image in (0, 1))
    assert not torch.allclose(first, second)
    masks = head.priors(features, 0, found(), BOXES).masks
    assert masks.shape == (3, 28, 28)
    assert masks[0, 2:-2, 2:-2].min() > 0.999, "a full square in its own box"


def test_nothing_to_learn_leaves_no_parameter_out(head, features):
    losses = head.loss(features, [found()[:0], found()[2:]], [truth(0), truth(0)])
    losses["loss_occlusion"].backward()
    assert losses["loss_occlusion"] == 0 and losses["acc_occlusion"] == 50
    assert all(parameter.grad is not None for parameter in head.network.parameters())


# In the model


def refine_cfg(num_iterations=1, cascade=False, **changes):
    cfg = model_cfg(num_iterations, cascade)
    cfg.occlusion_head = ConfigDict(copy.deepcopy(HEAD))
    cfg.panoptic_fusion_head.type = "SoftOcclusionFusion"
    cfg.update(changes)
    return cfg


@pytest.fixture(scope="module")
def batch():
    return make_panoptic_batch(TWO_IMAGES)


@pytest.mark.parametrize("num_iterations", [0, 1])
def test_joint_training(batch, num_iterations):
    model = build(refine_cfg(num_iterations))
    losses = losses_of(model, batch)
    assert {"loss_occlusion", "acc_occlusion", "loss_seg", "loss_cls"} <= losses.keys()
    model.parse_losses(losses)[0].backward()
    assert all(p.grad is not None for p in model.parameters())


def test_joint_training_counts_each_picture_once(batch):
    """Predicting in training leaves the statistics of batch normalisation alone."""
    cfg = refine_cfg()
    cfg.roi_head.mask_head.norm_cfg = dict(type="BN")
    model = build(cfg).train()
    losses_of(model, batch)
    counted = {
        name: int(value)
        for name, value in model.state_dict().items()
        if name.startswith("roi_head") and name.endswith("num_batches_tracked")
    }
    assert counted and set(counted.values()) == {1}
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("cascade", [False, True])
def test_beside_the_heads_of_mmdet(batch, cascade):
    cfg = model_cfg(0, cascade)
    for key in ("num_iterations", "num_stuff_classes", "semantic_norm_cfg"):
        del cfg.roi_head[key]
    cfg.roi_head.type = "CascadeRoIHead" if cascade else "StandardRoIHead"
    cfg.semantic_head.type = "PanopticFPNHead"
    cfg.test_cfg.panoptic.score_thr = 0.0
    plain = build(cfg | dict(type="PanopticFPN"))
    cfg.occlusion_head = ConfigDict(copy.deepcopy(HEAD))
    # So large a sigma leaves the order to the scores, as the heuristic does.
    cfg.panoptic_fusion_head.update(type="SoftOcclusionFusion", sigma=1e6)
    model = build(cfg)
    losses = losses_of(model, batch)
    assert {"loss_occlusion", "loss_seg"} <= losses.keys()
    maps = []
    for one in (model, plain):
        data = one.eval().data_preprocessor(copy.deepcopy(batch), False)
        one.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad():
            samples = one.predict(data["inputs"], data["data_samples"])
        maps.append([sample.pred_panoptic_seg.sem_seg for sample in samples])
    assert all((one >= INSTANCE_OFFSET).any() for one in maps[0])
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))


def test_iterations_need_semantics_to_read():
    cfg = model_cfg(1)
    cfg.semantic_head.type = "PanopticFPNHead"
    with pytest.raises(ValueError, match="ProjectionSemanticHead"):
        build(cfg)


@pytest.mark.parametrize(
    ("fuser", "head", "message"),
    [
        (dict(type="SoftOcclusionFusion"), dict(score_thr=0.6), "head score_thr=0.5 as well"),
        (dict(type="OcclusionFusion", occlusion_thr=0.1), {}, "head overlap_thr=0.1 as well"),
        (dict(type="SpatialRankingFusion"), dict(score_thr=0.6), "score_thr=0.5 asks"),
        (dict(type="HeuristicFusion"), dict(score_thr=0.6), None),
        (dict(type="SoftOcclusionFusion"), dict(score_thr=0.4), None),
        (dict(type="OcclusionFusion"), RANKING, "OcclusionHead, not SpatialRankingHead"),
    ],
)
def test_a_fuser_that_asks_for_more_than_the_head_tells_is_refused(fuser, head, message):
    cfg = refine_cfg()
    cfg.panoptic_fusion_head.update(fuser)
    cfg.test_cfg.panoptic = dict(stuff_area_limit=16)
    if "type" in head or fuser["type"].startswith("Spatial"):
        cfg.occlusion_head = ConfigDict(RANKING)
    cfg.occlusion_head.update(dict(score_thr=0.5) | head)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        build(cfg)


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("roi_head.bbox_head", "roi_head.bbox_head 5"),
        ("roi_head.mask_head", "roi_head 5"),
        ("occlusion_head", "occlusion_head has num_classes=5, the model 3 classes"),
    ],
)
@pytest.mark.parametrize("cascade", [False, True])
def test_parts_of_other_classes_are_refused(field, message, cascade):
    cfg = refine_cfg(3 if cascade else 2, cascade)
    part = cfg
    for name in field.split("."):
        part = part[name]
    for one in part if isinstance(part, list) else [part]:
        one.num_classes = 5
    with pytest.raises(ValueError, match=message):
        build(cfg)


def test_without_iterations_the_mask_head_must_fit_as_well():
    cfg = model_cfg(0)
    cfg.semantic_head.type = "PanopticFPNHead"
    cfg.roi_head.mask_head.num_classes = 1
    with pytest.raises(ValueError, match="roi_head.mask_head 1"):
        build(cfg)


@pytest.mark.parametrize("semantics", ["PanopticFPNHead", "ProjectionSemanticHead"])
def test_one_class_of_things(batch, semantics):
    cfg = model_cfg(0)
    cfg.semantic_head.update(type=semantics, num_things_classes=1, num_stuff_classes=3)
    cfg.panoptic_fusion_head.update(num_things_classes=1, num_stuff_classes=3)
    cfg.roi_head.update(num_stuff_classes=3)
    cfg.roi_head.bbox_head.num_classes = cfg.roi_head.mask_head.num_classes = 1
    model = build(cfg).eval()
    first = 1 if semantics == "ProjectionSemanticHead" else 0
    assert list(model.panoptic_fusion_head.stuff_channels(4)) == [first, first + 1, first + 2]
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    with torch.no_grad():
        (sample, _) = model.predict(data["inputs"], data["data_samples"])
    assert sample.pred_panoptic_seg.sem_seg.shape == (1, 96, 96)


def test_one_config_for_the_masks_of_all_stages():
    cfg = model_cfg(3, cascade=True)
    cfg.roi_head.mask_head = [cfg.roi_head.mask_head] * 3
    with pytest.raises(ValueError, match="mask_head is a list: give one config"):
        build(cfg)


def test_a_frozen_model_trains_its_occlusion_head_alone(batch):
    model = build(refine_cfg(occlusion_only=True)).train()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {
        "occlusion_head"
    }
    assert [name for name, child in model.named_children() if child.training] == ["occlusion_head"]
    before = copy.deepcopy(model.state_dict())
    losses = losses_of(model, batch)
    assert losses.keys() == {"loss_occlusion", "acc_occlusion"}
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    with pytest.raises(ValueError, match="occlusion_only"):
        build(model_cfg(1) | dict(occlusion_only=True))


@pytest.mark.parametrize("kind", ["HeuristicFusion", "OcclusionFusion", "SoftOcclusionFusion"])
@pytest.mark.parametrize("rescale", [False, True])
def test_prediction(batch, kind, rescale):
    cfg = refine_cfg()
    cfg.panoptic_fusion_head.type = kind
    cfg.test_cfg.panoptic.score_thr = 0.0
    model = build(cfg).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    with torch.no_grad():
        samples = model.predict(data["inputs"], data["data_samples"], rescale=rescale)
    for sample in samples:
        panoptic = sample.pred_panoptic_seg.sem_seg
        assert panoptic.shape == (1, 96, 96)
        assert (panoptic >= INSTANCE_OFFSET).any()
        assert (panoptic % INSTANCE_OFFSET <= THINGS + STUFF).all()


def test_occlusion_decides_the_map(batch, monkeypatch):
    model = build(refine_cfg()).eval()
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    maps = []
    for upside_down in (False, True):

        def predict(x, results_list, scales, upside_down=upside_down):
            for results in results_list:
                order = torch.arange(len(results), dtype=torch.float32)
                in_front = (order[:, None] < order[None]).float()
                results.scores = torch.full_like(results.scores, 0.9)
                results.occlusion = in_front.T if upside_down else in_front
            return results_list

        monkeypatch.setattr(model.occlusion_head, "predict", predict)
        with torch.no_grad():
            samples = model.predict(data["inputs"], copy.deepcopy(data["data_samples"]))
        maps.append(samples[0].pred_panoptic_seg.sem_seg)
    assert not torch.equal(*maps)


def test_masks_of_another_size_than_the_ground_truth(head, features):
    """mmdet's masks of nothing have the size of the original, and so have those after a crop."""
    larger = found()
    larger.masks = torch.nn.functional.pad(larger.masks, (0, 32, 0, 32))
    one, other = (head.loss(features, [r, r], [truth(0)] * 2) for r in (found(), larger))
    torch.testing.assert_close(one["loss_occlusion"], other["loss_occlusion"])
    nothing = found()[:0]
    nothing.masks = torch.zeros(0, 200, 300, dtype=torch.bool)
    assert head.loss(features, [nothing, nothing], [truth(0)] * 2)["loss_occlusion"] == 0
