# A backbone of a quarter of the width.
_base_ = "./mask-rcnn_r18_shapes.py"

model = dict(
    backbone=dict(base_channels=16, stem_channels=16),
    neck=dict(in_channels=[16, 32, 64, 128]),
)
