"""A head that corrects the coarse mask instead of drawing the mask anew.

Not in the paper, whose logits have a quarter of the input's resolution: drawn anew at that
resolution, a mask loses detail even where nothing was to be mended. Of instances of less than
32 x 32 pixels, whose coarse masks are often nearly perfect, this costs more than refinement gains.

Shape legend: B patches, C channels, S the side of the network's input in pixels.
"""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads import FCNHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn

# Where BoundaryPatchPreProcessor puts the coarse mask.
_MASK = slice(3, 4)


@MODELS.register_module()
class ResidualFCNHead(FCNHead):
    """FCN head whose logits are a correction of the coarse mask.

    The logits of the features, upsampled to S x S, are added to w m for the foreground and to -w m
    for the background, where m in {-1, 1} is the coarse mask and w a learnt weight. FCNHead's last
    convolution starts near zero, so that an untrained network returns the coarse mask.

    Arguments are FCNHead's; ``in_index`` must name the features. The last of the head's inputs must
    be the network's own, (B, C, S, S), with the coarse mask as its fourth channel, as
    :class:`BoundaryPatchRefiner` hands it on.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Sure of five pixels in six.
        self.coarse_weight = nn.Parameter(torch.tensor(0.8))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (B, 2, S, S) of features and the network's input."""
        mask = self.coarse_weight * inputs[-1][:, _MASK]
        logits = super().forward(inputs)
        logits = resize(logits, mask.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        return logits + torch.cat([-mask, mask], dim=1)
