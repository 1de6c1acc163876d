"""The RoI head of MR R-CNN: data flow in training and testing, switches, odd inputs."""

import copy

import numpy as np
import pytest
import torch
from mmcv.ops import batched_nms
from mmdet.structures.bbox import bbox2roi
from mmengine.structures import InstanceData
from tiny_mr_rcnn import TWO_IMAGES, losses_of, make_batch, total, train_a_little
from torch.nn import functional as F

from mmdet_plus.mr_rcnn.mask_refining_roi_head import changed


def predict(model, batch):
    model.eval()
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(copy.deepcopy(batch))]


def features_and_proposals(model, batch):
    """What the RoI head gets at test."""
    model.eval()
    data = model.data_preprocessor(copy.deepcopy(batch), training=False)
    with torch.no_grad():
        x = model.extract_feat(data["inputs"])
        return x, model.rpn_head.predict(x, data["data_samples"], rescale=False), data


@pytest.fixture
def lively(build):
    """A model with heads so random that they detect all kinds of things."""
    model = build()
    head = model.roi_head
    for box_head in (head.bbox_head, head.refining_bbox_head):
        torch.nn.init.normal_(box_head.fc_cls.weight, std=1.0)
        torch.nn.init.normal_(box_head.fc_reg.weight, std=0.3)
    for mask_head in (head.mask_head, head.refining_mask_head):
        torch.nn.init.normal_(mask_head.conv_logits.weight, std=1.0)
    torch.nn.init.normal_(head.fusion.weight, std=0.05)
    return model


# Training


def test_losses_of_both_stages_reach_every_parameter(build, batch):
    model = build()
    losses = losses_of(model, batch)
    for name in ("loss_cls", "loss_bbox", "loss_mask"):
        assert torch.isfinite(losses[name]) and torch.isfinite(losses[f"refining.{name}"])
    total(losses).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without, "distributed training hangs on parameters without a gradient"


def test_it_learns_a_batch(build, batch):
    history = train_a_little(build(), batch, iterations=30)
    # The sampled RoIs change from step to step, and the losses with them.
    assert np.mean(history[-10:]) < 0.7 * np.mean(history[:5])


def test_same_seed_same_losses(build, batch):
    first = train_a_little(build(seed=3), batch, iterations=3, seed=5)
    again = train_a_little(build(seed=3), batch, iterations=3, seed=5)
    assert first == again


@pytest.mark.parametrize("refine_assign", ["reassign", "inherit"])
def test_targets_keep_all_rois(build, batch, refine_assign):
    model = build(refine_assign=refine_assign)
    head = model.roi_head
    seen = {}
    loss_and_target, refine_box = head.refining_bbox_head.loss_and_target, head.refine_box

    def spy_on_targets(cls_score, bbox_pred, rois, sampling_results, *args, **kwargs):
        # Now, for the mask loss will put B^r in place of the positives' B.
        priors = bbox2roi([result.priors for result in sampling_results])
        seen.update(rois=rois, priors=priors.clone())
        return loss_and_target(cls_score, bbox_pred, rois, sampling_results, *args, **kwargs)

    def spy_on_features(x, rois, prob):
        seen.update(pooled=rois)
        return refine_box(x, rois, prob)

    head.refining_bbox_head.loss_and_target = spy_on_targets
    head.refine_box = spy_on_features
    losses_of(model, batch)
    assert len(seen["rois"]) == 2 * 32
    # The features' rows and the targets' rows are the same boxes in the same order.
    assert torch.equal(seen["priors"], seen["rois"])
    assert torch.equal(seen["pooled"], seen["rois"])


def test_assigning_anew_and_inheriting_differ_only_in_targets(build, batch):
    """Where the box head leaves RoIs as they are, B equals the RoI and both give one loss."""
    values = []
    for refine_assign in ("reassign", "inherit"):
        model = build(refine_assign=refine_assign)
        torch.nn.init.zeros_(model.roi_head.bbox_head.fc_reg.weight)
        torch.nn.init.zeros_(model.roi_head.bbox_head.fc_reg.bias)
        torch.manual_seed(0)
        values.append(float(total(losses_of(model, batch))))
    assert values[0] == pytest.approx(values[1], rel=1e-6)


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_through_the_guidance(build, batch, detach):
    model = build(detach_guidance=detach)
    losses = losses_of(model, batch)
    losses["refining.loss_cls"].backward()
    gradient = model.roi_head.mask_head.conv_logits.weight.grad
    if detach:
        assert gradient is None or gradient.abs().sum() == 0
    else:
        assert gradient.abs().sum() > 0


