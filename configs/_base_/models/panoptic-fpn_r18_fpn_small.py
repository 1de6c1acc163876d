# Panoptic-FPN for evidence on two cores: the small Mask R-CNN, and a semantic head of 64 channels
# on levels P2 to P5. The numbers of classes are the data set's to give.
_base_ = "./mask-rcnn_r18_fpn_small.py"

model = dict(
    type="PanopticFPN",
    data_preprocessor=dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    semantic_head=dict(
        type="PanopticFPNHead",
        in_channels=64,
        inner_channels=64,
        norm_cfg=dict(type="GN", num_groups=16),
        loss_seg=dict(
            type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.5
        ),
    ),
    panoptic_fusion_head=dict(type="HeuristicFusionHead"),
    test_cfg=dict(
        rcnn=dict(score_thr=0.5, nms=dict(class_agnostic=True)),
        panoptic=dict(mask_overlap=0.5, stuff_area_limit=4096),
    ),
)
