# Table 4, second row: masks of 14 x 14, without the deconvolution.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(
    roi_head=dict(mask_head=dict(upsample_cfg=dict(type=None))),
    train_cfg=dict(rcnn=dict(mask_size=14)),
)
