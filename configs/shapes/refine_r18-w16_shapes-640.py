# The occlusion network alone, on the model that ibpp-t3_r18-w16_shapes-640.py trains.
_base_ = ["./ibpp-t3_r18-w16_shapes-640.py", "../_base_/models/occlusion_small.py"]

load_from = "work_dirs/ibpp-t3_r18-w16_shapes-640/iter_1500.pth"
model = dict(
    backbone=dict(init_cfg=None),
    occlusion_only=True,
    occlusion_head={{_base_.occlusion}},
    panoptic_fusion_head=dict(type="SoftOcclusionFusion", unknown_erasing=dict()),
)

train_cfg = dict(max_iters=600, val_interval=600)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=50, end=600, T_max=550),
]
