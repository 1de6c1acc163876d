# REFINE with ResNet-50 (Table 1, and the last row of Table 3): the occlusion network, trained alone
# on the frozen IBPP model; then Soft Occlusion Estimation and Unknown Erasing.
_base_ = [
    "../_base_/models/ibpp_r50_fpn_gn.py",
    "../_base_/models/occlusion.py",
    "../_base_/datasets/coco_panoptic_800.py",
    "../_base_/schedules/schedule_9k.py",
    "../_base_/iter_runtime.py",
]

load_from = "work_dirs/ibpp-t3_r50_fpn_gn_180k_coco-panoptic/iter_180000.pth"
model = dict(
    # `load_from` brings all weights.
    backbone=dict(init_cfg=None),
    occlusion_only=True,
    occlusion_head={{_base_.occlusion}},
    panoptic_fusion_head=dict(
        type="SoftOcclusionFusion",
        sigma=2.5,
        occlusion_thr=0.2,
        unknown_erasing=dict(threshold=0.5, dilation=3),
    ),
)
default_hooks = dict(checkpoint=dict(interval=3000))
