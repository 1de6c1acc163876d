"""BPR, Boundary Patch Refinement (Tang et al., CVPR 2021)."""

from .patch_dataset import BoundaryPatchDataset, collate_patches
from .patch_metric import BoundaryPatchMetric
from .patch_refiner import BoundaryPatchPreProcessor, BoundaryPatchRefiner
from .refine_backbones import RefineHRNet, RefineMobileNetV2
from .refinement_metric import BoundaryRefinementMetric
from .refiner import BoundaryRefiner
from .residual_head import ResidualFCNHead
from .transforms import PackPatchInputs

__all__ = [
    "BoundaryPatchDataset",
    "BoundaryPatchMetric",
    "BoundaryPatchPreProcessor",
    "BoundaryPatchRefiner",
    "PackPatchInputs",
    "RefineHRNet",
    "BoundaryRefinementMetric",
    "BoundaryRefiner",
    "RefineMobileNetV2",
    "ResidualFCNHead",
    "collate_patches",
]
