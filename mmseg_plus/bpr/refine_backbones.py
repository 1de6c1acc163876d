"""Backbones that also see the coarse mask: one more convolution beside the first one.

Shape legend: B patches, S the side of the network's input in pixels.
"""

import torch
from mmcv.cnn import build_conv_layer
from mmseg.models.backbones import HRNet, MobileNetV2
from mmseg.registry import MODELS
from torch import Tensor, nn


class ImageAndMaskConv(nn.Conv2d):
    """``conv(image) + conv_mask(mask)`` for an image and a mask that come as one tensor.

    Both are linear, so that one convolution with the two kernels side by side does the work of
    both. The parameters stay where published checkpoints have them: the image's here, the mask's in
    ``conv_mask`` of the backbone, which registers it.

    Args:
        conv: The backbone's own first convolution, of the image; its parameters are taken over.
        conv_mask: Of the mask, with the same kernel size, stride, padding and output channels.
    """

    def __init__(self, conv: nn.Conv2d, conv_mask: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            bias=conv.bias is not None,
        )
        self.weight, self.bias = conv.weight, conv.bias
        # In a tuple, so that the module is not registered a second time.
        self._conv_mask = (conv_mask,)

    def forward(self, inputs: Tensor) -> Tensor:
        """Convolve (B, 3 + M, S, S) image and mask."""
        return self._conv_forward(inputs, self._both(), self.bias)

    def _both(self) -> Tensor:
        return torch.cat([self.weight, self._conv_mask[0].weight], dim=1)

    def merged(self) -> nn.Conv2d:
        """An ordinary convolution of all channels that does the same."""
        conv = nn.Conv2d(
            self.in_channels + self._conv_mask[0].in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            bias=self.bias is not None,
        )
        conv.weight = nn.Parameter(self._both().detach().clone())
        if self.bias is not None:
            conv.bias = nn.Parameter(self.bias.detach().clone())
        return conv


def _mask_conv(conv: nn.Conv2d, channels: int, conv_cfg: dict | None) -> nn.Conv2d:
    """A convolution of the mask that fits the one of the image."""
    return build_conv_layer(
        conv_cfg,
        channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,
        stride=conv.stride,
        padding=conv.padding,
        bias=False,
    )


@MODELS.register_module()
class RefineHRNet(HRNet):
    """HRNet over (B, 4, S, S): three normalised image channels and the coarse mask in {-1, 1}.

    Parameter names are those of the authors' checkpoints: HRNet's, and ``conv_mask.weight``.
    Arguments are HRNet's, and ``mask_channels``: the mask's, 1, and those of colour evidence.
    """

    def __init__(self, *args, mask_channels: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.conv_mask = _mask_conv(self.conv1, mask_channels, self.conv_cfg)
        self.conv1 = ImageAndMaskConv(self.conv1, self.conv_mask)


@MODELS.register_module()
class RefineMobileNetV2(MobileNetV2):
    """MobileNetV2 over (B, 4, S, S): three normalised image channels, the coarse mask in {-1, 1}.

    The lighter backbone of the supplement's section C. Arguments are MobileNetV2's, and
    ``mask_channels`` as for :class:`RefineHRNet`.
    """

    def __init__(self, *args, mask_channels: int = 1, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        stem = self.conv1
        self.conv_mask = _mask_conv(stem.conv, mask_channels, self.conv_cfg)
        stem.conv = ImageAndMaskConv(stem.conv, self.conv_mask)
