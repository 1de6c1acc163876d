# Sixteen pictures of COCO, trained on and tested on: a model that is right must learn them.
_base_ = "./coco_instance.py"

data_root = "data/coco_tiny/"
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(type="Resize", scale=(320, 320), keep_ratio=True),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(320, 320), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
    dict(
        type="PackDetInputs",
        meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "instances"),
    ),
]
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type="InfiniteSampler"),
    dataset=dict(
        data_root=data_root,
        indices=16,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_train2017.json",
        data_prefix=dict(img="train2017/"),
        filter_cfg=dict(filter_empty_gt=True, min_size=32),
        test_mode=False,
        indices=16,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

# Without a file the metric compares with the ground truth of the pictures it is shown, and so
# with these sixteen alone.
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator
