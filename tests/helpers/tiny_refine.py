"""Small REFINE models, pictures with semantic ground truth, and squares that overlap."""

import copy

import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData, PixelData
from tiny_mr_rcnn import make_batch

from mmdet_plus import datasets, refine  # noqa: F401, they register their parts
from mmseg_plus.common.config import read_config

THINGS, STUFF, CHANNELS = 3, 2, 8
NORM = dict(type="GN", num_groups=2)


def model_cfg(num_iterations=2, cascade=False, **changes):
    """Config of a REFINE of 3 thing and 2 stuff classes, with 8 channels."""
    cfg = read_config("panoptic-fpn_r18_shapes").model
    cfg.backbone.update(base_channels=8, stem_channels=8, init_cfg=None)
    cfg.neck.update(in_channels=[8, 16, 32, 64], out_channels=CHANNELS)
    cfg.rpn_head.update(in_channels=CHANNELS, feat_channels=CHANNELS)
    cfg.train_cfg.rpn_proposal.update(nms_pre=50, max_per_img=20)
    cfg.test_cfg.rpn.update(nms_pre=50, max_per_img=20)
    cfg.type = "REFINE"
    head = cfg.roi_head
    for extractor in (head.bbox_roi_extractor, head.mask_roi_extractor):
        extractor.out_channels = CHANNELS
    head.bbox_head.update(in_channels=CHANNELS, fc_out_channels=16, num_classes=THINGS)
    head.mask_head.update(in_channels=CHANNELS, conv_out_channels=8, num_classes=THINGS)
    head.type = "IterativeProjectionRoIHead"
    settings = dict(
        num_iterations=num_iterations, num_stuff_classes=STUFF, semantic_norm_cfg=NORM, **changes
    )
    head.update(settings)
    if cascade:
        head.type = "IterativeProjectionCascadeRoIHead"
        head.update(num_stages=3, stage_loss_weights=[1, 0.5, 0.25])
        head.bbox_head = [copy.deepcopy(head.bbox_head) for _ in range(3)]
        cfg.train_cfg.rcnn = [copy.deepcopy(cfg.train_cfg.rcnn) for _ in range(3)]
    semantic = cfg.semantic_head
    semantic.update(
        type="ProjectionSemanticHead",
        in_channels=CHANNELS,
        inner_channels=CHANNELS,
        num_things_classes=THINGS,
        num_stuff_classes=STUFF,
        norm_cfg=NORM,
    )
    cfg.panoptic_fusion_head.update(
        type="HeuristicFusion", num_things_classes=THINGS, num_stuff_classes=STUFF
    )
    cfg.test_cfg.rcnn.score_thr = 0.0
    cfg.test_cfg.panoptic.stuff_area_limit = 16
    return cfg


def build(cfg, seed=0):
    """The model, initialised; the same parameters for the same config and seed."""
    init_default_scope("mmdet")
    torch.manual_seed(seed)
    model = MODELS.build(copy.deepcopy(cfg))
    model.init_weights()
    return model


def make_panoptic_batch(boxes_of_images, size=96):
    """:func:`make_batch` with labels of things, stuff and some void (255)."""
    batch = make_batch(boxes_of_images, size, THINGS)
    for sample in batch["data_samples"]:
        labels = torch.full((size, size), THINGS)
        labels[size // 2 :] = THINGS + 1
        labels[:4] = 255
        instances = sample.gt_instances
        for mask, label in zip(instances.masks.masks, instances.labels, strict=True):
            labels[torch.from_numpy(mask).bool()] = label
        sample.gt_sem_seg = PixelData(sem_seg=labels[None])
    return batch


def losses_of(model, batch):
    """The losses of a batch, which stays as it is."""
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    torch.manual_seed(1)
    return model.loss(data["inputs"], data["data_samples"])


SIDE = 64
BOXES = torch.tensor([[4.0, 4, 36, 36], [20, 20, 60, 60], [44, 0, 64, 16]])


def drawn(boxes):
    masks = torch.zeros(len(boxes), SIDE, SIDE, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.long().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return masks


def found(scores=(0.9, 0.8, 0.7)):
    """Two squares that overlap, and one apart."""
    return InstanceData(
        bboxes=BOXES.clone(),
        scores=torch.tensor(scores),
        labels=torch.tensor([0, 1, 2]),
        masks=drawn(BOXES),
    )


def truth(front):
    """The same squares without overlap, ``front`` in front of the others."""
    masks = drawn(BOXES)
    for other in range(3):
        if other != front:
            masks[other] &= ~masks[front]
    return DetDataSample(
        gt_instances=InstanceData(
            labels=torch.tensor([0, 1, 2]), masks=BitmapMasks(masks.numpy(), SIDE, SIDE)
        )
    )
