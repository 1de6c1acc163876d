_base_ = "./mask-rcnn_x101-32x8d_fpn_9k_coco.py"

model = dict(type="MaskRefiningRCNN", roi_head=dict(type="MaskRefiningRoIHead"))
