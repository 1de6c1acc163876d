# Ablation: the network sees the image alone.
_base_ = "./bpr_hrnetv2-w18s_160k_cityscapes-128x128.py"

model = dict(
    data_preprocessor=dict(use_coarse_mask=False),
    backbone=dict(type="HRNet"),
)
