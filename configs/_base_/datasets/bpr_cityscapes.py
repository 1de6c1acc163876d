# Boundary patches of a segmenter's results on Cityscapes, which tools/bpr_patches.py has collected
# in one file a split. Of Mask R-CNN's, as in the paper's ablations:
#
# for split in train val; do
#     python tools/bpr_patches.py results/mask-rcnn_$split --split $split \
#         --ann data/cityscapes/gtFine/$split --img-dir data/cityscapes/leftImg8bit/$split \
#         --out data/bpr/cityscapes
# done
dataset_type = "BoundaryPatchDataset"
data_root = "data/bpr/cityscapes/"

train_pipeline = [
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackPatchInputs"),
]
test_pipeline = [dict(type="PackPatchInputs")]

train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    collate_fn=dict(type="collate_patches"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        store="train.sqlite",
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    collate_fn=dict(type="collate_patches"),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        store="val.sqlite",
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type="BoundaryPatchMetric")
test_evaluator = val_evaluator
