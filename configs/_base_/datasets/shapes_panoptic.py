# Shapes with things and stuff (tools/make_shapes.py data/shapes), for two cores.
_base_ = "mmdet::_base_/datasets/coco_panoptic.py"

dataset_type = "ShapesPanopticDataset"
data_root = "data/shapes/"

# Pictures of 256 pixels keep their size; larger ones shrink to it.
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadPanopticAnnotations"),
    dict(type="Resize", scale=(320, 256), keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 256), keep_ratio=True),
    dict(type="LoadPanopticAnnotations"),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/panoptic_train.json",
        data_prefix=dict(img="train/", seg="panoptic_train/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    num_workers=2,
    persistent_workers=True,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        ann_file="annotations/panoptic_val.json",
        data_prefix=dict(img="val/", seg="panoptic_val/"),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(
    type="PanopticMetric",
    ann_file=data_root + "annotations/panoptic_val.json",
    seg_prefix=data_root + "panoptic_val/",
)
test_evaluator = val_evaluator
