"""A Mask R-CNN of 16 channels, its cascade and MR R-CNN, with MaskPlus's techniques on or off."""

import copy
import itertools
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from tiny_mr_rcnn import make_batch, total

import mmdet_plus.combined  # noqa: F401, registers the RoI heads, and those of MaskPlus
from mmseg_plus.common.config import read_config

BASE = Path(__file__).parents[2] / "configs/_base_/models/mask-rcnn_r18_fpn_small.py"
SIDE = 64
FIELDS = ("bboxes", "scores", "labels", "masks")
# Two pictures with instances of all classes.
BOXES = [[(4, 6, 40, 44), (20, 30, 62, 60), (40, 2, 60, 24)], [(10, 10, 50, 54), (24, 40, 44, 62)]]
# The settings of the switches on the model; biased training is a hook.
SETTINGS = dict(
    contextual_fusion=[24, 16],
    deconv_pyramid=True,
    boundary_refinement="improved",
    quasi_multitask=0.5,
)
#: All sixteen, from none to all.
COMBINATIONS = [
    {name: SETTINGS[name] for name, on in zip(SETTINGS, flags, strict=True) if on}
    for flags in itertools.product((False, True), repeat=len(SETTINGS))
]


def name_of(switches):
    """For the names of tests: ``contextual_fusion-deconv_pyramid``."""
    return "-".join(switches) or "none"


def mask_rcnn_cfg():
    """mmdet's Mask R-CNN, its parts as small as they get; three classes, 16 RoIs an image."""
    register_all_modules()
    cfg = read_config(BASE)
    cfg.merge_from_dict(
        {
            "model.backbone.base_channels": 8,
            "model.backbone.stem_channels": 8,
            "model.neck.in_channels": [8, 16, 32, 64],
            "model.neck.out_channels": 16,
            "model.rpn_head.in_channels": 16,
            "model.rpn_head.feat_channels": 16,
            "model.roi_head.bbox_roi_extractor.out_channels": 16,
            "model.roi_head.bbox_head.in_channels": 16,
            "model.roi_head.bbox_head.fc_out_channels": 32,
            "model.roi_head.bbox_head.num_classes": 3,
            "model.roi_head.mask_roi_extractor.out_channels": 16,
            "model.roi_head.mask_head.in_channels": 16,
            "model.roi_head.mask_head.conv_out_channels": 16,
            "model.roi_head.mask_head.num_convs": 2,
            "model.roi_head.mask_head.num_classes": 3,
            "model.train_cfg.rpn_proposal.max_per_img": 40,
            "model.train_cfg.rcnn.sampler.num": 16,
            "model.test_cfg.rpn.max_per_img": 40,
            "model.test_cfg.rcnn.score_thr": 0.0,
            "model.test_cfg.rcnn.max_per_img": 10,
        }
    )
    return cfg.model


def cascade_cfg():
    """The same with mmdet's cascade of three stages."""
    cfg = mask_rcnn_cfg()
    box = {**cfg.roi_head.bbox_head, "reg_class_agnostic": True}
    cfg.roi_head.update(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[copy.deepcopy(box) for _ in range(3)],
    )
    stages = [copy.deepcopy(cfg.train_cfg.rcnn) for _ in range(3)]
    for stage, threshold in zip(stages, (0.5, 0.6, 0.7), strict=True):
        for name in ("pos_iou_thr", "neg_iou_thr", "min_pos_iou"):
            stage.assigner[name] = threshold
    cfg.train_cfg.rcnn = stages
    return cfg


def mr_rcnn_cfg():
    """The same as MR R-CNN."""
    cfg = mask_rcnn_cfg()
    cfg.type = "MaskRefiningRCNN"
    cfg.roi_head.type = "MaskRefiningRoIHead"
    return cfg


OURS = {
    "StandardRoIHead": "MaskPlusRoIHead",
    "CascadeRoIHead": "MaskPlusCascadeRoIHead",
    "MaskRefiningRoIHead": "MaskPlusMaskRefiningRoIHead",
}


def with_maskplus(cfg, mask_head=None, **switches):
    """A model's config with MaskPlus's RoI head.

    Args:
        cfg: From one of the functions above; left as it is.
        mask_head: Changes to the config of the mask head.
        switches: Arguments of the RoI head.
    """
    cfg = copy.deepcopy(cfg)
    cfg.roi_head.update(type=OURS[cfg.roi_head.type], **switches)
    cfg.roi_head.mask_head.update(mask_head or {})
    return cfg


def build(cfg, seed=0, init=True):
    """Build a model; its parameters follow from the seed."""
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(copy.deepcopy(cfg))
    if init:
        # Which parameter got which values fills pages.
        logging.disable(logging.INFO)
        model.init_weights()
        logging.disable(logging.NOTSET)
    return model


def two_images(boxes=None):
    """A batch of two pictures, or of others with these boxes."""
    return make_batch(BOXES if boxes is None else boxes, size=SIDE)


def predict(model, batch):
    """Predicted instances of each image."""
    model.eval()
    with torch.no_grad():
        return [sample.pred_instances for sample in model.test_step(copy.deepcopy(batch))]


def same_predictions(ours, theirs):
    """Whether two models' instances are the same, bit for bit; there must be some."""
    return all(
        len(a) > 0 and all(torch.equal(a[name], b[name]) for name in FIELDS)
        for a, b in zip(ours, theirs, strict=True)
    )


def step(model, losses, lr=0.1):
    """One step of gradient descent; returns the names of parameters without a gradient."""
    model.zero_grad(set_to_none=True)
    total(losses).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= lr * parameter.grad
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]


def sampled(counts=(3, 2), num_classes=3, seed=0):
    """Positive RoIs as a mask head gets them, and the ground truth of their images.

    Args:
        counts: RoIs of each image; each image has two instances.
        num_classes: Classes.
        seed: Of boxes, assignment and masks.
    """
    generator = torch.Generator().manual_seed(seed)
    results, gts = [], []
    for count in counts:
        corner = 30 * torch.rand(count, 2, generator=generator)
        size = 12 + 20 * torch.rand(count, 2, generator=generator)
        results.append(
            SimpleNamespace(
                pos_priors=torch.cat([corner, corner + size], 1),
                pos_assigned_gt_inds=torch.arange(count) % 2,
                pos_gt_labels=torch.arange(count) % num_classes,
            )
        )
        planes = torch.rand(2, SIDE, SIDE, generator=generator).numpy() > 0.5
        gts.append(InstanceData(masks=BitmapMasks(planes.astype(np.uint8), SIDE, SIDE)))
    return results, gts
