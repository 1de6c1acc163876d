# All five techniques in both mask branches of MR R-CNN.
_base_ = "../mr_rcnn/mr-rcnn_r50_fpn_9k_coco.py"

model = dict(
    roi_head=dict(
        type="MaskPlusMaskRefiningRoIHead",
        contextual_fusion=[720, 512, 512, 256],
        deconv_pyramid=True,
        boundary_refinement="improved",
        quasi_multitask=0.5,
    )
)
custom_hooks = [dict(type="BiasedTrainingHook", weight=1.5, switch=0.5)]
