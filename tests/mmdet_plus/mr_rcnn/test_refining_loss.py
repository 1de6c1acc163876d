"""The losses of the refining module, against their definition RoI by RoI."""

import copy

import numpy as np
import pytest
import torch
from mmdet.models.task_modules.samplers import PseudoSampler
from mmdet.registry import TASK_UTILS
from mmdet.structures.bbox import bbox2roi, bbox_overlaps
from mmengine.structures import InstanceData
from tiny_mr_rcnn import make_batch
from torch.nn import functional as F

# Pairs of neighbours of different classes, so that a box can move from one to the other.
NEIGHBOURS = [
    [(10, 10, 50, 50), (20, 14, 60, 56), (52, 50, 92, 92)],
    [(8, 30, 60, 80), (16, 22, 70, 74)],
]
SIZE, CLASSES = 96, 3


def crowd_of_rois(gt, count, generator):
    """RoIs strewn around ground truth, on both sides of the threshold of IoU 0.5."""
    chosen = torch.randint(len(gt), (count,), generator=generator)
    shift = (
        torch.randn(count, 4, generator=generator)
        * torch.tensor([6, 14]).repeat(count)[:count, None]
    )
    boxes = (gt.bboxes[chosen] + shift).clamp(0, SIZE)
    return boxes[(boxes[:, 2:] - boxes[:, :2]).amin(1) > 4]


@pytest.fixture
def restless(build):
    """Heads that move boxes far, doubt their classes, and draw another mask for every RoI."""

    def make(**roi_head):
        head = build(**roi_head).roi_head
        torch.manual_seed(2)
        for box_head in (head.bbox_head, head.refining_bbox_head):
            torch.nn.init.normal_(box_head.fc_cls.weight, std=1.0)
            torch.nn.init.normal_(box_head.fc_reg.weight, std=0.5)
        for mask_head in (head.mask_head, head.refining_mask_head):
            torch.nn.init.normal_(mask_head.conv_logits.weight, std=1.0)
        torch.nn.init.normal_(head.fusion.weight, std=0.05)
        return head

    return make


