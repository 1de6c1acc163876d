# Table 3: the refining module on plain RoIAlign.
_base_ = "./mr-rcnn_x101-32x8d_fpn_9k_coco.py"

model = dict(roi_head=dict(shape_aware=False))
