"""Systems that work together: what joins the rooms of two papers stands here, above both."""

from .maskplus_mr_rcnn import MaskPlusMaskRefiningRoIHead

__all__ = ["MaskPlusMaskRefiningRoIHead"]
