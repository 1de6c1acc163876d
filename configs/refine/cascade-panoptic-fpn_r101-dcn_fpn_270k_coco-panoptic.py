# Table 2: the stronger baseline, trained for half as long again.
_base_ = [
    "../_base_/models/cascade-panoptic-fpn_r101-dcn_fpn.py",
    "../_base_/datasets/coco_panoptic_800.py",
    "../_base_/schedules/schedule_270k.py",
    "../_base_/iter_runtime.py",
]

default_hooks = dict(checkpoint=dict(interval=10000))
