# Table 4, third row: 14 x 14 beside 28 x 28.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", quasi_multitask=0.5))
