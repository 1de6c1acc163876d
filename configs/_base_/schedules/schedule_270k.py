# Cascade Panoptic-FPN in REFINE's Table 2: half as long again.
_base_ = "./schedule_180k.py"

train_cfg = dict(max_iters=270000, val_interval=30000)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[180000, 240000], gamma=0.1),
]
