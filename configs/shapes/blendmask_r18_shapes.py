_base_ = [
    "../_base_/models/blendmask_r18_fpn_small.py",
    "../_base_/datasets/shapes_instance.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime.py",
]

model = dict(bbox_head=dict(num_classes=8))
