_base_ = "./mask-rcnn_r101-dconv-c3-c5_fpn_9k_coco.py"

model = dict(type="MaskRefiningRCNN", roi_head=dict(type="MaskRefiningRoIHead"))
