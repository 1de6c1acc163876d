# What makes a Mask R-CNN an MR R-CNN: `model = {{_base_.mask_refining}}` on the base of Mask R-CNN.
# (mmengine lets no two bases hold the same key, so this one is not called `model`. Options go to
# `model`: --cfg-options model.roi_head.alpha=0.5)
# What the paper leaves open stands here with our choice; docs/mr_rcnn.md says why.
mask_refining = dict(
    type="MaskRefiningRCNN",
    roi_head=dict(
        type="MaskRefiningRoIHead",
        # Changes to the configs of bbox_roi_extractor, bbox_head and mask_head.
        refining_bbox_roi_extractor=dict(),
        refining_bbox_head=dict(),
        refining_mask_head=dict(),
        # Tables 3, 4 and 5.
        shape_aware=True,
        refine_cls=True,
        refine_reg=True,
        alpha=1.0,
        # Ours.
        refine_assign="reassign",
        detach_guidance=True,
    ),
    test_cfg=dict(
        rcnn=dict(
            candidates=dict(
                score_thr=0.05, nms=dict(type="nms", iou_threshold=0.7), max_per_img=200
            )
        )
    ),
)
