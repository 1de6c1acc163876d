"""Operators of MMPlus. Depends on torch alone; each op works with and without the compiled library."""

from ._library import has_compiled_ops, ops_info
from .shape_aware_roi_align import shape_aware_roi_align

__all__ = ["has_compiled_ops", "ops_info", "shape_aware_roi_align"]
