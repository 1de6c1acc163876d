"""Operators of MMPlus: torch is all they need, and each works without the compiled library too."""

from ._library import has_compiled_ops, ops_info
from .shape_aware_roi_align import shape_aware_roi_align

__all__ = ["has_compiled_ops", "ops_info", "shape_aware_roi_align"]
