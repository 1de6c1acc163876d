# The first part of the training of the refiner that ships: patches of 32 pixels at an input of 64,
# the scale of 64 pixels at 128, but with twice as much boundary to the pixel. On Shapes, on nuclei
# and on eighty pictures of COCO, with coarse masks made from the ground truth and those of small
# Mask R-CNNs (docs/results/bpr.md). bpr_hrnetv2-w16t_mixed-128x128.py goes on from here.
_base_ = [
    "../_base_/models/bpr_hrnetv2-w16t.py",
    "../_base_/datasets/bpr_shapes.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime_seg.py",
]

pipeline = _base_.train_pipeline
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
        # Pictures: 4000 of Shapes, 2200 of nuclei, 6000 of COCO, two fifths of which have the
        # errors of mask heads alone: of small objects so few that most is to be left as it is.
        datasets=[
            shapes,
            dict(shapes, coarse="data/coarse/shapes_mask-rcnn_train.segm.json"),
            dict(type="RepeatDataset", dataset=nuclei, times=5),
            dict(
                type="RepeatDataset",
                dataset=dict(nuclei, coarse="data/coarse/nuclei_mask-rcnn_train.segm.json"),
                times=5,
            ),
            dict(type="RepeatDataset", dataset=coco, times=30),
            dict(type="RepeatDataset", dataset=dict(coco, degrade=["mask_head"]), times=30),
            # Other scales, for there are but eighty pictures.
            dict(type="RepeatDataset", dataset=dict(coco, patch_size=24), times=7),
            dict(type="RepeatDataset", dataset=dict(coco, patch_size=48), times=8),
        ],
    ),
)
val_dataloader = dict(dataset=dict(patch_size=32))
test_dataloader = val_dataloader

# The cosine is cut off at a third of its height: the second part has one of its own.
train_cfg = dict(max_iters=5000, val_interval=1000)
optim_wrapper = dict(optimizer=dict(lr=2e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=200, end=5000, T_max=7800),
]
