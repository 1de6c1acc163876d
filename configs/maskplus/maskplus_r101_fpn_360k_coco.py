# Table 7.
_base_ = "./maskplus_r50_fpn_360k_coco.py"

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101"))
)
