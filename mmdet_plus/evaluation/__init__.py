"""Parts of testing that upstream lacks."""

from .mask_tta import MaskTTAModel

__all__ = ["MaskTTAModel"]
