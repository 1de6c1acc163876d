"""Instance masks and a semantic map made into one panoptic map."""

from .fusers import (
    HeuristicFusion,
    OcclusionFusion,
    SoftOcclusionFusion,
    SpatialRankingFusion,
    UnknownErasing,
    to_mmdet_panoptic,
)
from .heuristic import fuse_heuristic
from .occlusion import fuse_occlusion, fuse_soft_occlusion
from .soft_occlusion import overlapping, pasting_order, soft_occlusion_score
from .spatial_ranking import fuse_spatial_ranking
from .unknown_erasing import unknown_erasing
from .with_occlusion_head import WithOcclusionHead

__all__ = [
    "HeuristicFusion",
    "OcclusionFusion",
    "SoftOcclusionFusion",
    "SpatialRankingFusion",
    "UnknownErasing",
    "WithOcclusionHead",
    "fuse_heuristic",
    "fuse_occlusion",
    "fuse_soft_occlusion",
    "fuse_spatial_ranking",
    "overlapping",
    "pasting_order",
    "soft_occlusion_score",
    "to_mmdet_panoptic",
    "unknown_erasing",
]
