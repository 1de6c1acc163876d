"""REFINE where there is a GPU: what the CPU gives, with pairs, without, and with nothing found."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from tiny_mr_rcnn import TWO_IMAGES
from tiny_refine import (
    BOXES,
    SIDE,
    THINGS,
    build,
    drawn,
    found,
    losses_of,
    make_panoptic_batch,
    model_cfg,
    truth,
)

from mmdet_plus.panoptic_fusion import (
    fuse_heuristic,
    fuse_occlusion,
    fuse_soft_occlusion,
    fuse_spatial_ranking,
    unknown_erasing,
)

pytestmark = pytest.mark.cuda

NETWORKS = {
    "OcclusionHead": "SoftOcclusionFusion",
    "SpatialRankingHead": "SpatialRankingFusion",
}


def refine(head, **changes):
    cfg = model_cfg(2)
    cfg.occlusion_head = ConfigDict(type=head, num_classes=THINGS, score_thr=0.0)
    if head == "OcclusionHead":
        extractor = copy.deepcopy(cfg.roi_head.mask_roi_extractor)
        cfg.occlusion_head.update(roi_extractor=extractor, conv_channels=8, fc_channels=8)
    cfg.panoptic_fusion_head.update(type=NETWORKS[head], unknown_erasing=dict())
    cfg.test_cfg.panoptic.score_thr = 0.0
    cfg.test_cfg.rcnn.update(changes)
    return build(cfg)


@pytest.mark.parametrize("head", NETWORKS)
@pytest.mark.parametrize("amp", [False, True])
@pytest.mark.parametrize("boxes", [TWO_IMAGES, [[], []]], ids=["things", "none"])
def test_a_step_and_a_prediction(head, amp, boxes):
    model, batch = refine(head).cuda(), make_panoptic_batch(boxes)
    with torch.autocast("cuda", enabled=amp):
        total, _ = model.parse_losses(losses_of(model, batch))
    total.backward()
    assert total.isfinite() and all(p.grad is not None for p in model.parameters())
    data = model.eval().data_preprocessor(batch, False)
    with torch.no_grad(), torch.autocast("cuda", enabled=amp):
        for sample in model.predict(data["inputs"], data["data_samples"]):
            assert sample.pred_panoptic_seg.sem_seg.shape == (1, 96, 96)


@pytest.mark.parametrize("head", NETWORKS)
def test_nothing_found(head):
    model, batch = refine(head, score_thr=2.0).cuda().eval(), make_panoptic_batch(TWO_IMAGES)
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        for sample in model.predict(data["inputs"], data["data_samples"]):
            assert sample.pred_panoptic_seg.sem_seg.shape == (1, 96, 96)


def test_an_occlusion_head_learns_the_same():
    head = refine("OcclusionHead").occlusion_head
    features = [torch.randn(2, 8, s, s) for s in (16, 8, 4, 2)]
    results, samples = [found(), found()], [truth(0), truth(1)]
    wanted = head.loss(features, results, samples)["loss_occlusion"]
    moved = [result.to("cuda") for result in results]
    for sample in samples:
        sample.gt_instances.labels = sample.gt_instances.labels.cuda()
    given = head.cuda().loss([level.cuda() for level in features], moved, samples)
    torch.testing.assert_close(given["loss_occlusion"].cpu(), wanted, rtol=1e-3, atol=1e-4)


def test_the_fusers_give_what_they_give_on_the_cpu():
    generator = torch.Generator().manual_seed(0)
    masks, labels = drawn(BOXES), torch.tensor([0, 1, 2])
    scores = torch.tensor([0.9, 0.8, 0.7])
    occlusion = torch.rand(3, 3, generator=generator)
    probs = torch.rand(4, SIDE, SIDE, generator=generator).softmax(0)
    sem = unknown_erasing(probs, 0.26, 2)
    assert torch.equal(unknown_erasing(probs.cuda(), 0.26, 2).cpu(), sem)
    for fuse, extra in (
        (fuse_heuristic, ()),
        (fuse_spatial_ranking, (torch.tensor([0.1, 0.3, 0.2]),)),
        (fuse_occlusion, (occlusion,)),
        (fuse_soft_occlusion, (occlusion,)),
    ):
        given = (masks, scores, labels, sem, *extra)
        wanted, segments = fuse(*given, stuff_area_limit=4)
        panoptic, found_segments = fuse(*(part.cuda() for part in given), stuff_area_limit=4)
        assert torch.equal(panoptic.cpu(), wanted) and found_segments == segments
