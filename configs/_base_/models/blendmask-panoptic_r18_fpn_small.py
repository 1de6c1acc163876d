# BlendMask for panoptic evidence on two cores. The number of stuff classes is the data
# set's to give.
_base_ = "./blendmask_r18_fpn_small.py"

model = dict(
    data_preprocessor=dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    neck=dict(start_level=0, num_outs=5),
    semantic_head=dict(
        type="StuffHead",
        in_channels=64,
        inner_channels=64,
        norm_cfg=dict(type="GN", num_groups=16),
    ),
    test_cfg=dict(panoptic=dict(score_thr=0.45, overlap_thr=0.4, stuff_area_limit=4096)),
)
