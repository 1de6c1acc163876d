# The paper's larger network on COCO.
_base_ = [
    "../_base_/models/bpr_hrnetv2-w48.py",
    "../_base_/datasets/bpr_coco.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_160k.py",
    "../_base_/mmplus_seg.py",
]

auto_scale_lr = dict(enable=False, base_batch_size=32)
