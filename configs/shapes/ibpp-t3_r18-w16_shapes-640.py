_base_ = [
    "../_base_/models/refine_r18_fpn_small.py",
    "../_base_/models/r18-w16_shapes.py",
    "../_base_/datasets/shapes-640_panoptic.py",
    "../_base_/schedules/schedule_1500.py",
    "../_base_/iter_runtime.py",
]

model = dict(
    backbone={{_base_.r18_w16}},
    neck=dict(in_channels=[16, 32, 64, 128]),
    roi_head=dict(
        num_stuff_classes=5, bbox_head=dict(num_classes=8), mask_head=dict(num_classes=8)
    ),
    semantic_head=dict(num_things_classes=8, num_stuff_classes=5),
    panoptic_fusion_head=dict(num_things_classes=8, num_stuff_classes=5),
)
