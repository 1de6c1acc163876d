# Ablation: 5 pixels more on each side of a patch. They need a store of their own, and
# tools/bpr_refine.py the same --padding 5.
#
# for split in train val; do
#     python tools/bpr_patches.py results/mask-rcnn_$split --split $split \
#         --ann data/cityscapes/gtFine/$split --img-dir data/cityscapes/leftImg8bit/$split \
#         --out data/bpr/cityscapes-padding-5 --padding 5
# done
_base_ = "./bpr_hrnetv2-w18s_160k_cityscapes-128x128.py"

data_root = "data/bpr/cityscapes-padding-5/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
