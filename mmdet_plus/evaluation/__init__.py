"""Parts of testing that upstream lacks."""

from .boundary_f import boundary_f
from .boundary_metric import BoundaryMetric
from .mask_quality import evaluate_masks, evaluate_results
from .mask_tta import MaskTTAModel

__all__ = [
    "BoundaryMetric",
    "MaskTTAModel",
    "boundary_f",
    "evaluate_masks",
    "evaluate_results",
]
