_base_ = "./mask-rcnn_r101_fpn_9k_coco.py"

model = dict(type="MaskRefiningRCNN", roi_head=dict(type="MaskRefiningRoIHead"))
