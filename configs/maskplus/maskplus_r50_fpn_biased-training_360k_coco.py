# Tables 5 and 6.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

custom_hooks = [dict(type="BiasedTrainingHook", weight=1.5, switch=0.5)]
