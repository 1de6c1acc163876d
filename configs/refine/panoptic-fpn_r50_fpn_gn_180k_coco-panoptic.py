# The baseline of Tables 3 and 4.
_base_ = [
    "../_base_/models/panoptic-fpn_r50_fpn_gn.py",
    "../_base_/datasets/coco_panoptic_800.py",
    "../_base_/schedules/schedule_180k.py",
    "../_base_/iter_runtime.py",
]

default_hooks = dict(checkpoint=dict(interval=10000))
