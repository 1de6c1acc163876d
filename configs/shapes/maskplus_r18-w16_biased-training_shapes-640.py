_base_ = "./mask-rcnn_r18-w16_shapes-640.py"

custom_hooks = [dict(type="BiasedTrainingHook")]
