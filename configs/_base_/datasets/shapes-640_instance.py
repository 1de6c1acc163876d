# Shapes at the size of COCO's pictures, so that COCO's limits of small, medium and large hold:
#   python tools/make_shapes.py data/shapes_640 --num-train 2000 --num-val 300 --size 640 640
# The networks see them at 256 pixels.
_base_ = "./shapes_instance.py"

data_root = "data/shapes_640/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader

val_evaluator = dict(
    type="BoundaryMetric",
    ann_file=data_root + "annotations/instances_val.json",
)
test_evaluator = val_evaluator
