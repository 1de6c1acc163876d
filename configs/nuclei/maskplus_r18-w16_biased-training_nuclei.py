_base_ = "./mask-rcnn_r18-w16_nuclei.py"

custom_hooks = [dict(type="BiasedTrainingHook")]
