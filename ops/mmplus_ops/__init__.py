"""Operators of MMPlus: torch is all they need, and each works without the compiled library too."""

from ._library import has_compiled_ops, ops_info
from .blend_bases import blend_bases
from .boundary_patches import crop_patches, extract_boundary_patches, reassemble_patches
from .id_maps import pair_areas
from .mask_regions import connected_components, mask_intersections
from .roi_flatten import roi_flatten
from .shape_aware_roi_align import shape_aware_roi_align

__all__ = [
    "blend_bases",
    "connected_components",
    "crop_patches",
    "extract_boundary_patches",
    "has_compiled_ops",
    "mask_intersections",
    "ops_info",
    "pair_areas",
    "reassemble_patches",
    "roi_flatten",
    "shape_aware_roi_align",
]
