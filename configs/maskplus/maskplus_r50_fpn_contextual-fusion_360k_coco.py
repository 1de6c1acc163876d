# Table 1, last row.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", contextual_fusion=[720, 512, 512, 256]))
