# schedule_small.py for small models that start from a trained backbone.
_base_ = "./schedule_small.py"

train_cfg = dict(max_iters=1500, val_interval=1500)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=50, end=1500, T_max=1450),
]
