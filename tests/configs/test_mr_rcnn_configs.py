"""What the configs of MR R-CNN say: switches, backbones, the paper's schedule."""

import copy
import functools
from pathlib import Path

import pytest
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_plus.engine.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FOLDER = CONFIGS / "mr_rcnn"
# Name in the file: type, depth, and the file of mmdet that the training starts from.
BACKBONES = {
    "r50_fpn": ("ResNet", 50, "mask_rcnn_r50_fpn_1x_coco_"),
    "r101_fpn": ("ResNet", 101, "mask_rcnn_r101_fpn_1x_coco_"),
    "x101-32x8d_fpn": ("ResNeXt", 101, "mask_rcnn_x101_32x8d_fpn_1x_coco_"),
    "r101-dconv-c3-c5_fpn": ("ResNet", 101, "mask_rcnn_r101_fpn_dconv_c3-c5_1x_coco_"),
}
SWITCHES = {  # shape_aware, refine_cls, refine_reg
    "": (True, True, True),
    "no-shape-aware_": (False, True, True),  # Table 3: only SARA is off
    "cls-only_": (True, True, False),  # Table 4
    "box-only_": (True, False, True),
}
ROWS = [(backbone, variant) for backbone in BACKBONES for variant in (None, *SWITCHES)]


def name_of(backbone, variant):
    return f"{'mask' if variant is None else 'mr'}-rcnn_{backbone}_{variant or ''}9k_coco"


@functools.cache
def read(backbone, variant):
    """The config, which no test changes."""
    return Config.fromfile(FOLDER / f"{name_of(backbone, variant)}.py")


every_config = pytest.mark.parametrize(
    ("backbone", "variant"), ROWS, ids=[name_of(*row) for row in ROWS]
)


def test_the_rows_are_all_there():
    assert {path.stem for path in FOLDER.glob("*.py")} == {name_of(*row) for row in ROWS}


@every_config
def test_switches(backbone, variant):
    model = read(backbone, variant).model
    head = model.roi_head
    if variant is None:
        assert (model.type, head.type) == ("MaskRCNN", "StandardRoIHead")
        assert not any(key.startswith("refin") for key in head)
        return
    assert (model.type, head.type) == ("MaskRefiningRCNN", "MaskRefiningRoIHead")
    assert (head.shape_aware, head.refine_cls, head.refine_reg) == SWITCHES[variant]
    assert (head.alpha, head.refine_assign, head.detach_guidance) == (1.0, "reassign", True)
    assert model.test_cfg.rcnn.candidates == dict(
        score_thr=0.05, nms=dict(type="nms", iou_threshold=0.7), max_per_img=200
    )


@every_config
def test_the_rest_of_the_model_is_mask_rcnn(backbone, variant):
    ours, plain = read(backbone, variant).model, read(backbone, None).model
    for key in plain:
        if key not in ("type", "roi_head", "test_cfg"):
            assert ours[key] == plain[key], key
    for part in ("bbox_roi_extractor", "bbox_head", "mask_roi_extractor", "mask_head"):
        assert ours.roi_head[part] == plain.roi_head[part]
    rcnn = ours.test_cfg.rcnn
    assert (rcnn.score_thr, rcnn.nms.iou_threshold, rcnn.max_per_img) == (0.05, 0.5, 100)
    assert ours.test_cfg.rpn == plain.test_cfg.rpn
    assert ours.train_cfg.rcnn.assigner.pos_iou_thr == 0.5


@every_config
def test_backbones(backbone, variant):
    cfg = read(backbone, variant)
    kind, depth, start = BACKBONES[backbone]
    net = cfg.model.backbone
    assert (net.type, net.depth, net.init_cfg) == (kind, depth, None)
    assert (net.get("groups"), net.get("base_width")) == (
        (32, 8) if kind == "ResNeXt" else (None, None)
    )
    assert ("dcn" in net) == ("dconv" in backbone)
    if "dcn" in net:
        assert (net.dcn.type, net.stage_with_dcn) == ("DCN", (False, True, True, True))
    assert cfg.load_from.rpartition("/")[2].startswith(start)
    bgr = cfg.model.data_preprocessor
    assert (bgr.bgr_to_rgb, bgr.mean[0]) == (
        (False, 103.53) if kind == "ResNeXt" else (True, 123.675)
    )


@every_config
def test_schedule_of_section_4_1(backbone, variant):
    cfg = read(backbone, variant)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", 9000)
    assert cfg.train_cfg.max_iters % cfg.train_cfg.val_interval == 0
    assert cfg.optim_wrapper == dict(
        type="OptimWrapper",
        optimizer=dict(type="SGD", lr=0.002, momentum=0.9, weight_decay=0.0001),
    )
    assert cfg.param_scheduler == [
        dict(type="MultiStepLR", by_epoch=False, milestones=[6000], gamma=0.1)
    ]
    assert cfg.auto_scale_lr.base_batch_size == 4 * cfg.train_dataloader.batch_size == 16
    assert cfg.train_dataloader.sampler.type == "InfiniteSampler"
    assert cfg.train_dataloader.dataset.ann_file == "annotations/instances_train2017.json"
    assert cfg.val_dataloader.dataset.ann_file == "annotations/instances_val2017.json"


@pytest.mark.parametrize("family", ["shapes", "nuclei", "coco_tiny"])
def test_small_models_are_the_full_method(family):
    paths = sorted((CONFIGS / family).glob("mr-rcnn*.py"))
    assert paths
    for path in paths:
        ours = Config.fromfile(path)
        full = read("r50_fpn", "").model
        plain = Config.fromfile(path.with_name(path.name.replace("mr-", "mask-")))
        for key in full.roi_head:
            if key not in plain.model.roi_head or key == "type":
                assert ours.model.roi_head[key] == full.roi_head[key], key
        assert ours.model.test_cfg.rcnn == full.test_cfg.rcnn
        assert ours.model.backbone == plain.model.backbone
        assert ours.optim_wrapper == plain.optim_wrapper and ours.train_cfg == plain.train_cfg


def build_head(cfg):
    init_default_scope("mmdet")
    return MODELS.build(copy.deepcopy(cfg.model)).roi_head


def test_refining_heads_are_changed_by_options():
    options = {
        "model.roi_head.refining_bbox_head.loss_cls.loss_weight": 0.5,
        "model.roi_head.refining_bbox_roi_extractor.type": "SingleRoIExtractor",
        "model.roi_head.refining_mask_head.num_convs": 2,
    }
    head = build_head(load_config("mr-rcnn_r18_shapes", options))
    assert head.refining_bbox_head.loss_cls.loss_weight == 0.5
    assert head.bbox_head.loss_cls.loss_weight == 1.0
    assert type(head.refining_bbox_roi_extractor).__name__ == "SingleRoIExtractor"
    assert (len(head.mask_head.convs), len(head.refining_mask_head.convs)) == (4, 2)


def test_refining_heads_are_changed_by_a_config(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        f"_base_ = '{CONFIGS / 'shapes/mr-rcnn_r18_shapes.py'}'\n"
        "model = dict(roi_head=dict(refining_bbox_head=dict(fc_out_channels=128)))\n"
    )
    head = build_head(Config.fromfile(path))
    assert head.refining_bbox_head.fc_cls.in_features == 128
    assert head.bbox_head.fc_cls.in_features == 256
