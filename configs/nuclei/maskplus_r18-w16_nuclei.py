# All five techniques; filters a quarter of the paper's, as the features are.
_base_ = "./mask-rcnn_r18-w16_nuclei.py"

model = dict(
    roi_head=dict(
        type="MaskPlusRoIHead",
        contextual_fusion=[180, 128, 128, 64],
        deconv_pyramid=True,
        boundary_refinement="improved",
        quasi_multitask=0.5,
    )
)
custom_hooks = [dict(type="BiasedTrainingHook", weight=1.5, switch=0.5)]
