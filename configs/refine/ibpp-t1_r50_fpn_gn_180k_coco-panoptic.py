# Table 4.
_base_ = "./ibpp-t3_r50_fpn_gn_180k_coco-panoptic.py"

model = dict(roi_head=dict(num_iterations=1))
