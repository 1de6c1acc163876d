# Panoptic-FPN on the boxes of Cascade R-CNN, with deformable convolutions in c3 to c5; BatchNorm
# keeps its pretrained statistics. The panoptic parts are those of panoptic-fpn_r50_fpn_gn.py.
_base_ = "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py"

model = dict(
    type="PanopticFPN",
    data_preprocessor=dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    backbone=dict(
        depth=101,
        dcn=dict(type="DCN", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
        init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101"),
    ),
    semantic_head=dict(
        type="PanopticFPNHead",
        num_things_classes=80,
        num_stuff_classes=53,
        in_channels=256,
        inner_channels=128,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type="GN", num_groups=32, requires_grad=True),
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
