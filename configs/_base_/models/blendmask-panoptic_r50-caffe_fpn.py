# BlendMask with the semantic branch of Panoptic-FPN (appendix A), which reads P2 to P5.
_base_ = "./blendmask_r50-caffe_fpn.py"

model = dict(
    data_preprocessor=dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255),
    neck=dict(start_level=0, num_outs=6),
    semantic_head=dict(
        type="StuffHead",
        num_stuff_classes=53,
        in_channels=256,
        inner_channels=128,
        start_level=0,
        end_level=4,
        norm_cfg=dict(type="GN", num_groups=32, requires_grad=True),
        loss_seg=dict(
            type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.5
        ),
    ),
    test_cfg=dict(
        # The authors' configs: 0.45 of the square-root score. The appendix's 0.2 is of the product.
        panoptic=dict(score_thr=0.45, overlap_thr=0.4, stuff_area_limit=4096),
    ),
)
