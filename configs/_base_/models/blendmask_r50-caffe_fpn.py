# BlendMask as the authors trained it: ResNet of detectron2 (stride in the first 1x1 convolution,
# BGR of 0 to 255), frozen batch normalisation, P3 to P7. `num_classes` stands in `bbox_head` and
# nowhere else. What the paper and the authors leave open stands here with our choice.
model = dict(
    type="BlendMask",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[103.530, 116.280, 123.675],
        std=[1.0, 1.0, 1.0],
        bgr_to_rgb=False,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="ResNet",
        depth=50,
        num_stages=4,
        out_indices=(0, 1, 2, 3),
        frozen_stages=1,
        norm_cfg=dict(type="BN", requires_grad=False),
        norm_eval=True,
        style="caffe",
        init_cfg=dict(type="Pretrained", checkpoint="open-mmlab://detectron2/resnet50_caffe"),
    ),
    neck=dict(
        type="FPN",
        in_channels=[256, 512, 1024, 2048],
        out_channels=256,
        start_level=1,
        add_extra_convs="on_output",
        relu_before_extra_convs=True,
        num_outs=5,
    ),
    bbox_head=dict(
        type="BlendMaskHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        strides=[8, 16, 32, 64, 128],
        num_bases=4,
        attention_size=14,
        center_sampling=True,
        center_sample_radius=1.5,
        norm_cfg=dict(type="GN", num_groups=32, requires_grad=True),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type="GIoULoss", loss_weight=1.0),
        loss_centerness=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    mask_head=dict(
        type="Blender",
        bases=dict(
            type="ProtoNet",
            in_channels=256,
            num_levels=3,
            feat_channels=128,
            num_convs=3,
            num_bases=4,
            norm_cfg=dict(type="SyncBN", requires_grad=True),
            loss_sem=dict(
                type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.3
            ),
        ),
        mask_size=56,
        stride=4,
        loss_mask=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
    ),
    test_cfg=dict(
        # Of class times centreness, whose square root is the score.
        score_thr=0.05,
        nms_pre=1000,
        nms=dict(type="nms", iou_threshold=0.6),
        max_per_img=100,
        mask_thr=0.5,
        # The authors paste the mask at the clipped box.
        paste_clipped=True,
    ),
)
