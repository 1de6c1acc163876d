# SRM, OANet's Spatial Ranking Module (Table 5).
_base_ = "./refine_x101-dcn_fpn_coco-panoptic.py"

model = dict(
    occlusion_head=dict(_delete_=True, type="SpatialRankingHead", num_classes=80, score_thr=0.5),
    panoptic_fusion_head=dict(
        _delete_=True, type="SpatialRankingFusion", num_things_classes=80, num_stuff_classes=53
    ),
)
