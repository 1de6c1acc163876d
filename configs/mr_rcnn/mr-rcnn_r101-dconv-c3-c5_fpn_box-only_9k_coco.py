# Refined boxes with the vanilla scores, as in Table 4; the paper has no figure for this backbone.
# Tests the weights of the full model.
_base_ = "./mr-rcnn_r101-dconv-c3-c5_fpn_9k_coco.py"

model = dict(roi_head=dict(refine_cls=False))
