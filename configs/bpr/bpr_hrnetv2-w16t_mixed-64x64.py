# The training of the refiner that ships: on Shapes, on nuclei and on eighty pictures of COCO, with
# coarse masks made from the ground truth and those of small Mask R-CNNs (docs/results/bpr.md).
_base_ = [
    "../_base_/models/bpr_hrnetv2-w16t.py",
    "../_base_/datasets/bpr_shapes.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime_seg.py",
]

pipeline = _base_.train_pipeline
# Patches of 32 pixels in batches of 64: the scale of 64 pixels at an input of 128, but with twice
# as much boundary to the pixel.
common = dict(type="BoundaryPatchDataset", patch_size=32, patches_per_image=16, pipeline=pipeline)
model = dict(data_preprocessor=dict(input_size=64))
shapes = dict(
    data_root="data/shapes/",
    ann_file="annotations/instances_train.json",
    data_prefix=dict(img="train/"),
    **common,
)
nuclei = dict(
    data_root="data/nuclei/",
    ann_file="annotations/train.json",
    data_prefix=dict(img="train/"),
    **common,
)
coco = dict(
    data_root="data/coco_tiny/",
    ann_file="annotations/instances_train2017.json",
    data_prefix=dict(img="train2017/"),
    **common,
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type="ConcatDataset",
        # About as many pictures of each kind: 2000 + 2000, 1100 + 1100, 2000.
        datasets=[
            shapes,
            dict(shapes, coarse="data/coarse/shapes_mask-rcnn_train.segm.json"),
            dict(type="RepeatDataset", dataset=nuclei, times=5),
            dict(
                type="RepeatDataset",
                dataset=dict(nuclei, coarse="data/coarse/nuclei_mask-rcnn_train.segm.json"),
                times=5,
            ),
            dict(type="RepeatDataset", dataset=coco, times=25),
        ],
    ),
)
val_dataloader = dict(dataset=dict(patch_size=32))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=5500, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=200, end=5500, T_max=5300),
]
