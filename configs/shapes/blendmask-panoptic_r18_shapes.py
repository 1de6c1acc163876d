_base_ = [
    "../_base_/models/blendmask-panoptic_r18_fpn_small.py",
    "../_base_/datasets/shapes_panoptic.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime.py",
]

model = dict(
    bbox_head=dict(num_classes=8),
    semantic_head=dict(num_stuff_classes=5),
    # COCO's limit of 64 x 64 pixels, for pictures of 256 instead of some 640 pixels.
    test_cfg=dict(panoptic=dict(stuff_area_limit=512)),
)
