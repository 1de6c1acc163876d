# Refined scores on the vanilla boxes, as in Table 4; the paper has no figure for this backbone.
# Tests the weights of the full model.
_base_ = "./mr-rcnn_r101-dconv-c3-c5_fpn_9k_coco.py"

model = dict(roi_head=dict(refine_reg=False))
