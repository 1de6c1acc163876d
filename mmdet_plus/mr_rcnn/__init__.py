"""MR R-CNN: Shape-aware Feature Extraction for Instance Segmentation (Ding et al., 2019)."""

from .mask_refining_rcnn import MaskRefiningRCNN
from .mask_refining_roi_head import MaskRefiningRoIHead
from .shape_aware_roi_extractor import ShapeAwareRoIExtractor

__all__ = ["MaskRefiningRCNN", "MaskRefiningRoIHead", "ShapeAwareRoIExtractor"]
