# The same of the nuclei.
_base_ = "./bpr_shapes.py"

data_root = "data/nuclei/"
train_dataloader = dict(dataset=dict(data_root=data_root, ann_file="annotations/train.json"))
val_dataloader = dict(dataset=dict(data_root=data_root, ann_file="annotations/val.json"))
test_dataloader = val_dataloader
