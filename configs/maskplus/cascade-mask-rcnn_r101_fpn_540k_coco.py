# The baseline of MaskPlus+ (section 4.9), half as long again as MaskPlus. The paper has no figure
# for it.
_base_ = [
    "mmdet::_base_/models/cascade-mask-rcnn_r50_fpn.py",
    "../_base_/datasets/coco_instance.py",
    "../_base_/schedules/schedule_360k.py",
    "../_base_/iter_runtime.py",
]

model = dict(
    backbone=dict(depth=101, init_cfg=dict(type="Pretrained", checkpoint="torchvision://resnet101"))
)
train_dataloader = dict(batch_size=1, sampler=dict(type="InfiniteSampler"))
train_cfg = dict(max_iters=540000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[360000, 480000], gamma=0.1),
]
