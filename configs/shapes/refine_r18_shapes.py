# All at once: the occlusion network learns beside the rest.
_base_ = [
    "../_base_/models/refine_r18_fpn_small.py",
    "../_base_/models/occlusion_small.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime.py",
]

model = dict(
    roi_head=dict(
        num_stuff_classes=5, bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)
    ),
    semantic_head=dict(num_things_classes=8, num_stuff_classes=5),
    occlusion_head={{_base_.occlusion}},
    panoptic_fusion_head=dict(
        type="SoftOcclusionFusion",
        num_things_classes=8,
        num_stuff_classes=5,
        unknown_erasing=dict(),
    ),
    # COCO's limit of 64 x 64 pixels, for pictures of 256 instead of some 640 pixels.
    test_cfg=dict(panoptic=dict(stuff_area_limit=512)),
)
