# mmdet's Panoptic-FPN with GroupNorm in backbone, FPN and heads, from Detectron's weights as in
# mmdet's gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py. Boxes of low scores and pairs that overlap, which
# mmdet's own configs remove (scores below 0.6, NMS over all classes), are the fuser's to sort out.
_base_ = "mmdet::_base_/models/mask-rcnn_r50_fpn.py"

norm_cfg = dict(type="GN", num_groups=32, requires_grad=True)
model = dict(
    type="PanopticFPN",
    data_preprocessor=dict(
        mean=[103.530, 116.280, 123.675],
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
        mask_pad_value=0,
        pad_seg=True,
        seg_pad_value=255,
    ),
    backbone=dict(
        norm_cfg=norm_cfg,
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron/resnet50_gn"),
    ),
    neck=dict(norm_cfg=norm_cfg),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", conv_out_channels=256, norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
    semantic_head=dict(
        type="PanopticFPNHead",
        num_things_classes=80,
        num_stuff_classes=53,
        in_channels=256,
        inner_channels=128,
        start_level=0,
        end_level=4,
        norm_cfg=norm_cfg,
        loss_seg=dict(
            type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.5
        ),
    ),
    panoptic_fusion_head=dict(type="HeuristicFusion", num_things_classes=80, num_stuff_classes=53),
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5)),
        panoptic=dict(score_thr=0.5, overlap_thr=0.5, stuff_area_limit=4096),
    ),
)
