"""Data: the embedded Shapes set, and COCO data sets that check their files.

Importing this package registers the data sets with mmdet (scope ``mmdet``).
"""

from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError

from .checked_coco import CheckedCocoDataset, CheckedCocoPanopticDataset
from .shapes import make_shapes
from .shapes_dataset import ShapesDataset, ShapesPanopticDataset

__all__ = [
    "AnnotationError",
    "CheckedCocoDataset",
    "CheckedCocoPanopticDataset",
    "MissingDataError",
    "ShapesDataset",
    "ShapesPanopticDataset",
    "make_shapes",
]
