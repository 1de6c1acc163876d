_base_ = "./ibpp-t3_r18-w16_shapes-640.py"

model = dict(roi_head=dict(num_iterations=1))