def test_refining_box_loss_depends_on_the_mask(build, batch):
    """With SARA the refining box head sees P; without it the mask head cannot matter."""
    for shape_aware in (True, False):
        values = []
        for shift in (0.0, 3.0):
            model = build(shape_aware=shape_aware)
            model.roi_head.mask_head.conv_logits.bias.data += shift
            torch.manual_seed(0)
            values.append(float(losses_of(model, batch)["refining.loss_cls"]))
        assert (values[0] != values[1]) == shape_aware


def test_features_of_the_mask_head_reach_the_refining_one(build):
    """F^- is added through a convolution that starts at zero."""
    head = build().roi_head
    x = tuple(torch.randn(1, 64, 96 // s, 96 // s) for s in (4, 8, 16, 32, 64))
    rois = torch.tensor([[0, 10.0, 10.0, 60.0, 70.0]])
    fused = head.fusion(head.conv_features(x, rois))
    assert fused.shape == (1, 64, 14, 14)
    plain = head.refining_mask_head(head.mask_roi_extractor(x[:4], rois))
    assert torch.equal(head.refine_mask(x, rois, fused), plain)
    torch.nn.init.normal_(head.fusion.weight)
    fused = head.fusion(head.conv_features(x, rois))
    assert not torch.allclose(head.refine_mask(x, rois, fused), plain)


# Odd inputs


def test_images_without_ground_truth(build):
    model = build()
    for boxes in ([[], []], [[], TWO_IMAGES[0]]):
        model.zero_grad(set_to_none=True)
        loss = total(losses_of(model, make_batch(boxes)))
        assert torch.isfinite(loss)
        loss.backward()
        assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("refine_assign", ["reassign", "inherit"])
def test_one_instance_of_one_pixel(build, refine_assign):
    model = build(refine_assign=refine_assign)
    head = model.roi_head
    # B is the RoI, among which the sampler puts the ground truth itself.
    torch.nn.init.zeros_(head.bbox_head.fc_reg.weight)
    positives = []
    loss_and_target = head.refining_mask_head.loss_and_target

    def spy(mask_preds, *args, **kwargs):
        positives.append(len(mask_preds))
        return loss_and_target(mask_preds, *args, **kwargs)

    head.refining_mask_head.loss_and_target = spy
    image = make_batch([[(50, 50, 51, 51)]])
    loss = total(losses_of(model, image))
    loss.backward()
    assert positives == [1]
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    (result,) = predict(model, image)
    assert result.masks.shape == (len(result), 96, 96)


@pytest.mark.parametrize("refine_assign", ["reassign", "inherit"])
def test_boxes_that_lose_their_sides(build, batch, refine_assign):
    """A box head gone astray moves every box out of the image; clipping leaves boxes of no area."""
    model = build(refine_assign=refine_assign)
    model.roi_head.bbox_head.fc_reg.bias.data.fill_(200.0)
    losses = losses_of(model, batch)
    assert torch.isfinite(total(losses))
    total(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("size", [1, 4])
def test_batch_sizes(build, size):
    model = build()
    images = make_batch([TWO_IMAGES[i % 2] for i in range(size)])
    assert torch.isfinite(total(losses_of(model, images)))
    assert len(predict(model, images)) == size


def test_no_proposal_at_test(lively, batch):
    x, proposals, data = features_and_proposals(lively, batch)
    head, samples = lively.roi_head, data["data_samples"]
    none = [InstanceData(bboxes=p.bboxes[:0], scores=p.scores[:0]) for p in proposals]
    with torch.no_grad():
        for result in head.predict(x, none, samples, rescale=True):
            assert len(result) == 0 and result.masks.shape == (0, 96, 96)
        empty, full = head.predict(x, [none[0], proposals[1]], samples, rescale=True)
        (alone,) = head.predict(tuple(f[1:] for f in x), proposals[1:], samples[1:], rescale=True)
    assert len(empty) == 0 and empty.masks.shape == (0, 96, 96)
    # The other image has what it has without this one.
    assert len(full) == len(alone) > 0
    for name in ("bboxes", "scores"):
        torch.testing.assert_close(full[name], alone[name], rtol=1e-3, atol=1e-3)
    assert full.masks.shape == alone.masks.shape


@pytest.mark.parametrize("with_truth", [True, False])
def test_no_proposal_in_training(build, batch, with_truth):
    """With ground truth, the sampler makes RoIs of it; without, there is none at all."""
    model = build()
    data = model.data_preprocessor(copy.deepcopy(batch), training=True)
    samples = data["data_samples"] if with_truth else make_batch([[], []])["data_samples"]
    none = [InstanceData(bboxes=torch.zeros(0, 4), scores=torch.zeros(0)) for _ in samples]
    losses = model.roi_head.loss(model.extract_feat(data["inputs"]), none, samples)
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in losses.values())
    total(losses).backward()
    if not with_truth:
        # mmdet's box head then gives no classification loss, neither vanilla nor refining.
        assert losses.keys() == {
            f"{stage}loss_{name}" for stage in ("", "refining.") for name in ("bbox", "mask")
        }
        return
    assert float(losses["refining.loss_cls"]) > 0
    assert [name for name, p in model.roi_head.named_parameters() if p.grad is None] == []


def test_no_detection(build, batch):
    model = build()
    model.roi_head.bbox_head.fc_cls.bias.data[-1] = 50.0  # background everywhere
    for result in predict(model, batch):
        assert len(result) == 0 and result.masks.shape == (0, 96, 96)
        assert "fused" not in result


def test_half_precision(build, batch):
    """The RoI head under autocast, as in mixed-precision training."""
    model = build()
    x, proposals, data = features_and_proposals(model, batch)
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.roi_head.loss(x, proposals, data["data_samples"])
    assert torch.isfinite(total(losses))
    total(losses).backward()
    model.eval()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        results = model.roi_head.predict(x, proposals, data["data_samples"])
    assert all(torch.isfinite(result.bboxes).all() for result in results)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_mixed_precision_on_a_gpu(build, batch):
    model = build().cuda()
    with torch.autocast("cuda"):
        loss = total(losses_of(model, batch))
    loss.backward()
    assert torch.isfinite(loss)


# Testing


def test_predictions_follow_the_definition(lively, batch):
    """Candidate by candidate, image by image, straight from section 3.3 and our decisions."""
    head = lively.roi_head
    head.alpha = 0.7
    cfg = lively.test_cfg.rcnn
    x, proposals, data = features_and_proposals(lively, batch)
    with torch.no_grad():
        results = head.predict_bbox(
            x, [s.metainfo for s in data["data_samples"]], proposals, rcnn_test_cfg=cfg
        )
        masks = head.predict_mask(
            x, [s.metainfo for s in data["data_samples"]], copy.deepcopy(results)
        )
        for image, result in enumerate(results):
            level = tuple(f[image : image + 1] for f in x)
            rois = bbox2roi([proposals[image].bboxes])
            vanilla = head._bbox_forward(level, rois)
            prob = vanilla["cls_score"].softmax(1)
            pairs, boxes = [], []
            for r in range(len(rois)):
                for c in range(3):
                    if prob[r, c] > 0.05:
                        delta = vanilla["bbox_pred"][r : r + 1, 4 * c : 4 * c + 4]
                        box = head.bbox_head.bbox_coder.decode(
                            rois[r : r + 1, 1:], delta, max_shape=(96, 96)
                        )
                        pairs.append((r, c))
                        boxes.append(box[0])
            boxes, classes = torch.stack(boxes), torch.tensor([c for _, c in pairs])
            scores = torch.stack([prob[r, c] for r, c in pairs])
            _, keep = batched_nms(boxes, scores, classes, dict(type="nms", iou_threshold=0.7))
            refined, final, minus = [], [], []
            for i in keep[:200].tolist():
                (r, c), roi = pairs[i], F.pad(boxes[i], (1, 0))[None]
                feats = head.mask_roi_extractor(level[:4], roi)
                mask_logits = head.mask_head(feats)
                for conv in head.mask_head.convs:
                    feats = conv(feats)
                minus.append(head.fusion(feats)[0])
                s_r, deltas = head.refining_bbox_head(
                    head.refining_bbox_roi_extractor(level[:4], roi, mask_logits[:, c].sigmoid())
                )
                s = (vanilla["cls_score"][r] + 0.7 * s_r[0]) / 1.7
                final.append(s.softmax(0)[c])
                refined.append(
                    head.refining_bbox_head.bbox_coder.decode(
                        roi[:, 1:], deltas[:, 4 * c : 4 * c + 4], max_shape=(96, 96)
                    )[0]
                )
            refined, final, classes = torch.stack(refined), torch.stack(final), classes[keep[:200]]
            minus = torch.stack(minus)
            good = final > 0.05
            dets, keep = batched_nms(
                refined[good], final[good], classes[good], dict(type="nms", iou_threshold=0.5)
            )
            torch.testing.assert_close(result.bboxes, dets[:100, :4], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(result.scores, dets[:100, 4], rtol=1e-4, atol=1e-5)
            assert torch.equal(result.labels, classes[good][keep[:100]])
            assert 0 < len(result) <= 100
            minus = minus[good][keep[:100]]
            torch.testing.assert_close(result.fused, minus, rtol=1e-3, atol=1e-3)
            own = head.refining_mask_head(
                head.mask_roi_extractor(level[:4], bbox2roi([dets[:100, :4]])) + minus
            )
            expected = head.refining_mask_head.predict_by_feat(
                (own,), [copy.deepcopy(result)], [data["data_samples"][image].metainfo], cfg
            )
            wanted, got = expected[0].masks, masks[image].masks
            assert wanted.shape == got.shape == (len(result), 96, 96) and wanted.any()
            assert (wanted != got).float().mean() < 1e-3


def test_boxes_of_the_original_image(lively, batch):
    """``rescale`` as in mmdet's head, whose NMS does not notice it either."""
    x, proposals, data = features_and_proposals(lively, batch)
    metas = [{**s.metainfo, "scale_factor": (2.0, 0.5)} for s in data["data_samples"]]
    with torch.no_grad():
        small, large = (
            lively.roi_head.predict_bbox(x, metas, proposals, lively.test_cfg.rcnn, rescale)
            for rescale in (False, True)
        )
    for a, b in zip(small, large, strict=True):
        assert len(a) > 0
        torch.testing.assert_close(a.bboxes * torch.tensor([0.5, 2, 0.5, 2]), b.bboxes)
        assert torch.equal(a.scores, b.scores)


def test_candidates_left_out_of_the_config_have_the_default(lively, batch):
    default = predict(lively, batch)
    cfg = lively.roi_head.test_cfg
    cfg.candidates = dict(max_per_img=200)
    for a, b in zip(default, predict(lively, batch), strict=True):
        assert len(a) > 0 and torch.equal(a.bboxes, b.bboxes)
    cfg.candidates = dict(max_per_img=1)
    assert [len(result) for result in predict(lively, batch)] == [1, 1]
    del cfg["candidates"]
    for a, b in zip(default, predict(lively, batch), strict=True):
        assert torch.equal(a.bboxes, b.bboxes)


def test_alpha_zero_equals_refining_boxes_alone(lively, batch):
    lively.roi_head.alpha = 0.0
    averaged = predict(lively, batch)
    lively.roi_head.alpha, lively.roi_head.refine_cls = 1.0, False
    alone = predict(lively, batch)
    for a, b in zip(averaged, alone, strict=True):
        assert len(a) > 0
        for name in ("bboxes", "scores", "labels", "masks"):
            assert torch.equal(a[name], b[name])


def test_scores_change_with_alpha(lively, batch):
    lively.roi_head.alpha = 0.0
    before = predict(lively, batch)[0].scores
    lively.roi_head.alpha = 2.0
    after = predict(lively, batch)[0].scores
    assert before.shape != after.shape or not torch.allclose(before, after)


def test_without_box_refinement_boxes_are_the_vanilla_ones(lively, batch):
    lively.roi_head.refine_reg = False
    x, proposals, data = features_and_proposals(lively, batch)
    metas = [sample.metainfo for sample in data["data_samples"]]
    with torch.no_grad():
        kept = lively.roi_head.predict_bbox(x, metas, proposals, lively.test_cfg.rcnn)
        vanilla = lively.roi_head._bbox_forward(x, bbox2roi([p.bboxes for p in proposals]))
        candidates = lively.roi_head._candidates(
            bbox2roi([p.bboxes for p in proposals]),
            [p.bboxes for p in proposals],
            vanilla,
            metas,
            lively.test_cfg.rcnn,
        )
    for result, candidate in zip(kept, candidates, strict=True):
        distance = (result.bboxes[:, None] - candidate.bboxes).abs().amax(2)
        assert len(result) > 0 and (distance.amin(1) < 1e-3).all()


def test_a_batch_gives_what_its_images_give(lively):
    both = predict(lively, make_batch(TWO_IMAGES))
    for image, result in enumerate(both):
        one = make_batch(TWO_IMAGES)
        alone = dict(
            inputs=one["inputs"][image : image + 1],
            data_samples=one["data_samples"][image : image + 1],
        )
        single = predict(lively, alone)[0]
        assert len(single) == len(result)
        torch.testing.assert_close(single.scores, result.scores, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(single.bboxes, result.bboxes, rtol=1e-3, atol=1e-2)


def test_class_agnostic_heads(model_cfg, build, batch):
    bbox_head = {**model_cfg.roi_head.bbox_head, "reg_class_agnostic": True}
    mask_head = {**model_cfg.roi_head.mask_head, "class_agnostic": True}
    model = build(bbox_head=bbox_head, mask_head=mask_head)
    train_a_little(model, batch, iterations=3)
    for result in predict(model, batch):
        assert result.masks.shape[1:] == (96, 96)


def test_counters_can_run_it(build, batch):
    model = build()
    data = model.data_preprocessor(copy.deepcopy(batch), training=False)
    (outputs,) = model(**data, mode="tensor")
    cls_score, deltas, prob, refined_score, refined_deltas, masks = outputs
    assert cls_score.shape == (120, 4) and deltas.shape == (120, 12)
    assert prob.shape == (100, 28, 28) and masks.shape == (100, 3, 28, 28)
    assert refined_score.shape == (100, 4) and refined_deltas.shape == (100, 12)


def test_changes_to_the_refining_heads_are_merged_over_the_vanilla_configs(build):
    head = build(
        refining_bbox_head=dict(loss_cls=dict(loss_weight=0.5)),
        refining_mask_head=dict(num_convs=2, loss_mask=dict(loss_weight=3)),
        refining_bbox_roi_extractor=dict(roi_layer=dict(sampling_ratio=2)),
    ).roi_head
    assert head.refining_bbox_head.loss_cls.loss_weight == 0.5
    assert head.bbox_head.loss_cls.loss_weight == 1.0
    assert head.refining_bbox_head.num_classes == 3
    assert (len(head.refining_mask_head.convs), len(head.mask_head.convs)) == (2, 4)
    assert head.refining_mask_head.loss_mask.loss_weight == 3
    extractor = head.refining_bbox_roi_extractor
    assert type(extractor).__name__ == "ShapeAwareRoIExtractor"
    assert [layer.sampling_ratio for layer in extractor.roi_layers] == [2] * 4
    assert head.bbox_roi_extractor.roi_layers[0].sampling_ratio == 0


def test_changes_are_merged_as_mmengine_merges_configs():
    vanilla = dict(type="A", size=1, loss=dict(type="B", weight=2), list=[1])
    assert changed(vanilla, None) == changed(vanilla, {}) == vanilla
    assert changed(vanilla, dict(type="D", size=3)) == {**vanilla, "type": "D", "size": 3}
    change = dict(loss=dict(_delete_=True, type="C"), list=[], new=dict(_delete_=True, a=1))
    assert changed(vanilla, change) == {
        **vanilla,
        "loss": dict(type="C"),
        "list": [],
        "new": dict(a=1),
    }
    assert changed(vanilla, dict(_delete_=True, type="D")) == dict(type="D")
    assert changed(vanilla, dict(size=dict(a=1)))["size"] == dict(a=1)
    # Neither is touched, nor shared.
    changed(vanilla, change).list.append(2)
    assert vanilla == dict(type="A", size=1, loss=dict(type="B", weight=2), list=[1])
    assert change["list"] == [] and change["loss"]["_delete_"]


SEESAW = dict(loss_cls=dict(type="SeesawLoss", num_classes=3))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(refine_assign="other"), "refine_assign"),
        (dict(mask_head=None), "give both"),
        (dict(shared_head=dict(type="ResLayer")), "shared_head"),
        (dict(alpha=-1.0), "alpha weighs logits: it must be 0 or more, got -1.0"),
        (dict(refining_bbox_head=SEESAW), "loss_cls=SeesawLoss has score channels of its own"),
        (
            dict(mask_head=dict(type="HTCMaskHead", in_channels=64, num_classes=3)),
            "HTCMaskHead does neither",
        ),
    ],
)
def test_wrong_settings_are_named(build, change, text):
    with pytest.raises(ValueError, match=text):
        build(**change)
