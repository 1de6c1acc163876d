# Fine-tuning of MR R-CNN, section 4.1: 9k iterations of 16 pictures.
train_cfg = dict(type="IterBasedTrainLoop", max_iters=9000, val_interval=3000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.002, momentum=0.9, weight_decay=0.0001),
)
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, milestones=[6000], gamma=0.1)]
auto_scale_lr = dict(enable=False, base_batch_size=16)
