# Table 3, second row: the refinement of Peng et al. (2017).
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", boundary_refinement="gcn"))
