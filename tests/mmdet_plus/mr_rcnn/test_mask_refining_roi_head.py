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
    history = train_a_little(build(), batch, iterations=12)
    assert np.mean(history[-3:]) < 0.7 * np.mean(history[:3])


def test_same_seed_same_losses(build, batch):
    first = train_a_little(build(seed=3), batch, iterations=3, seed=5)
    again = train_a_little(build(seed=3), batch, iterations=3, seed=5)
    assert first == again


@pytest.mark.parametrize("refine_assign", ["reassign", "inherit"])
def test_targets_keep_all_rois(build, batch, refine_assign):
    model = build(refine_assign=refine_assign)
    head = model.roi_head
    seen = {}
    loss_and_target = head.refining_bbox_head.loss_and_target

    def spy(cls_score, bbox_pred, rois, sampling_results, *args, **kwargs):
        seen.update(rois=rois, results=sampling_results)
        return loss_and_target(cls_score, bbox_pred, rois, sampling_results, *args, **kwargs)

    head.refining_bbox_head.loss_and_target = spy
    losses_of(model, batch)
    assert len(seen["rois"]) == 2 * 32
    # The features' rows and the targets' rows are the same boxes in the same order.
    priors = bbox2roi([result.priors for result in seen["results"]])
    # The mask loss has since put B^r in place of the positives' B.
    negatives = torch.cat(
        [
            torch.cat([torch.zeros(len(r.pos_priors)), torch.ones(len(r.neg_priors))])
            for r in seen["results"]
        ]
    ).bool()
    assert negatives.any() and not negatives.all()
    assert torch.equal(priors[negatives], seen["rois"][negatives])


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


def test_refining_mask_head_starts_as_the_mask_head(build):
    """F^- is added through a convolution that starts at zero (systems: initialisation)."""
    head = build().roi_head
    x = tuple(torch.randn(1, 64, 96 // s, 96 // s) for s in (4, 8, 16, 32, 64))
    rois = torch.tensor([[0, 10.0, 10.0, 60.0, 70.0]])
    _, fused = head.guidance(x, rois, torch.tensor([1]))
    assert fused.shape == (1, 64, 14, 14)
    plain = head.refining_mask_head(head.mask_roi_extractor(x[:4], rois))
    assert torch.equal(head.refine_mask(x, rois, fused), plain)
    torch.nn.init.normal_(head.fusion.weight)
    _, fused = head.guidance(x, rois, torch.tensor([1]))
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


def test_one_instance_of_one_pixel(build):
    losses = losses_of(build(), make_batch([[(50, 50, 51, 51)]]))
    assert torch.isfinite(total(losses))


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


def test_no_proposal(build, batch):
    model = build()
    x, proposals, data = features_and_proposals(model, batch)
    none = [InstanceData(bboxes=p.bboxes[:0], scores=p.scores[:0]) for p in proposals]
    for given in (none, [none[0], proposals[1]]):
        results = model.roi_head.predict(x, given, data["data_samples"], rescale=True)
        assert len(results[0]) == 0 and results[0].masks.shape == (0, 96, 96)
    ground_truth = [sample.gt_instances for sample in data["data_samples"]]
    for gt in ground_truth:
        assert len(gt) > 0
    empty = make_batch([[], []])["data_samples"]
    model.train()
    losses = model.roi_head.loss(x, none, empty)
    assert all(torch.isfinite(torch.as_tensor(v)).all() for v in losses.values())


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
            refined, final = [], []
            for i in keep[:200].tolist():
                (r, c), roi = pairs[i], F.pad(boxes[i], (1, 0))[None]
                mask_logits = head.mask_head(head.mask_roi_extractor(level[:4], roi))
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
            good = final > 0.05
            dets, keep = batched_nms(
                refined[good], final[good], classes[good], dict(type="nms", iou_threshold=0.5)
            )
            torch.testing.assert_close(result.bboxes, dets[:100, :4], rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(result.scores, dets[:100, 4], rtol=1e-4, atol=1e-5)
            assert torch.equal(result.labels, classes[good][keep[:100]])
            assert 0 < len(result) <= 100
            assert masks[image].masks.shape == (len(result), 96, 96)


def test_masks_are_the_refining_heads_on_refined_boxes(lively, batch):
    head = lively.roi_head
    x, proposals, data = features_and_proposals(lively, batch)
    metas = [sample.metainfo for sample in data["data_samples"]]
    with torch.no_grad():
        results = head.predict_bbox(x, metas, proposals, lively.test_cfg.rcnn)
        logits = head.refine_mask(
            x, bbox2roi([r.bboxes for r in results]), torch.cat([r.fused for r in results])
        )
        expected = head.refining_mask_head.predict_by_feat(
            logits.split([len(r) for r in results]),
            copy.deepcopy(results),
            metas,
            lively.test_cfg.rcnn,
        )
        masks = head.predict_mask(x, metas, copy.deepcopy(results))
    for got, want in zip(masks, expected, strict=True):
        assert torch.equal(got.masks, want.masks) and want.masks.any()


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
        num = len(proposals[0])
        candidates = lively.roi_head._candidates(
            proposals[0].bboxes,
            vanilla["cls_score"][:num],
            vanilla["bbox_pred"][:num],
            metas[0],
            dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.7), max_per_img=200),
        )
    distance = (kept[0].bboxes[:, None] - candidates.bboxes).abs().amax(2)
    assert len(kept[0]) > 0 and (distance.amin(1) < 1e-3).all()


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


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (dict(refine_assign="other"), "refine_assign"),
        (dict(mask_head=None), "give both"),
        (dict(shared_head=dict(type="ResLayer")), "shared_head"),
    ],
)
def test_wrong_settings_are_named(build, change, text):
    with pytest.raises(ValueError, match=text):
        build(**change)
