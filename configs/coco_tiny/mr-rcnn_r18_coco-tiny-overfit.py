_base_ = "./mask-rcnn_r18_coco-tiny-overfit.py"

model = dict(type="MaskRefiningRCNN", roi_head=dict(type="MaskRefiningRoIHead"))
