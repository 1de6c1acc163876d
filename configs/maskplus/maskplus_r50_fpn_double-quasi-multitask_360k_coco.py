# Table 4, last row: 56 x 56 beside 28 x 28.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", quasi_multitask=2))
