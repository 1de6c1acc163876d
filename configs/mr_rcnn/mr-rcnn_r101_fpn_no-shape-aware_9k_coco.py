# Table 3: the refining module on plain RoIAlign.
_base_ = "./mr-rcnn_r101_fpn_9k_coco.py"

model = dict(roi_head=dict(shape_aware=False))
