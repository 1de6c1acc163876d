# BPR's refinement network: HRNetV2-W18-small on image and coarse mask, FCN head, 128 x 128 pixels.
_base_ = "mmseg::_base_/models/fcn_hr18.py"

data_preprocessor = dict(type="BoundaryPatchPreProcessor", input_size=128)
model = dict(
    type="BoundaryPatchRefiner",
    data_preprocessor=data_preprocessor,
    pretrained="open-mmlab://msra/hrnetv2_w18_small",
    backbone=dict(
        type="RefineHRNet",
        extra=dict(
            stage1=dict(num_blocks=(2,)),
            stage2=dict(num_blocks=(2, 2)),
            stage3=dict(num_modules=3, num_blocks=(2, 2, 2)),
            stage4=dict(num_modules=2, num_blocks=(2, 2, 2, 2)),
        ),
    ),
    decode_head=dict(num_classes=2, loss_decode=dict(avg_non_ignore=True)),
)
