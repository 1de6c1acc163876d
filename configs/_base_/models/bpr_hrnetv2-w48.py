# BPR's larger network: HRNetV2-W48, 256 x 256 pixels.
_base_ = "./bpr_hrnetv2-w18s.py"

channels = [48, 96, 192, 384]
model = dict(
    data_preprocessor=dict(input_size=256),
    pretrained="open-mmlab://msra/hrnetv2_w48",
    backbone=dict(
        extra=dict(
            stage1=dict(num_blocks=(4,)),
            stage2=dict(num_blocks=(4, 4), num_channels=channels[:2]),
            stage3=dict(num_modules=4, num_blocks=(4, 4, 4), num_channels=channels[:3]),
            stage4=dict(num_modules=3, num_blocks=(4, 4, 4, 4), num_channels=channels),
        )
    ),
    decode_head=dict(in_channels=channels, channels=sum(channels)),
)
