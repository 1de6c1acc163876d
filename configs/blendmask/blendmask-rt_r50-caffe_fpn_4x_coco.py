# Real time: short sides of 512 pixels at test, one tower of three convolutions, P3 to P5, and a
# backbone whose batch normalisation is trained.
_base_ = "./blendmask_r50-caffe_fpn_3x_coco.py"

model = dict(
    backbone=dict(
        frozen_stages=-1, norm_cfg=dict(type="SyncBN", requires_grad=True), norm_eval=False
    ),
    neck=dict(num_outs=3),
    bbox_head=dict(
        num_shared_convs=3,
        stacked_convs=0,
        strides=[8, 16, 32],
        regress_ranges=((-1, 64), (64, 128), (128, 1e8)),
    ),
    mask_head=dict(bases=dict(num_convs=2)),
)
train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(
        type="RandomChoiceResize",
        scales=[(900, side) for side in range(256, 609, 32)],
        resize_type="Resize",
        keep_ratio=True,
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="Resize", scale=(736, 512), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_iters=360000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[300000, 340000], gamma=0.1),
]
