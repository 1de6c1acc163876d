_base_ = [
    "../_base_/models/blendmask_r18_fpn_small.py",
    "../_base_/datasets/coco-tiny_overfit.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime.py",
]

train_cfg = dict(max_iters=1500, val_interval=1500)
# One-stage heads begin far from the rare positives: a larger step than the two-stage models'.
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=50, end=1500, T_max=1450),
]
