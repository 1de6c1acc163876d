# The model that refine_r101-dcn_fpn_coco-panoptic.py fuses; in no table by itself.
_base_ = [
    "../_base_/models/cascade-ibpp_r101-dcn_fpn.py",
    "../_base_/datasets/coco_panoptic_800.py",
    "../_base_/schedules/schedule_180k.py",
    "../_base_/iter_runtime.py",
]

default_hooks = dict(checkpoint=dict(interval=10000))
