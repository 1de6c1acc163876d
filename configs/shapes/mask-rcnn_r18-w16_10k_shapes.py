# Trained for long enough to be good at Shapes: about an hour on two cores. The weights lie beside
# this file, and the demo starts from them. The pictures are its own; no other config sees them:
#   python tools/make_shapes.py data/shapes_6k --num-train 6000 --num-val 200 --seed 6000
_base_ = "./mask-rcnn_r18-w16_shapes.py"

data_root = "data/shapes_6k/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + "annotations/instances_val.json")
test_evaluator = val_evaluator

train_cfg = dict(max_iters=10000, val_interval=2500)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=200, end=10000, T_max=9800),
]
