"""Deconvolutional pyramid module (section 3.2, Figure 3)."""

from mmengine.model import BaseModule, constant_init, kaiming_init
from torch import Tensor, nn
from torch.nn.functional import relu


class DeconvPyramid(BaseModule):
    """Up twice, then down twice, with features of equal size added.

    From 14 x 14: two deconvolutions of stride 2 give 28 and 56, two convolutions of stride 2 lead
    back, and the sums are taken at 28 and at 14. Kernels are those of the mask branch: 2 x 2 to go
    up, 3 x 3 otherwise. The last convolution has no ReLU and starts at zero (ours): a model that
    starts from a trained Mask R-CNN starts out as that Mask R-CNN.

    Args:
        channels: C, of the input, the output and all between (256 in the paper).
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.ConvTranspose2d(channels, channels, 2, 2) for _ in range(2))
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(2))
        constant_init(self.down[-1], 0)

    def init_weights(self) -> None:
        super().init_weights()
        for layer in (*self.up, *self.down):
            kaiming_init(layer)
        constant_init(self.down[-1], 0)

    def forward(self, x: Tensor) -> Tensor:
        """(K, C, S, S) -> (K, C, S, S)."""
        fine = relu(self.up[0](x))
        finest = relu(self.up[1](fine))
        fine = fine + relu(self.down[0](finest))
        return x + self.down[1](fine)
