_base_ = "./blendmask_r50-caffe_fpn_3x_coco-panoptic.py"

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint="open-mmlab://detectron2/resnet101_caffe")),
)
