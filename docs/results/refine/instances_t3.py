# AP beside PQ, for tools/test.py.
_base_ = "../../../configs/shapes/ibpp-t3_r18-w16_shapes-640.py"

model = dict(test_cfg=dict(instance_on=True))
test_evaluator = [
    _base_.test_evaluator,
    dict(
        type="CocoMetric",
        ann_file=_base_.data_root + "annotations/instances_val.json",
        metric=["bbox", "segm"],
    ),
]
