"""Parts of testing that upstream lacks."""

from .boundary_f import boundary_f
from .boundary_metric import BoundaryMetric
from .mask_quality import evaluate_masks, evaluate_results
from .mask_tta import MaskTTAModel
from .panoptic_files import pq_from_files
from .panoptic_metric import PanopticMetric
from .panoptic_quality import pq_statistics

__all__ = [
    "BoundaryMetric",
    "MaskTTAModel",
    "PanopticMetric",
    "boundary_f",
    "evaluate_masks",
    "evaluate_results",
    "pq_from_files",
    "pq_statistics",
]
