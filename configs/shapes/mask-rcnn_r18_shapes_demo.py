# For `make demo`: goes on from trained weights (mask-rcnn_r18-w16_10k_shapes.py). The demo sets the
# length.
_base_ = "./mask-rcnn_r18-w16_shapes.py"

load_from = "{{ fileDirname }}/mask-rcnn_r18-w16_10k_shapes.pth"
# Two trainings on two cores leave none for workers.
train_dataloader = dict(num_workers=0, persistent_workers=False)
val_dataloader = dict(num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-4))
