# The tiny refiner on nuclei, with coarse masks made from the ground truth.
_base_ = [
    "../_base_/models/bpr_hrnetv2-w16t.py",
    "../_base_/datasets/bpr_nuclei.py",
    "../_base_/schedules/schedule_small.py",
    "../_base_/iter_runtime_seg.py",
]