@pytest.fixture
def situation():
    """Features, ground truth and proposals of two images."""
    generator = torch.Generator().manual_seed(4)
    x = tuple(
        torch.randn(2, 64, SIZE // s, SIZE // s, generator=generator) for s in (4, 8, 16, 32, 64)
    )
    samples = make_batch(NEIGHBOURS, size=SIZE)["data_samples"]
    boxes = [crowd_of_rois(s.gt_instances, 24, generator) for s in samples]
    return x, samples, boxes


def sample_all(head, samples, boxes):
    """The first assignment, without chance: every RoI is taken."""
    results = []
    for sample, box in zip(samples, boxes, strict=True):
        priors = InstanceData(priors=box)
        assigned = head.bbox_assigner.assign(priors, sample.gt_instances, None)
        results.append(PseudoSampler().sample(assigned, priors, sample.gt_instances))
    return results


def definition(head, x, samples, sampled, refine_assign):
    """Section 1 of the design, one RoI after the other.

    Returns:
        The losses, and of each RoI its first label, guidance class and new label.
    """
    cls, reg, mask, hits, story = [], [], [], [], []
    for image, (sample, first) in enumerate(zip(samples, sampled, strict=True)):
        level, gt = tuple(f[image : image + 1] for f in x[:4]), sample.gt_instances
        labels = first.pos_gt_labels.tolist() + [CLASSES] * len(first.neg_priors)
        for k, (prior, label) in enumerate(zip(first.priors, labels, strict=True)):
            roi = F.pad(prior, (1, 0))[None]
            score, deltas = head.bbox_head(head.bbox_roi_extractor(level, roi))
            c = label if label < CLASSES else int(score[0, :CLASSES].argmax())
            decode = head.bbox_head.bbox_coder.decode
            box = decode(prior[None], deltas[:, 4 * c : 4 * c + 4], max_shape=(SIZE, SIZE))
            box = box.detach()

            roi = F.pad(box, (1, 0))
            feats = head.mask_roi_extractor(level, roi)
            prob = head.mask_head(feats)[:, c].sigmoid().detach()
            score, deltas = head.refining_bbox_head(
                head.refining_bbox_roi_extractor(level, roi, prob)
            )
            overlap, nearest = bbox_overlaps(box, gt.bboxes)[0].max(0)
            match = int(nearest) if overlap >= 0.5 else None
            if refine_assign == "inherit":
                match = int(first.pos_assigned_gt_inds[k]) if label < CLASSES else None
            target = CLASSES if match is None else int(gt.labels[match])
            story.append((label, c, target))
            cls.append(F.cross_entropy(score, torch.tensor([target])))
            hits.append(float(score.argmax() == target))
            if match is None:
                continue

            own = deltas[:, 4 * target : 4 * target + 4]
            coder = head.refining_bbox_head.bbox_coder
            reg.append((own - coder.encode(box, gt.bboxes[match][None])).abs().sum())
            refined = coder.decode(box, own.detach(), max_shape=(SIZE, SIZE))
            for conv in head.mask_head.convs:
                feats = conv(feats)
            fused = head.mask_roi_extractor(level, F.pad(refined, (1, 0))) + head.fusion(feats)
            logits = head.refining_mask_head(fused)[0, target]
            cut = gt.masks.crop_and_resize(refined.numpy(), (28, 28), np.array([match]), "cpu")
            wanted = torch.from_numpy(cut.masks[0]).float()
            mask.append(F.binary_cross_entropy_with_logits(logits, wanted))
    losses = dict(
        loss_cls=torch.stack(cls).mean(),
        acc=torch.tensor(100 * sum(hits) / len(hits)),
        loss_bbox=torch.stack(reg).sum() / len(cls),
        loss_mask=torch.stack(mask).mean(),
    )
    return losses, story


@pytest.mark.parametrize("refine_assign", ["reassign", "inherit"])
def test_losses_follow_the_definition(restless, situation, refine_assign):
    head = restless(refine_assign=refine_assign)
    x, samples, boxes = situation
    sampled = sample_all(head, samples, boxes)
    expected, story = definition(head, x, samples, sampled, refine_assign)

    # Otherwise the figures would say little: boxes change sides, and labels with them.
    changed = {(label < CLASSES, target < CLASSES) for label, _, target in story}
    if refine_assign == "reassign":
        assert changed == {(True, True), (True, False), (False, True), (False, False)}
        assert any(label != target for label, _, target in story if max(label, target) < CLASSES)
    assert len({c for label, c, _ in story if label == CLASSES}) > 1

    bbox_results = head._bbox_forward(x, bbox2roi([result.priors for result in sampled]))
    gts = [sample.gt_instances for sample in samples]
    ignored = [sample.ignored_instances for sample in samples]
    metas = [sample.metainfo for sample in samples]
    losses = head.refining_loss(x, sampled, bbox_results, gts, ignored, metas)
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name].squeeze(), value, rtol=1e-4, atol=1e-5)

    # And their gradients: to the mask head's convolutions through F^-, to the new 1x1 one.
    total = sum(value for name, value in expected.items() if "loss" in name)
    ours = sum(value for name, value in losses.items() if "loss" in name)
    for weight in (
        head.fusion.weight,
        head.mask_head.convs[0].conv.weight,
        head.refining_bbox_head.fc_reg.weight,
    ):
        theirs = torch.autograd.grad(total, weight, retain_graph=True)[0]
        got = torch.autograd.grad(ours, weight, retain_graph=True)[0]
        torch.testing.assert_close(got, theirs, rtol=1e-3, atol=1e-5)
    (vanilla,) = torch.autograd.grad(
        ours, head.bbox_head.fc_reg.weight, retain_graph=True, allow_unused=True
    )
    assert vanilla is None or vanilla.abs().sum() == 0, "B is detached"


def test_hard_rois_are_mined_on_their_own_image(restless, situation):
    """With mmdet's OHEM sampler, an image's RoIs do not depend on its place in the batch."""
    head = restless()
    sampler = dict(type="OHEMSampler", num=6, pos_fraction=0.5, add_gt_as_proposals=False)
    head.bbox_sampler = TASK_UTILS.build(sampler, default_args=dict(context=head))
    x, samples, boxes = situation
    seen = []
    bbox_loss = head.bbox_loss
    head.bbox_loss = lambda feats, results: seen.append(results) or bbox_loss(feats, results)

    def mined(images):
        feats = tuple(torch.cat([f[i : i + 1] for i in images]) for f in x)
        proposals = [InstanceData(bboxes=boxes[i]) for i in images]
        head.loss(feats, proposals, [copy.deepcopy(samples[i]) for i in images])
        return [result.priors for result in seen.pop()]

    together = mined([0, 1])
    assert [len(priors) for priors in together] == [6, 6]
    for image in (0, 1):
        assert torch.equal(together[image], mined([image])[0])
