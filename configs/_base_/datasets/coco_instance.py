# COCO instances: mmdet's pipelines and loaders, with annotations that are checked on loading.
_base_ = "mmdet::_base_/datasets/coco_instance.py"

dataset_type = "CheckedCocoDataset"

train_dataloader = dict(dataset=dict(type=dataset_type))
val_dataloader = dict(dataset=dict(type=dataset_type))
test_dataloader = dict(dataset=dict(type=dataset_type))
