# Of Table 6 the row with the masks alone.
_base_ = "./ocfusion_r18-w16_shapes-640.py"

model = dict(occlusion_head=dict(use_features=False))
