"""REFINE: Prediction Fusion Network for Panoptic Segmentation (Ren et al., AAAI 2021)."""

from .iterative_projection_roi_head import (
    IterativeProjectionCascadeRoIHead,
    IterativeProjectionRoIHead,
)
from .projection import IterativeProjection
from .refine import REFINE
from .semantic_head import ProjectionSemanticHead

__all__ = [
    "REFINE",
    "IterativeProjection",
    "IterativeProjectionCascadeRoIHead",
    "IterativeProjectionRoIHead",
    "ProjectionSemanticHead",
]
