"""The fusers as parts of a config, alone and in models."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

from mmdet_plus import panoptic_fusion
from mmdet_plus.panoptic_fusion import to_mmdet_panoptic, unknown_erasing
from mmseg_plus.common.config import read_config

THINGS, STUFF, SIDE = 3, 2, 24
SETTINGS = dict(overlap_thr=0.4, stuff_area_limit=20, score_thr=0.3)
OCCLUSION = torch.tensor([[0.0, 0.2, 0.5], [0.9, 0.0, 0.5], [0.5, 0.5, 0.0]])


def results(**fields):
    masks = torch.zeros(3, SIDE, SIDE, dtype=torch.bool)
    masks[0, 2:14, 2:14] = masks[1, 4:16, 6:18] = masks[2, 18:22, 18:22] = True
    labels = torch.tensor([2, 0, 1])
    scores = torch.tensor([0.9, 0.7, 0.2])
    return InstanceData(
        masks=masks, labels=labels, scores=scores, bboxes=torch.zeros(3, 4), **fields
    )


def logits(channels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, channels, 4, 4, generator=generator)
    return 3 * torch.nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")[0]


def build(kind, **arguments):
    init_default_scope("mmdet")
    head = dict(type=kind, num_things_classes=THINGS, num_stuff_classes=STUFF)
    return MODELS.build(head | dict(test_cfg=SETTINGS) | arguments)


# The stuff label of each channel, 0 for things.
LAYOUTS = {STUFF + 1: [1, 2, 0], THINGS + STUFF: [0, 0, 0, 1, 2]}


@pytest.mark.parametrize("channels", LAYOUTS)
@pytest.mark.parametrize(
    ("kind", "function", "fields", "arguments"),
    [
        ("HeuristicFusion", "fuse_heuristic", {}, {}),
        (
            "SpatialRankingFusion",
            "fuse_spatial_ranking",
            dict(ranking_scores=torch.tensor([0.1, 0.5, 0.9])),
            {},
        ),
        ("OcclusionFusion", "fuse_occlusion", dict(occlusion=OCCLUSION), dict(occlusion_thr=0.1)),
        (
            "SoftOcclusionFusion",
            "fuse_soft_occlusion",
            dict(occlusion=OCCLUSION),
            dict(sigma=0.5, occlusion_thr=0.1),
        ),
    ],
)
def test_a_fuser_is_its_function(channels, kind, function, fields, arguments):
    found = results(**fields)
    seg = logits(channels)
    sem = torch.tensor(LAYOUTS[channels])[seg.argmax(0)]
    panoptic, segments = getattr(panoptic_fusion, function)(
        found.masks, found.scores, found.labels, sem, **fields, **SETTINGS, **arguments
    )
    (ours,) = build(kind, **arguments).predict([found], [seg])
    assert torch.equal(ours.sem_seg, to_mmdet_panoptic(panoptic, segments, THINGS, STUFF).sem_seg)
    assert len(segments) >= 3
    plain = build("HeuristicFusion").predict([found], [seg])[0].sem_seg
    assert torch.equal(ours.sem_seg, plain) == (kind == "HeuristicFusion")


@pytest.mark.parametrize("channels", LAYOUTS)
def test_erasing_comes_before_the_fusion(channels):
    seg, found = logits(channels), results()
    stuff = [channel for channel, label in enumerate(LAYOUTS[channels]) if label]
    erased = unknown_erasing(seg.softmax(0), 0.8, 1, stuff, void=channels)
    sem = torch.tensor([*LAYOUTS[channels], 0])[erased]
    panoptic, segments = panoptic_fusion.fuse_heuristic(
        found.masks, found.scores, found.labels, sem, **SETTINGS
    )
    fuser = build("HeuristicFusion", unknown_erasing=dict(threshold=0.8, dilation=1))
    (ours,) = fuser.predict([found], [seg])
    assert torch.equal(ours.sem_seg, to_mmdet_panoptic(panoptic, segments, THINGS, STUFF).sem_seg)
    (plain,) = build("HeuristicFusion").predict([found], [seg])
    void = THINGS + STUFF
    assert (ours.sem_seg == void).sum() > (plain.sem_seg == void).sum()
    assert build("HeuristicFusion", unknown_erasing={}).unknown_erasing.threshold == 0.5


def test_mmdet_s_name_of_the_overlap():
    fuser = build("HeuristicFusion", test_cfg=dict(mask_overlap=0.7, stuff_area_limit=9))
    assert fuser.settings == dict(overlap_thr=0.7, stuff_area_limit=9)
    assert build("HeuristicFusion", test_cfg=None).settings == {}


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="4 channels are neither of 2 classes of stuff"):
        build("HeuristicFusion").predict([results()], [logits(4)])
    for kind, field in (
        ("SpatialRankingFusion", "ranking_scores"),
        ("OcclusionFusion", "occlusion"),
        ("SoftOcclusionFusion", "occlusion"),
    ):
        with pytest.raises(ValueError, match=f"{kind} needs '{field}'"):
            build(kind).predict([results()], [logits(3)])


def test_nothing_found():
    (empty,) = build("HeuristicFusion").predict([results()[:0]], [logits(3)])
    assert empty.sem_seg.shape == (1, SIDE, SIDE) and empty.sem_seg.max() <= THINGS + STUFF


def test_in_mmdet_s_panoptic_fpn():
    cfg = read_config("panoptic-fpn_r18_shapes").model
    cfg.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    cfg.neck.in_channels = [8, 16, 32, 64]
    cfg.test_cfg.rcnn.score_thr = 0.0
    cfg.test_cfg.panoptic.update(stuff_area_limit=16, score_thr=0.0)
    maps = []
    for kind in ("HeuristicFusionHead", "HeuristicFusion"):
        cfg.panoptic_fusion_head.type = kind
        torch.manual_seed(0)
        model = MODELS.build(copy.deepcopy(cfg)).eval()
        image = torch.randint(0, 256, (3, 64, 64), generator=torch.Generator().manual_seed(1))
        from mmdet.structures import DetDataSample

        meta = dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo=meta)
        (found,) = model.test_step(dict(inputs=[image.byte()], data_samples=[sample]))
        maps.append(found.pred_panoptic_seg.sem_seg)
    assert torch.equal(*maps)
    assert (maps[0] >= 1000).any(), "there are instances"


def test_one_class_of_things_comes_last_unless_told():
    fuser = dict(num_things_classes=1, num_stuff_classes=3)
    assert build("HeuristicFusion", **fuser).stuff_channels(4) == range(3)
    assert build("HeuristicFusion", **fuser, things_apart=True).stuff_channels(4) == range(1, 4)
    assert build("HeuristicFusion", **fuser, things_apart=False).stuff_channels(4) == range(3)
    # Elsewhere the numbers tell.
    assert build("HeuristicFusion", things_apart=True).stuff_channels(3) == range(2)
