# IBPP on the boxes of Cascade R-CNN: stage t trains iteration t.
_base_ = "./cascade-panoptic-fpn_r101-dcn_fpn.py"

model = dict(
    type="REFINE",
    roi_head=dict(
        type="IterativeProjectionCascadeRoIHead",
        num_iterations=3,
        num_stuff_classes=53,
        # Ours: the paper is silent.
        share_heads=False,
        canvas_weight="score",
    ),
    semantic_head=dict(type="ProjectionSemanticHead", inner_channels=256),
)
