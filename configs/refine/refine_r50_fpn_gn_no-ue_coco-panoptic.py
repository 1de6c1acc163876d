# Table 3, third row: without Unknown Erasing, which trains nothing.
_base_ = "./refine_r50_fpn_gn_coco-panoptic.py"

model = dict(panoptic_fusion_head=dict(unknown_erasing=None))
