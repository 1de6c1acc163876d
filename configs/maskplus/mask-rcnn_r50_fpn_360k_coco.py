# The baseline of all tables, and of every config of this folder.
_base_ = [
    "mmdet::_base_/models/mask-rcnn_r50_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_360k.py",
    "../_base_/iter_runtime.py",
]

# Eight GPUs with a picture each (section 4.2).
train_dataloader = dict(batch_size=1, sampler=dict(type="InfiniteSampler"))
