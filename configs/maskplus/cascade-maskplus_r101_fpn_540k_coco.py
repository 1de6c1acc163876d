# MaskPlus+ (Table 7): all five techniques on each stage of the cascade.
_base_ = "./cascade-mask-rcnn_r101_fpn_540k_coco.py"

model = dict(
    roi_head=dict(
        type="MaskPlusCascadeRoIHead",
        contextual_fusion=[720, 512, 512, 256],
        deconv_pyramid=True,
        boundary_refinement="improved",
        quasi_multitask=0.5,
    )
)
custom_hooks = [dict(type="BiasedTrainingHook", weight=1.5, switch=0.5)]
