# Boundary patches straight from the pictures of Shapes, with coarse masks made from the ground
# truth: nothing is written. A batch holds four pictures with up to eight patches each.
_base_ = "./bpr_cityscapes.py"

data_root = "data/shapes/"
online = dict(store=None, patches_per_image=8)
train_dataloader = dict(
    batch_size=4,
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        **online,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        data_root=data_root,
        ann_file="annotations/instances_val.json",
        data_prefix=dict(img="val/"),
        **online,
    ),
)
test_dataloader = val_dataloader
