"""Instance masks and a semantic map made into one panoptic map."""

from .heuristic import fuse_heuristic

__all__ = ["fuse_heuristic"]
