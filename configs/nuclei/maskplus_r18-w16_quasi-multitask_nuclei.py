_base_ = "./mask-rcnn_r18-w16_nuclei.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", quasi_multitask=0.5))
