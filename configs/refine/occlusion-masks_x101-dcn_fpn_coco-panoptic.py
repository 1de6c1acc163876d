# Table 6, second row: the network sees masks alone.
_base_ = "./occlusion-strong-baseline_x101-dcn_fpn_coco-panoptic.py"

model = dict(occlusion_head=dict(use_features=False, use_labels=False))
