"""Pictures of masks and of panoptic maps, side by side."""

from .panoptic_map import draw_panoptic, pale_colours
from .side_by_side import (
    UNMATCHED,
    distinct_colours,
    draw_masks,
    encode_png,
    match_masks,
    picture_grid,
    write_png,
)

__all__ = [
    "UNMATCHED",
    "distinct_colours",
    "draw_masks",
    "draw_panoptic",
    "encode_png",
    "match_masks",
    "pale_colours",
    "picture_grid",
    "write_png",
]
