"""ResNet with deformable convolutions in some blocks of a stage only."""

from typing import Any

from mmcv.cnn import build_conv_layer
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmdet.utils import OptConfigType
from torch import nn


@MODELS.register_module()
class IntervalResNet(ResNet):
    """ResNet of which every third block is deformable, the first of a stage included ("dcni3").

    Args:
        dcn_interval: Blocks from one deformable one to the next.
        **kwargs: Of :class:`ResNet`; ``dcn`` and ``stage_with_dcn`` tell which kind and in which
            stages. Of depth 50 or more, as in mmdet.
    """

    def __init__(self, *, dcn_interval: int = 3, **kwargs: Any) -> None:
        self.dcn_interval = dcn_interval
        super().__init__(**kwargs)

    def make_res_layer(self, dcn: OptConfigType = None, **kwargs: Any) -> nn.Sequential:
        """Build a stage; mmdet's way, with every block deformable, needs ``dcn_interval=1``."""
        stage = super().make_res_layer(dcn=None, **kwargs)
        if dcn is None:
            return stage
        cfg = {key: value for key, value in dcn.items() if key != "fallback_on_stride"}
        for block in list(stage)[:: self.dcn_interval]:
            plain = block.conv2
            block.conv2 = build_conv_layer(
                cfg,
                plain.in_channels,
                plain.out_channels,
                plain.kernel_size,
                stride=plain.stride,
                padding=plain.padding,
                dilation=plain.dilation,
                bias=False,
            )
        return stage
