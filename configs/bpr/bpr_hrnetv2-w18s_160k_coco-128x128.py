# Batches of 32: four GPUs with eight patches each.
_base_ = [
    "../_base_/models/bpr_hrnetv2-w18s.py",
    "../_base_/datasets/bpr_coco.py",
    "mmseg::_base_/default_runtime.py",
    "mmseg::_base_/schedules/schedule_160k.py",
    "../_base_/mmplus_seg.py",
]

auto_scale_lr = dict(enable=False, base_batch_size=32)
