# The same of a segmenter's results on COCO.
_base_ = "./bpr_cityscapes.py"

data_root = "data/bpr/coco/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
