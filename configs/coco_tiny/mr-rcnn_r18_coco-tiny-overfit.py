_base_ = ["./mask-rcnn_r18_coco-tiny-overfit.py", "../_base_/models/mask-refining.py"]

model = {{_base_.mask_refining}}
