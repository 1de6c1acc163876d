# The same of a segmenter's results on COCO, with the authors' threshold of the NMS and their number
# of instances:
#
# python tools/bpr_patches.py results/mask-rcnn_train2017.segm.json \
#     --ann data/coco/annotations/instances_train2017.json --img-dir data/coco/train2017 \
#     --out data/bpr/coco --iou-thr 0.15 --max-instances 70000
# python tools/bpr_patches.py results/mask-rcnn_val2017.segm.json --split val \
#     --ann data/coco/annotations/instances_val2017.json --img-dir data/coco/val2017 \
#     --out data/bpr/coco --iou-thr 0.15
_base_ = "./bpr_cityscapes.py"

data_root = "data/bpr/coco/"
train_dataloader = dict(dataset=dict(data_root=data_root))
val_dataloader = dict(dataset=dict(data_root=data_root))
test_dataloader = val_dataloader
