# OANet's ranking in the occlusion network's place.
_base_ = "./refine_r18-w16_shapes-640.py"

model = dict(
    occlusion_head=dict(
        _delete_=True,
        type="SpatialRankingHead",
        num_classes=8,
        train_score_thr=0.1,
        match_iou=0.3,
        channels=32,
    ),
    panoptic_fusion_head=dict(type="SpatialRankingFusion", unknown_erasing=None),
)
