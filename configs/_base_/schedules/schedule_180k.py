# REFINE: 180k iterations. The paper says no more of it here; 16 pictures, the learning rate and the
# steps at two thirds and eight ninths are ours.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=180000, val_interval=20000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=0.0001),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[120000, 160000], gamma=0.1),
]
auto_scale_lr = dict(enable=False, base_batch_size=16)
