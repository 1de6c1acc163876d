# For speed: short sides of 550 pixels, one tower of three convolutions, P3 to P6.
_base_ = "./blendmask_r50-caffe_fpn_3x_coco.py"

model = dict(
    neck=dict(num_outs=4),
    bbox_head=dict(
        num_shared_convs=3,
        stacked_convs=0,
        strides=[8, 16, 32, 64],
        regress_ranges=((-1, 64), (64, 128), (128, 256), (256, 1e8)),
    ),
    mask_head=dict(bases=dict(num_convs=2)),
)
train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(
        type="RandomChoiceResize",
        scales=[(916, side) for side in (440, 462, 484, 506, 528, 550)],
        resize_type="Resize",
        keep_ratio=True,
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="Resize", scale=(916, 550), keep_ratio=True, backend="pillow"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True, poly2mask=False),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
