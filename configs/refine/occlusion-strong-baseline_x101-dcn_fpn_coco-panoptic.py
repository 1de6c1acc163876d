# The strong baseline (Table 5, and Table 6 with all three ticks): the same network, but its word is
# taken as it is, without the scores.
_base_ = "./refine_x101-dcn_fpn_coco-panoptic.py"

model = dict(
    panoptic_fusion_head=dict(
        _delete_=True,
        type="OcclusionFusion",
        num_things_classes=80,
        num_stuff_classes=53,
        occlusion_thr=0.2,
    )
)
