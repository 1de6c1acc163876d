# Table 3, last row.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", boundary_refinement="improved"))
