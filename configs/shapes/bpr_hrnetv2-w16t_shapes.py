# The tiny refiner on Shapes, with coarse masks made from the ground truth.
_base_ = [
    "../_base_/models/bpr_hrnetv2-w16t.py",
    "../_base_/datasets/bpr_shapes.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime_seg.py",
]
