# Table 4, last row.
_base_ = "./ibpp-t3_r50_fpn_gn_180k_coco-panoptic.py"

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint="open-mmlab://detectron/resnet101_gn"))
)
