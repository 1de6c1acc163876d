# Every third block of res3 to res5 is deformable; stronger scaling and cropping, 400k iterations.
_base_ = "./blendmask_r101-caffe_fpn_3x_coco.py"

model = dict(
    backbone=dict(
        type="IntervalResNet",
        dcn_interval=3,
        dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
        stage_with_dcn=(False, True, True, True),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(type="InstanceCrop", crop_size=(0.9, 0.9)),
    dict(
        type="RandomResize",
        scale=[(1440, 640), (1440, 864)],
        resize_type="Resize",
        keep_ratio=True,
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_iters=400000, val_interval=20000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[280000, 360000], gamma=0.1),
]
