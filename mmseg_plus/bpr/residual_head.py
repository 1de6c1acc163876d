"""A head that corrects the coarse mask instead of drawing the mask anew.

Not in the paper: its network has a hundred and sixty thousand iterations to learn that the coarse
mask is mostly right. With this head a network starts from there, and a few thousand are enough.

Shape legend: B patches, S the side of the network's input in pixels.
"""

from collections.abc import Sequence

import torch
from mmseg.models.decode_heads import FCNHead
from mmseg.models.utils import resize
from mmseg.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class ResidualFCNHead(FCNHead):
    """FCN head whose logits are a correction of the coarse mask.

    The logits of the features, upsampled to S x S, are added to w m for the foreground and to -w m
    for the background, where m in {-1, 1} is the coarse mask and w a learnt weight. FCNHead's last
    convolution starts near zero, so that an untrained network returns the coarse mask.

    Arguments are FCNHead's. The last of the head's inputs must be the network's own, (B, 4, S, S).
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        # Sure of 96 pixels in 100, about what a coarse patch has right.
        self.coarse_weight = nn.Parameter(torch.tensor(1.6))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (B, 2, S, S) of features and the network's input."""
        mask = self.coarse_weight * inputs[-1][:, 3:]
        logits = resize(
            super().forward(inputs), mask.shape[-2:], mode="bilinear", align_corners=False
        )
        return logits + torch.cat([-mask, mask], dim=1)
