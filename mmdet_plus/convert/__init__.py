"""Checkpoints of other models turned into ours: functions from state dict to state dict."""

from .mask_rcnn import is_plain_mask_rcnn, mask_rcnn_to_mr_rcnn, refining_module

__all__ = ["is_plain_mask_rcnn", "mask_rcnn_to_mr_rcnn", "refining_module"]
