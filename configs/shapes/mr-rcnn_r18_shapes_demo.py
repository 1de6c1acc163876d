_base_ = ["./mask-rcnn_r18_shapes_demo.py", "../_base_/models/mask-refining.py"]

model = {{_base_.mask_refining}}
