# Table 1.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", contextual_fusion=[256, 256]))
