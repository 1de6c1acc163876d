# REFINE for evidence on two cores: the small Panoptic-FPN with T = 3, fused by the heuristic. Boxes
# of low scores and pairs that overlap are the fuser's to sort out.
_base_ = "./panoptic-fpn_r18_fpn_small.py"

model = dict(
    type="REFINE",
    roi_head=dict(
        type="IterativeProjectionRoIHead",
        num_iterations=3,
        semantic_norm_cfg=dict(type="GN", num_groups=16),
    ),
    semantic_head=dict(type="ProjectionSemanticHead"),
    panoptic_fusion_head=dict(type="HeuristicFusion"),
    test_cfg=dict(
        rcnn=dict(score_thr=0.05, nms=dict(class_agnostic=False)),
        panoptic=dict(score_thr=0.5),
    ),
)
