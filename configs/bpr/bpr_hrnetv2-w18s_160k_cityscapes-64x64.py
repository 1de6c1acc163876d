# Ablation: patches are resized to 64 x 64 pixels for the network.
_base_ = "./bpr_hrnetv2-w18s_160k_cityscapes-128x128.py"

model = dict(data_preprocessor=dict(input_size=64))
