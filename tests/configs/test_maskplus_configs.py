"""What the configs of MaskPlus say: one switch a row of the tables, and the paper's schedule."""

import functools
from pathlib import Path

import pytest
from mmengine.config import Config

from mmdet_plus.engine.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "maskplus"
FULL = [720, 512, 512, 256]
HOOK = dict(type="BiasedTrainingHook", weight=1.5, switch=0.5)
ALL = dict(
    contextual_fusion=FULL,
    deconv_pyramid=True,
    boundary_refinement="improved",
    quasi_multitask=0.5,
)
# Between ``maskplus_r50_fpn_`` and ``_360k_coco``: the switches that are on, and the hook.
ROWS = {
    "contextual-fusion-256-256": (dict(contextual_fusion=[256, 256]), False),
    "contextual-fusion-256-256-256": (dict(contextual_fusion=[256, 256, 256]), False),
    "contextual-fusion-512-256-256": (dict(contextual_fusion=[512, 256, 256]), False),
    "contextual-fusion": (dict(contextual_fusion=FULL), False),
    "deconv-pyramid": (dict(deconv_pyramid=True), False),
    "gcn-refinement": (dict(boundary_refinement="gcn"), False),
    "boundary-refinement": (dict(boundary_refinement="improved"), False),
    "half-quasi-multitask": (dict(quasi_multitask=0.5), False),
    "double-quasi-multitask": (dict(quasi_multitask=2), False),
    "biased-training": ({}, True),
}
OTHERS = {
    "cascade-mask-rcnn_r101_fpn_540k_coco": ({}, False),
    "cascade-maskplus_r101_fpn_540k_coco": (ALL, True),
    "mask-rcnn_r101_fpn_360k_coco": ({}, False),
    "mask-rcnn_r50_fpn_360k_coco": ({}, False),
    "mask-rcnn_r50_fpn_half-mask_360k_coco": ({}, False),
    "maskplus-mr-rcnn_r50_fpn_9k_coco": (ALL, True),
    "maskplus_r101_fpn_360k_coco": (ALL, True),
    "maskplus_r50_fpn_360k_coco": (ALL, True),
    "maskplus_swin-t-p4-w7_fpn_1x_coco": (ALL, True),
}
NAMES = OTHERS | {f"maskplus_r50_fpn_{part}_360k_coco": row for part, row in ROWS.items()}
every_config = pytest.mark.parametrize("name", sorted(NAMES))


@functools.cache
def read(name):
    """The config, which no test changes."""
    return Config.fromfile(FOLDER / f"{name}.py")


def test_the_rows_are_all_there():
    assert {path.stem for path in FOLDER.glob("*.py")} == NAMES.keys()


@every_config
def test_switches(name):
    cfg = read(name)
    switches, biased = NAMES[name]
    head = cfg.model.roi_head
    assert {key: head[key] for key in ALL if head.get(key)} == switches
    assert [dict(hook) for hook in cfg.get("custom_hooks", [])] == [HOOK] * biased
    assert ("MaskPlus" in head.type) == bool(switches)
    # The RoI head makes its mask head a MaskPlusHead.
    assert "MaskPlus" not in str(head.mask_head.get("type"))


@every_config
def test_the_rest_of_the_model_is_the_baseline(name):
    if not name.startswith(("maskplus_r", "cascade-maskplus")):
        return
    plain = "cascade-mask-rcnn" if name.startswith("cascade") else "mask-rcnn"
    backbone = name.split("_")[1]
    length = "540k" if plain.startswith("cascade") else "360k"
    base = read(f"{plain}_{backbone}_fpn_{length}_coco")
    ours = read(name)
    for key in base.model:
        if key != "roi_head":
            assert ours.model[key] == base.model[key], key
    for key in base.model.roi_head:
        if key != "type":
            assert ours.model.roi_head[key] == base.model.roi_head[key], key
    for key in ("train_dataloader", "optim_wrapper", "param_scheduler", "train_cfg"):
        assert ours[key] == base[key]


@every_config
def test_schedule_of_section_4_2(name):
    if name.startswith(("maskplus_swin", "maskplus-mr")):
        return
    cfg = read(name)
    length = 540000 if "540k" in name else 360000
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", length)
    assert length % cfg.train_cfg.val_interval == 0
    assert cfg.param_scheduler[-1].milestones == [length * 2 // 3, length * 8 // 9]
    assert cfg.optim_wrapper.optimizer == dict(
        type="SGD", lr=0.02, momentum=0.9, weight_decay=0.0001
    )
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 8
    assert cfg.train_dataloader.sampler.type == "InfiniteSampler"
    (resize,) = [step for step in cfg.train_pipeline if step.type == "Resize"]
    assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    stages = cfg.model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        assert (stage.sampler.num, stage.sampler.pos_fraction) == (512, 0.25)
        assert stage.mask_size == (14 if "half-mask" in name else 28)


def test_masks_of_half_the_size_have_no_deconvolution():
    head = read("mask-rcnn_r50_fpn_half-mask_360k_coco").model.roi_head.mask_head
    assert head.upsample_cfg.type is None


def test_the_other_backbones():
    assert read("maskplus_r101_fpn_360k_coco").model.backbone.depth == 101
    swin = read("maskplus_swin-t-p4-w7_fpn_1x_coco")
    assert swin.model.backbone.type == "SwinTransformer"
    assert swin.train_cfg.max_epochs == 12
    mr = read("maskplus-mr-rcnn_r50_fpn_9k_coco")
    assert mr.model.type == "MaskRefiningRCNN"
    assert mr.model.roi_head.type == "MaskPlusMaskRefiningRoIHead"
    assert mr.train_cfg.max_iters == 9000


@pytest.mark.parametrize(
    ("family", "stem"),
    [
        ("shapes", "maskplus_r18_shapes"),
        ("shapes", "maskplus_r18-w16_shapes-640"),
        ("nuclei", "maskplus_r18-w16_nuclei"),
        ("coco_tiny", "maskplus_r18_coco-tiny-overfit"),
    ],
)
def test_small_models_have_all_five_techniques(family, stem):
    cfg = Config.fromfile(CONFIGS / family / f"{stem}.py")
    small = dict(ALL, contextual_fusion=[number // 4 for number in FULL])
    assert {key: cfg.model.roi_head[key] for key in ALL} == small
    assert cfg.custom_hooks[0].type == "BiasedTrainingHook"


def test_switches_go_by_option():
    cfg = load_config(
        str(FOLDER / "maskplus_r50_fpn_360k_coco.py"),
        {"model.roi_head.deconv_pyramid": False, "model.roi_head.quasi_multitask": 2},
    )
    assert cfg.model.roi_head.deconv_pyramid is False
    assert cfg.model.roi_head.quasi_multitask == 2
