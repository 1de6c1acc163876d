# The refining module on plain RoIAlign, as in Table 3; the paper has no figure for this backbone.
_base_ = "./mr-rcnn_r101-dconv-c3-c5_fpn_9k_coco.py"

model = dict(roi_head=dict(shape_aware=False))
