# Table S1: trained on the results of PointRend, to refine those of Mask R-CNN, on which it is
# validated.
#
# python tools/bpr_patches.py results/pointrend_train \
#     --ann data/cityscapes/gtFine/train --img-dir data/cityscapes/leftImg8bit/train \
#     --out data/bpr/cityscapes-pointrend
_base_ = "./bpr_hrnetv2-w18s_160k_cityscapes-128x128.py"

train_dataloader = dict(dataset=dict(data_root="data/bpr/cityscapes-pointrend/"))
