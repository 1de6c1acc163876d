# The baseline of Table 4, and a row of Tables 1 and 2.
_base_ = "./panoptic-fpn_r50_fpn_gn_180k_coco-panoptic.py"

model = dict(
    backbone=dict(depth=101, init_cfg=dict(checkpoint="open-mmlab://detectron/resnet101_gn"))
)
