# What makes a Panoptic-FPN an IBPP model, with T = 3. The semantics tell all 133 classes apart, and
# F_sem has the 256 channels of the instances' features, to which it is added (Eq. 4).
_base_ = "./panoptic-fpn_r50_fpn_gn.py"

model = dict(
    type="REFINE",
    roi_head=dict(
        type="IterativeProjectionRoIHead",
        num_iterations=3,
        num_stuff_classes=53,
        # Ours: the paper is silent.
        share_heads=False,
        canvas_weight="score",
    ),
    semantic_head=dict(type="ProjectionSemanticHead", inner_channels=256),
)
