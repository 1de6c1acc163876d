_base_ = "./mask-rcnn_r18-w16_nuclei.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", contextual_fusion=[180, 128, 128, 64]))
