# For `make demo`: a backbone of half the width and two pictures an iteration, because minutes
# allow more steps that way, and steps are what a model from scratch needs first. The demo sets
# the length.
_base_ = "./mask-rcnn_r18_shapes.py"

model = dict(
    backbone=dict(base_channels=32, stem_channels=32),
    neck=dict(in_channels=[32, 64, 128, 256]),
)
# Two trainings on two cores leave none for workers.
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=1e-3))
auto_scale_lr = dict(base_batch_size=2)
