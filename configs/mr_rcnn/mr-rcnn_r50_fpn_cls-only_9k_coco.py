# Table 4: refined scores on the vanilla boxes. Tests the weights of the full model.
_base_ = "./mr-rcnn_r50_fpn_9k_coco.py"

model = dict(roi_head=dict(refine_reg=False))
