_base_ = "./mask-rcnn_r50_fpn_9k_coco.py"

model = dict(
    # The backbone was trained with Caffe2 on BGR pictures.
    data_preprocessor=dict(
        mean=[103.530, 116.280, 123.675],
        std=[57.375, 57.120, 58.395],
        bgr_to_rgb=False,
    ),
    backbone=dict(
        type="ResNeXt",
        depth=101,
        groups=32,
        base_width=8,
        norm_cfg=dict(requires_grad=False),
    ),
)
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_x101_32x8d_fpn_1x_coco/"
    "mask_rcnn_x101_32x8d_fpn_1x_coco_20220630_173841-0aaf329e.pth"
)
