# The control of Tables 1 and 3: plain Mask R-CNN, fine-tuned for as long as MR R-CNN is.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_9k.py",
    "../_base_/iter_runtime.py",
]

# `load_from` brings the whole model; no other weights are fetched for the backbone before it.
model = dict(backbone=dict(init_cfg=None))
# Four GPUs with four pictures each.
train_dataloader = dict(batch_size=4, sampler=dict(type="InfiniteSampler"))
load_from = (
    "https://download.openmmlab.com/mmdetection/v2.0/mask_rcnn/mask_rcnn_r50_fpn_1x_coco/"
    "mask_rcnn_r50_fpn_1x_coco_20200205-d4b0c5d6.pth"
)
