"""Boundary refinement (section 3.3): a residual that sharpens mask logits.

Shape letters: K RoIs, C channels of the logits (classes), M x M mask.
"""

import torch
from mmengine.model import BaseModule, constant_init, kaiming_init
from torch import Tensor, nn


class _Norm(nn.BatchNorm2d):
    """Batch normalisation that lets a batch of no RoI pass, without learning from it."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x):
            return super().forward(x)
        return x * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)


class DenseModule(nn.Sequential):
    """The six layers of section 4.6, in their order; ``in_channels`` -> 4 channels."""

    growth = 4

    def __init__(self, in_channels: int, filters: int = 16) -> None:
        super().__init__(
            _Norm(in_channels),
            nn.PReLU(),
            nn.Conv2d(in_channels, filters, 3, padding=1),
            _Norm(filters),
            nn.PReLU(),
            nn.Conv2d(filters, self.growth, 3, padding=1),
        )


class ImprovedBoundaryRefinement(BaseModule):
    """Convolutional modules with dense connections (Figure 4).

    Each module reads the logits and the outputs of all modules before it. A 1 x 1 convolution of
    all of these gives the residual; it starts at zero (ours), so that nothing changes before
    training.

    Args:
        channels: C.
        num_modules: Number of dense modules.
    """

    def __init__(self, channels: int, num_modules: int = 4) -> None:
        super().__init__()
        self.dense_modules = nn.ModuleList(
            DenseModule(channels + i * DenseModule.growth) for i in range(num_modules)
        )
        self.residual = nn.Conv2d(channels + num_modules * DenseModule.growth, channels, 1)
        # Here too, for models that load weights without init_weights.
        constant_init(self.residual, 0)

    def init_weights(self) -> None:
        super().init_weights()
        for layer in self.dense_modules.modules():
            if isinstance(layer, nn.Conv2d):
                kaiming_init(layer)
        constant_init(self.residual, 0)

    def forward(self, logits: Tensor) -> Tensor:
        """(K, C, M, M) -> (K, C, M, M)."""
        features = logits
        for module in self.dense_modules:
            features = torch.cat([features, module(features)], 1)
        return logits + self.residual(features)


class GCNBoundaryRefinement(BaseModule):
    """The residual block of Peng et al. (2017), with which Table 3 compares.

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        # Nothing changes before training (ours).
        constant_init(self.convs[-1], 0)

    def init_weights(self) -> None:
        super().init_weights()
        kaiming_init(self.convs[0])
        constant_init(self.convs[-1], 0)

    def forward(self, logits: Tensor) -> Tensor:
        """(K, C, M, M) -> (K, C, M, M)."""
        return logits + self.convs(logits)


KINDS = {"improved": ImprovedBoundaryRefinement, "gcn": GCNBoundaryRefinement}


def build_boundary_refinement(kind: str, channels: int) -> BaseModule:
    """The refinement of that name.

    Args:
        kind: 'improved' or 'gcn'.
        channels: C.

    Raises:
        ValueError: There is none of that name.
    """
    if kind not in KINDS:
        raise ValueError(f"boundary_refinement must be one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](channels)
