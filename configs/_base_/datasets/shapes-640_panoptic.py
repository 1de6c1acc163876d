# Things and stuff of shapes-640_instance.py.
_base_ = "./shapes_panoptic.py"

data_root = "data/shapes_640/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

val_evaluator = dict(
    ann_file=data_root + "annotations/panoptic_val.json",
    seg_prefix=data_root + "panoptic_val/",
)
test_evaluator = val_evaluator
