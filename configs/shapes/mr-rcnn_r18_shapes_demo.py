_base_ = "./mask-rcnn_r18_shapes_demo.py"

model = dict(type="MaskRefiningRCNN", roi_head=dict(type="MaskRefiningRoIHead"))
