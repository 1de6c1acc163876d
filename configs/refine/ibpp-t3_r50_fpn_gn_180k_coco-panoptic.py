# Tables 3 and 4: three iterations.
_base_ = [
    "../_base_/models/ibpp_r50_fpn_gn.py",
    "../_base_/datasets/coco_panoptic_800.py",
    "../_base_/schedules/schedule_180k.py",
    "../_base_/iter_runtime.py",
]

default_hooks = dict(checkpoint=dict(interval=10000))
