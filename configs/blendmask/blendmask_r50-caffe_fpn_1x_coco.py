_base_ = [
    "../_base_/models/blendmask_r50-caffe_fpn.py",
    "../_base_/datasets/coco_instance_ms.py",
    "../_base_/schedules/schedule_90k.py",
    "../_base_/iter_runtime.py",
]

default_hooks = dict(checkpoint=dict(interval=10000))
