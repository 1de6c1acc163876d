# Table 5: sigma 4.0.
_base_ = "./soft-occlusion-s2-5_x101-dcn_fpn_coco-panoptic.py"

model = dict(panoptic_fusion_head=dict(sigma=4.0))
