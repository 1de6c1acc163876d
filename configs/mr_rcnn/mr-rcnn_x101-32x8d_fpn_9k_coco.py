_base_ = ["./mask-rcnn_x101-32x8d_fpn_9k_coco.py", "../_base_/models/mask-refining.py"]

model = {{_base_.mask_refining}}
