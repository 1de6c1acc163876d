"""MaskPlus: Improving Mask Generation for Instance Segmentation (Xu et al., WACV 2020)."""

from .biased_training import BiasedTrainingHook
from .boundary_refinement import GCNBoundaryRefinement, ImprovedBoundaryRefinement
from .contextual_fusion import ContextualFusion, ContextualFusionExtractor
from .deconv_pyramid import DeconvPyramid
from .maskplus_head import MaskPlusHead
from .maskplus_roi_head import MaskPlusCascadeRoIHead, MaskPlusMixin, MaskPlusRoIHead
from .quasi_multitask import QuasiMultitaskBranch

__all__ = [
    "BiasedTrainingHook",
    "ContextualFusion",
    "ContextualFusionExtractor",
    "DeconvPyramid",
    "GCNBoundaryRefinement",
    "ImprovedBoundaryRefinement",
    "MaskPlusCascadeRoIHead",
    "MaskPlusHead",
    "MaskPlusMixin",
    "MaskPlusRoIHead",
    "QuasiMultitaskBranch",
]
