_base_ = ["./mask-rcnn_r18_nuclei.py", "../_base_/models/r18-w16_shapes.py"]

model = dict(backbone={{_base_.r18_w16}}, neck=dict(in_channels=[16, 32, 64, 128]))
