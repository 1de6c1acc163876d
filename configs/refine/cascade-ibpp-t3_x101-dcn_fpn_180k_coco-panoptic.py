# The model that every row of Tables 5 and 6 fuses, here by the heuristic: their first row.
_base_ = "./cascade-ibpp-t3_r101-dcn_fpn_180k_coco-panoptic.py"

model = dict(
    backbone=dict(
        type="ResNeXt",
        groups=64,
        base_width=4,
        init_cfg=dict(checkpoint="open-mmlab://resnext101_64x4d"),
    )
)
