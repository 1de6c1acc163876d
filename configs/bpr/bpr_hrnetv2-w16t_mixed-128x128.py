# The refiner that ships. Its weights, which lie beside this file, were trained by
# bpr_hrnetv2-w16t_mixed-64x64.py; refinement takes patches of twice the side at the same scale.
_base_ = "./bpr_hrnetv2-w16t_mixed-64x64.py"

model = dict(data_preprocessor=dict(input_size=128))
