_base_ = "./mask-rcnn_r18_nuclei.py"

model = dict(roi_head=dict(type="MaskPlusRoIHead", boundary_refinement="improved"))
