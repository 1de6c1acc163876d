# Tables 5 and 6: Soft Occlusion Estimation with sigma 2.5, without Unknown Erasing.
_base_ = "./refine_x101-dcn_fpn_coco-panoptic.py"

model = dict(panoptic_fusion_head=dict(unknown_erasing=None))
