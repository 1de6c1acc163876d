# The lighter backbone of the supplement's section C. The paper names MobileNets and no details; the
# features are those of strides 4 to 32, concatenated at stride 4 as HRNet's branches are.
_base_ = "./bpr_hrnetv2-w18s.py"

channels = [24, 32, 96, 320]
model = dict(
    pretrained="mmcls://mobilenet_v2",
    backbone=dict(_delete_=True, type="RefineMobileNetV2", norm_cfg=dict(type="SyncBN")),
    decode_head=dict(in_channels=channels, channels=256),
)
