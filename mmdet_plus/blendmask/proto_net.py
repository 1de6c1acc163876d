"""The bottom module (section 3.1): bases for all instances, from the finest pyramid levels.

Shape letters: N images, C channels, H x W of the finest level, B bases.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmdet.utils import ConfigType, OptMultiConfig
from mmengine.model import BaseModule
from torch import Tensor, nn

_NORM = dict(type="SyncBN", requires_grad=True)
_LOSS = dict(type="CrossEntropyLoss", ignore_index=255, avg_non_ignore=True, loss_weight=0.3)
# The authors': uniform, with the variance 1 / inputs.
_INIT = dict(
    type="Kaiming",
    layer="Conv2d",
    a=1,
    mode="fan_in",
    distribution="uniform",
    nonlinearity="leaky_relu",
)


@MODELS.register_module()
class ProtoNet(BaseModule):
    """YOLACT's ProtoNet as the bottom module, and a semantic head that only training uses.

    Args:
        num_classes: Classes of things, for the semantic head. :class:`BlendMask` fills it in.
        in_channels: C, of every level.
        num_levels: Levels added up, from the finest on.
        feat_channels: Of all hidden convolutions.
        num_convs: Convolutions on the sum, before it is enlarged.
        num_bases: B.
        norm_cfg: After every hidden convolution.
        loss_sem: Loss of the semantic head; its ``ignore_index`` marks pixels of crowds.
        init_cfg: Start of the weights.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 256,
        num_levels: int = 3,
        feat_channels: int = 128,
        num_convs: int = 3,
        num_bases: int = 4,
        norm_cfg: ConfigType = _NORM,
        loss_sem: ConfigType = _LOSS,
        init_cfg: OptMultiConfig = _INIT,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_classes = num_classes
        self.num_bases = num_bases

        def conv(channels: int) -> ConvModule:
            return ConvModule(channels, feat_channels, 3, padding=1, norm_cfg=norm_cfg)

        self.level_convs = nn.ModuleList(conv(in_channels) for _ in range(num_levels))
        self.convs = nn.ModuleList(conv(feat_channels) for _ in range(num_convs))
        # In a list, as those above: a convolution by itself would be initialised mmcv's way.
        self.fine_convs = nn.ModuleList([conv(feat_channels)])
        self.conv_bases = nn.Conv2d(feat_channels, num_bases, 1)
        self.sem_convs = nn.Sequential(conv(in_channels), conv(feat_channels))
        self.conv_sem = nn.Conv2d(feat_channels, num_classes + 1, 1)
        self.loss_sem = MODELS.build(loss_sem)

    def forward(self, x: Sequence[Tensor]) -> Tensor:
        """Compute the bases.

        Args:
            x: Levels from the finest on, each (N, C, H / 2^i, W / 2^i); more than are used do
                no harm.

        Returns:
            (N, B, 2H, 2W) bases: of stride 4, if the finest level has stride 8.
        """
        summed = self.level_convs[0](x[0])
        for conv, level in zip(self.level_convs[1:], x[1:], strict=False):
            summed = summed + _resize(conv(level), summed.shape[-2:])
        for conv in self.convs:
            summed = conv(summed)
        rows, cols = summed.shape[-2:]
        return self.conv_bases(self.fine_convs[0](_resize(summed, (2 * rows, 2 * cols))))

    def semantics(self, x: Sequence[Tensor]) -> Tensor:
        """Tell the classes of the things at each place of the finest level.

        Args:
            x: As for :meth:`forward`.

        Returns:
            (N, classes + 1, H, W) logits; 0 is the background, class c is c + 1.
        """
        return self.conv_sem(self.sem_convs(x[0]))


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)
