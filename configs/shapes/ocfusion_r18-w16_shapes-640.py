# OCFusion: the priors of masks and features, and a hard order.
_base_ = "./refine_r18-w16_shapes-640.py"

model = dict(
    occlusion_head=dict(use_labels=False),
    panoptic_fusion_head=dict(type="OcclusionFusion", unknown_erasing=None),
)
