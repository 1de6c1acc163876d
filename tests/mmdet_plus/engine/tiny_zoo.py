"""Tiny detection and segmentation data sets and configs for tests of the engine and the tools."""

import json
from pathlib import Path

import cv2
import numpy as np

CLASSES = ("square", "disc")
SIDE = 64


def make_data(root: Path, num_images: int = 10, seed: int = 0) -> Path:
    """Draw images of squares and discs with a COCO JSON (``coco.json``) and label maps."""
    rng = np.random.default_rng(seed)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for i in range(num_images):
        image = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        labels = np.zeros((SIDE, SIDE), np.uint8)
        name = f"{i:03d}"
        for column in range(2):
            label = int(rng.integers(2))
            side = int(rng.integers(14, 24))
            x, y = column * 32 + int(rng.integers(0, 8)), int(rng.integers(0, 36))
            mask = np.zeros_like(labels)
            if label == 0:
                mask[y : y + side, x : x + side] = 1
            else:
                cv2.circle(mask, (x + side // 2, y + side // 2), side // 2, 1, -1)
            image[mask > 0] = (200, 40, 40) if label == 0 else (40, 40, 200)
            labels[mask > 0] = label + 1
            outline = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0][0]
            ys, xs = np.nonzero(mask)
            box = [xs.min(), ys.min(), xs.max() - xs.min() + 1, ys.max() - ys.min() + 1]
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=label + 1,
                    bbox=[int(v) for v in box],
                    area=int(mask.sum()),
                    iscrowd=0,
                    segmentation=[outline.reshape(-1).astype(int).tolist()],
                )
            )
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        cv2.imwrite(str(root / "labels" / f"{name}.png"), labels)
        images.append(dict(id=i, file_name=f"{name}.png", height=SIDE, width=SIDE))
    categories = [dict(id=i + 1, name=name) for i, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "coco.json").write_text(json.dumps(content))
    return root


_COMMON = """
default_scope = '{scope}'
custom_imports = dict(imports=['mmdet_plus.engine'], allow_failed_imports=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=1),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=2, by_epoch=False),
    sampler_seed=dict(type='DistSamplerSeedHook'))
env_cfg = dict(cudnn_benchmark=False, mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'))
visualizer = dict(type='{visualizer}', vis_backends=[dict(type='LocalVisBackend')],
    name='visualizer')
log_processor = dict(type='LogProcessor', window_size=1, by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
auto_scale_lr = dict(enable=False, base_batch_size=4)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.01, momentum=0.9),
    clip_grad=dict(max_norm=5))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4),
    dict(type='MultiStepLR', by_epoch=False, milestones=[6], gamma=0.5)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=6, val_interval=100)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
"""

_MASK_RCNN = """
norm_cfg = dict(type='BN', requires_grad=True)
def_anchors = dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[4, 8, 16, 32])
coder = dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.],
    target_stds=[0.1, 0.1, 0.2, 0.2])
model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(type='DetDataPreprocessor', mean=[100.] * 3, std=[60.] * 3,
        bgr_to_rgb=True, pad_mask=True, pad_size_divisor=32),
    backbone=dict(type='ResNet', depth=18, base_channels=8, stem_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), norm_cfg=norm_cfg, norm_eval=False),
    neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4),
    rpn_head=dict(type='RPNHead', in_channels=16, feat_channels=16, anchor_generator=def_anchors,
        bbox_coder=dict(coder, target_stds=[1., 1., 1., 1.]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True),
        loss_bbox=dict(type='L1Loss')),
    roi_head=dict(type='StandardRoIHead',
        bbox_roi_extractor=dict(type='SingleRoIExtractor', out_channels=16,
            roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=1),
            featmap_strides=[4, 8, 16, 32]),
        bbox_head=dict(type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=16,
            roi_feat_size=3, num_classes=2, bbox_coder=coder, reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss'), loss_bbox=dict(type='L1Loss')),
        mask_roi_extractor=dict(type='SingleRoIExtractor', out_channels=16,
            roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
            featmap_strides=[4, 8, 16, 32]),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=16, conv_out_channels=16,
            num_classes=2, loss_mask=dict(type='CrossEntropyLoss', use_mask=True))),
    train_cfg=dict(
        rpn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3,
                min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5, neg_pos_ub=-1,
                add_gt_as_proposals=False),
            allowed_border=-1, pos_weight=-1, debug=False),
        rpn_proposal=dict(nms_pre=100, max_per_img=50, min_bbox_size=0,
            nms=dict(type='nms', iou_threshold=0.7)),
        rcnn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5,
                min_pos_iou=0.5, match_low_quality=True, ignore_iof_thr=-1),
            sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25, neg_pos_ub=-1,
                add_gt_as_proposals=True),
            mask_size=14, pos_weight=-1, debug=False)),
    test_cfg=dict(
        rpn=dict(nms_pre=100, max_per_img=50, min_bbox_size=0,
            nms=dict(type='nms', iou_threshold=0.7)),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20,
            mask_thr_binary=0.5)))
metainfo = dict(classes={classes!r})
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers=False,
    sampler=dict(type='{sampler}', shuffle=True),
    batch_sampler=dict(type='AspectRatioBatchSampler'),
    dataset=dict(type='CocoDataset', metainfo=metainfo, data_root='{root}', ann_file='coco.json',
        data_prefix=dict(img='images'), pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='Resize', scale=(64, 64), keep_ratio=True),
            dict(type='RandomFlip', prob=0.5),
            dict(type='PhotoMetricDistortion'),
            dict(type='PackDetInputs')]))
test_dataloader = dict(batch_size=1, num_workers={workers}, persistent_workers=False,
    drop_last=False, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='CocoDataset', metainfo=metainfo, data_root='{root}', ann_file='coco.json',
        data_prefix=dict(img='images'), test_mode=True, pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(64, 64), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape',
                'scale_factor'))]))
test_evaluator = dict(type='CocoMetric', ann_file='{root}/coco.json', metric=['bbox', 'segm'])
val_dataloader = test_dataloader
val_evaluator = test_evaluator
"""

