"""Pictures of masks, side by side."""

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
    "encode_png",
    "match_masks",
    "picture_grid",
    "write_png",
]
