"""REFINE: Prediction Fusion Network for Panoptic Segmentation (Ren et al., AAAI 2021)."""

from .iterative_projection_roi_head import (
    IterativeProjectionCascadeRoIHead,
    IterativeProjectionRoIHead,
)
from .occlusion import OcclusionNetwork
from .occlusion_head import OcclusionHead
from .projection import IterativeProjection
from .refine import REFINE
from .semantic_head import ProjectionSemanticHead
from .spatial_ranking_head import SpatialRankingHead

__all__ = [
    "REFINE",
    "IterativeProjection",
    "IterativeProjectionCascadeRoIHead",
    "IterativeProjectionRoIHead",
    "OcclusionHead",
    "OcclusionNetwork",
    "ProjectionSemanticHead",
    "SpatialRankingHead",
]
