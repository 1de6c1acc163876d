# The refiner that ships, whose weights lie beside this file: what bpr_hrnetv2-w16t_mixed-64x64.py
# has learnt on small patches goes on with those of the size that refinement takes. It was run
# twice, the second time from the first one's weights (README.md).
_base_ = "./bpr_hrnetv2-w16t_mixed-64x64.py"

load_from = "work_dirs/bpr_hrnetv2-w16t_mixed-64x64/iter_5000.pth"
model = dict(data_preprocessor=dict(input_size=128))
common = dict(patch_size=64, patches_per_image=8, even_instances=True)
shapes = dict(_base_.shapes, **common)
nuclei = dict(_base_.nuclei, **common)
coco = dict(_base_.coco, **common)
train_dataloader = dict(
    dataset=dict(
        # Pictures: 4000 of Shapes, 2200 of nuclei, 9600 of COCO.
        datasets=[
            shapes,
            dict(shapes, coarse="data/coarse/shapes_mask-rcnn_train.segm.json"),
            dict(type="RepeatDataset", dataset=nuclei, times=5),
            dict(
                type="RepeatDataset",
                dataset=dict(nuclei, coarse="data/coarse/nuclei_mask-rcnn_train.segm.json"),
                times=5,
            ),
            dict(type="RepeatDataset", dataset=coco, times=50),
            dict(type="RepeatDataset", dataset=dict(coco, degrade=["mask_head"]), times=50),
            dict(type="RepeatDataset", dataset=dict(coco, patch_size=48), times=10),
            dict(type="RepeatDataset", dataset=dict(coco, patch_size=96), times=10),
        ],
    ),
)
val_dataloader = dict(dataset=dict(patch_size=64))
test_dataloader = val_dataloader

train_cfg = dict(max_iters=1700, val_interval=850)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", eta_min=0.0, by_epoch=False, begin=50, end=1700, T_max=1650),
]
