"""MaskPlus inside MR R-CNN."""

from mmdet.registry import MODELS

from mmdet_plus.maskplus import MaskPlusMixin
from mmdet_plus.mr_rcnn import MaskRefiningRoIHead


@MODELS.register_module()
class MaskPlusMaskRefiningRoIHead(MaskPlusMixin, MaskRefiningRoIHead):
    """MR R-CNN whose vanilla and refining mask branches have the techniques of MaskPlus.

    Arguments are those of :class:`MaskPlusMixin` and :class:`MaskRefiningRoIHead`. F^- is read
    where MR R-CNN reads it, after the convolutions and before the deconvolutional pyramid.
    """
