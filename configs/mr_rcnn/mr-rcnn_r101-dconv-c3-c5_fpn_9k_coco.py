_base_ = ["./mask-rcnn_r101-dconv-c3-c5_fpn_9k_coco.py", "../_base_/models/mask-refining.py"]

model = {{_base_.mask_refining}}
