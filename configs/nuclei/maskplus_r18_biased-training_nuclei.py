_base_ = "./mask-rcnn_r18_nuclei.py"

custom_hooks = [dict(type="BiasedTrainingHook")]
