# OCFusion (Table 5): the network sees masks and features (Table 6, third row), no classes.
_base_ = "./occlusion-strong-baseline_x101-dcn_fpn_coco-panoptic.py"

model = dict(occlusion_head=dict(use_labels=False))
