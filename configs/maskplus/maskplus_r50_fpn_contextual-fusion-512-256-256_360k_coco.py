# The filters that section 3.1 tells; in no table.
_base_ = "./mask-rcnn_r50_fpn_360k_coco.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", contextual_fusion=[512, 256, 256]))
