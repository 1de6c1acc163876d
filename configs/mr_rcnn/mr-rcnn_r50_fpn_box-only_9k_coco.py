# Table 4: refined boxes with the vanilla scores. Tests the weights of the full model.
_base_ = "./mr-rcnn_r50_fpn_9k_coco.py"

model = dict(roi_head=dict(refine_cls=False))
