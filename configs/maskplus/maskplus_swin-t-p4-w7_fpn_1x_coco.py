# All five techniques on another backbone, with its own schedule of 12 epochs.
_base_ = [
    "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py",
    "../_base_/mmplus.py",
]

model = dict(
    roi_head=dict(
        type="MaskPlusRoIHead",
        contextual_fusion=[720, 512, 512, 256],
        deconv_pyramid=True,
        boundary_refinement="improved",
        quasi_multitask=0.5,
    )
)
custom_hooks = [dict(type="BiasedTrainingHook", weight=1.5, switch=0.5)]
