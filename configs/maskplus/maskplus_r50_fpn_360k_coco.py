# MaskPlus: all five techniques in the settings that did best (section 4.9).
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

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
