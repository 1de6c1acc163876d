"""Checkpoints of other models turned into ours: functions from state dict to state dict."""

from .adelaidet import adelaidet_blendmask, adelaidet_unused, is_adelaidet_blendmask
from .mask_rcnn import is_plain_mask_rcnn, mask_rcnn_to_mr_rcnn, refining_module

__all__ = [
    "adelaidet_blendmask",
    "adelaidet_unused",
    "is_adelaidet_blendmask",
    "is_plain_mask_rcnn",
    "mask_rcnn_to_mr_rcnn",
    "refining_module",
]
