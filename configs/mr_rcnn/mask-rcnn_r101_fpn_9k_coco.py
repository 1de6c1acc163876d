_base_ = "./mask-rcnn_r50_fpn_9k_coco.py"

model = dict(backbone=dict(depth=101))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r101_fpn_1x_coco/"
    "mask_rcnn_r101_fpn_1x_coco_20200204-1efe0ed5.pth"
)