_FCN = """
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[100.] * 3, std=[60.] * 3,
        bgr_to_rgb=True, pad_val=0, seg_pad_val=255, size=(64, 64)),
    backbone=dict(type='ResNetV1c', depth=18, base_channels=8, stem_channels=8, num_stages=4,
        out_indices=(0, 1, 2, 3), norm_cfg=norm_cfg, norm_eval=False),
    decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=16, num_convs=1,
        dropout_ratio=0.1, num_classes=3, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(), test_cfg=dict(mode='whole'))
metainfo = dict(classes=('ground', *{classes!r}), palette=[[0, 0, 0], [255, 0, 0], [0, 0, 255]])
files = dict(type='BaseSegDataset', metainfo=metainfo, data_root='{root}', img_suffix='.png',
    seg_map_suffix='.png', data_prefix=dict(img_path='images', seg_map_path='labels'))
train_dataloader = dict(batch_size=2, num_workers={workers}, persistent_workers=False,
    sampler=dict(type='{sampler}', shuffle=True),
    dataset=dict(files, pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='RandomCrop', crop_size=(48, 48)),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PhotoMetricDistortion'),
        dict(type='PackSegInputs')]))
test_dataloader = dict(batch_size=1, num_workers={workers}, persistent_workers=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(files, test_mode=True, pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='LoadAnnotations'),
        dict(type='PackSegInputs')]))
test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
val_dataloader = test_dataloader
val_evaluator = test_evaluator
"""


def write_config(
    path: Path, root: Path, kind: str = "mask-rcnn", workers: int = 0, epochs: int = 0
) -> Path:
    """Write the config of a Mask R-CNN (mmdet) or an FCN (mmseg).

    Args:
        path: The file to write.
        root: From :func:`make_data`.
        kind: ``mask-rcnn`` or ``fcn``.
        workers: Of the data loaders.
        epochs: Train so many epochs; 0 for 6 iterations of an endless stream.
    """
    scope, body, visualizer = {
        "mask-rcnn": ("mmdet", _MASK_RCNN, "DetLocalVisualizer"),
        "fcn": ("mmseg", _FCN, "SegLocalVisualizer"),
    }[kind]
    values = dict(
        root=root,
        classes=CLASSES,
        workers=workers,
        sampler="DefaultSampler" if epochs else "InfiniteSampler",
    )
    for name, value in values.items():
        body = body.replace(f"{{{name}}}", str(value)).replace(f"{{{name}!r}}", repr(value))
    text = _COMMON.replace("{scope}", scope).replace("{visualizer}", visualizer) + body
    if epochs:
        text += f"train_cfg = dict(type='EpochBasedTrainLoop', max_epochs={epochs}, "
        text += "val_interval=100)\n"
    path.write_text(text)
    return path


def read_losses(work_dir: Path) -> dict[int, dict[str, float]]:
    """Read the losses of each iteration from the logs in a working folder; later runs win."""
    losses = {}
    for file in sorted(Path(work_dir).glob("*/vis_data/*.json")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                values = {k: v for k, v in entry.items() if "loss" in k or k == "lr"}
                losses[entry["step"]] = values
    return losses
