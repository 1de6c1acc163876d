# Table 5: sigma 2.0.
_base_ = "./soft-occlusion-s2-5_x101-dcn_fpn_coco-panoptic.py"

model = dict(panoptic_fusion_head=dict(sigma=2.0))
