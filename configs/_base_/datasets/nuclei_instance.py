# Nuclei in microscopy pictures (Data Science Bowl 2018), one class, many touching neighbours.
_base_ = "./shapes_instance.py"

dataset_type = "CheckedCocoDataset"
data_root = "data/nuclei/"
metainfo = dict(classes=("nucleus",), palette=[(30, 144, 255)])

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/train.json",
    )
)
val_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file="annotations/val.json",
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(type="BoundaryMetric", ann_file=data_root + "annotations/val.json")
test_evaluator = val_evaluator
