# AdamW for models without pretrained weights: a short warm-up, then a cosine to zero. Whoever
# changes the length changes `max_iters` here and `T_max` and `end` of the cosine with it.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=600, val_interval=600)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=50, end=600, T_max=550),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
