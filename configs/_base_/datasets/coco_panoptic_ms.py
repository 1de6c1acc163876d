# COCO panoptic as detectron2 reads it: images by Pillow, short sides of 640 to 800 pixels in
# training.
_base_ = "./coco_panoptic.py"

train_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="LoadPanopticAnnotations"),
    dict(
        type="RandomChoiceResize",
        scales=[(1333, side) for side in (640, 672, 704, 736, 768, 800)],
        resize_type="Resize",
        keep_ratio=True,
        backend="pillow",
    ),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile", imdecode_backend="pillow"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True, backend="pillow"),
    dict(type="LoadPanopticAnnotations"),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]

train_dataloader = dict(
    sampler=dict(_delete_=True, type="InfiniteSampler"), dataset=dict(pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
