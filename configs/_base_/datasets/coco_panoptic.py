# COCO panoptic: mmdet's pipelines and loaders, with annotations that are checked on loading.
_base_ = "mmdet::_base_/datasets/coco_panoptic.py"

dataset_type = "CheckedCocoPanopticDataset"

train_dataloader = dict(dataset=dict(type=dataset_type))
val_dataloader = dict(dataset=dict(type=dataset_type))
test_dataloader = dict(dataset=dict(type=dataset_type))

# Counts by the classes of the data set, in whatever order the file has them.
val_evaluator = dict(type="PanopticMetric")
test_evaluator = dict(type="PanopticMetric")
