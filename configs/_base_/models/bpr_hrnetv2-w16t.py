# A tiny HRNet for evidence on two cores: 16 channels, one module a stage, one block a branch, a
# quarter of the parameters of W18-small and two fifths of its time. No pretrained weights. Not in
# the paper: it is told what colour says of each pixel, which it is slow to learn by itself, and it
# corrects the coarse mask instead of drawing the mask anew.
_base_ = "./bpr_hrnetv2-w18s.py"

channels = [16, 32, 64, 128]
model = dict(
    data_preprocessor=dict(use_colour_evidence=True),
    pretrained=None,
    backbone=dict(
        mask_channels=3,
        norm_cfg=dict(type="BN"),
        extra=dict(
            stage1=dict(num_blocks=(1,)),
            stage2=dict(num_blocks=(1, 1), num_channels=channels[:2]),
            stage3=dict(num_modules=1, num_blocks=(1, 1, 1), num_channels=channels[:3]),
            stage4=dict(num_modules=1, num_blocks=(1, 1, 1, 1), num_channels=channels),
        ),
    ),
    decode_head=dict(
        type="ResidualFCNHead",
        in_channels=channels,
        channels=sum(channels),
        norm_cfg=dict(type="BN"),
    ),
)
