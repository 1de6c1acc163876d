_base_ = "./mask-rcnn_r18-w16_nuclei.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", deconv_pyramid=True))
