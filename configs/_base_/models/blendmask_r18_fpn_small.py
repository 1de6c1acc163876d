# BlendMask for evidence on two cores: ResNet-18, 64 channels after it, no pretrained weights.
# For pictures of 256 to 320 pixels: four levels, each for boxes of half the usual size.
_base_ = "./blendmask_r50-caffe_fpn.py"

model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True
    ),
    backbone=dict(
        depth=18,
        frozen_stages=-1,
        norm_cfg=dict(type="BN", requires_grad=True),
        norm_eval=False,
        style="pytorch",
        init_cfg=None,
    ),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=64, num_outs=4),
    bbox_head=dict(
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        strides=[8, 16, 32, 64],
        regress_ranges=((-1, 32), (32, 64), (64, 128), (128, 1e8)),
        norm_cfg=dict(type="GN", num_groups=16, requires_grad=True),
    ),
    mask_head=dict(
        bases=dict(in_channels=64, feat_channels=64, num_convs=2, norm_cfg=dict(type="BN")),
    ),
)
