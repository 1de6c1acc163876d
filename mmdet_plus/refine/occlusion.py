"""Who lies on top, learnt from panoptic ground truth: pairs of instances, targets, the network.

Shape letters: K instances of an image, P ordered pairs (i, j) of them, C_ins classes, S x S
features of a RoI (14 x 14), h x w a canvas.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmdet_plus.panoptic_fusion import overlapping

# Pairs at a time whose shared pixels are counted, or that the network reads.
_CHUNK = 64


def overlapping_pairs(masks: Tensor, threshold: float = 0.2) -> Tensor:
    """Ordered pairs of instances that overlap by more than ``threshold`` of the smaller area.

    Args:
        masks: (K, h, w) bool.
        threshold: In [0, 1).

    Returns:
        (P, 2) places; with (i, j) there is (j, i).
    """
    return overlapping(masks, threshold).nonzero()


def occlusion_targets(masks: Tensor, owners: Tensor, canvas: Tensor, pairs: Tensor) -> Tensor:
    """Of the pixels in both masks, which of the two owns more in the ground truth.

    Args:
        masks: (K, h, w) bool, predicted.
        owners: (K,) the ground-truth segment that each instance stands for, 0 for none.
        canvas: (h, w) segment that owns a pixel, 0 for none, whole numbers.
        pairs: (P, 2).

    Returns:
        (P,): 1 where i owns more, 0 where j does, -1 where both own equally much (nothing, mostly)
        or stand for the same segment, or one of them stands for none.
    """
    first, second = owners[pairs[:, 0]], owners[pairs[:, 1]]
    shared = masks[pairs[:, 0]] & masks[pairs[:, 1]]
    owned = [
        (shared & (canvas == segment[:, None, None])).flatten(1).sum(1)
        for segment in (first, second)
    ]
    targets = (owned[0] > owned[1]).long()
    usable = (owned[0] != owned[1]) & (first != second) & (first > 0) & (second > 0)
    return targets.masked_fill(~usable, -1)


def labelled_pairs(
    masks: Tensor, owners: Tensor, canvas: Tensor, threshold: float = 0.2
) -> tuple[Tensor, Tensor]:
    """The pairs that overlap and whose order the ground truth tells.

    Args:
        masks: (K, h, w) bool, predicted.
        owners: See :func:`occlusion_targets`.
        canvas: See there.
        threshold: See :func:`overlapping_pairs`.

    Returns:
        (P, 2) places, and (P,) targets of 0 and 1.
    """
    pairs = overlapping_pairs(masks, threshold)
    first, second = owners[pairs].unbind(1)
    pairs = pairs[(first > 0) & (second > 0) & (first != second)]
    targets = [occlusion_targets(masks, owners, canvas, part) for part in pairs.split(_CHUNK)]
    targets = torch.cat([owners[:0].long(), *targets])
    return pairs[targets >= 0], targets[targets >= 0]


class Priors(NamedTuple):
    """What the network knows of the instances of an image.

    Attributes:
        masks: (K, M, M) in [0, 1], the part of each cell of the instance's box that its mask fills.
        features: (K, D, S, S) of the same boxes; None where the network does not read them.
        labels: (K,).
    """

    masks: Tensor
    features: Tensor | None
    labels: Tensor


class OcclusionNetwork(BaseModule):
    """The strong baseline's network: O(i, j), how likely i lies on top within i and j.

    The masks, features and class embeddings of both instances are concatenated, i first; three
    3 x 3 convolutions, one of stride 2, a fully connected layer and one number follow. The first
    convolution is linear in what it reads, so its half of i and its half of j are computed once an
    instance and added for each pair.

    Args:
        num_classes: C_ins.
        channels: D, of the RoI features.
        use_masks: The shape prior (Table 6).
        use_features: The appearance prior.
        use_labels: The class prior.
        conv_channels: Of the convolutions.
        fc_channels: Of the fully connected layer.
        embedding: Length of a class's embedding (ours).
        roi_size: S.

    Raises:
        ValueError: All priors are off.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int = 256,
        *,
        use_masks: bool = True,
        use_features: bool = True,
        use_labels: bool = True,
        conv_channels: int = 512,
        fc_channels: int = 1024,
        embedding: int = 32,
        roi_size: int = 14,
    ) -> None:
        super().__init__()
        if not (use_masks or use_features or use_labels):
            raise ValueError("an occlusion network needs a prior: masks, features or labels")
        self.use_masks, self.use_features, self.use_labels = use_masks, use_features, use_labels
        self.roi_size = roi_size
        self.embedding = nn.Embedding(num_classes, embedding) if use_labels else None
        inputs = use_masks + use_features * channels + use_labels * embedding
        # Without bias of its own in the second half: the sum needs one.
        self.first = nn.Conv2d(inputs, conv_channels, 3, padding=1)
        self.second = nn.Conv2d(inputs, conv_channels, 3, padding=1, bias=False)
        self.convs = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(conv_channels, conv_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(conv_channels, conv_channels, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(conv_channels, conv_channels, 3, stride=2, padding=1),
            nn.ReLU(),
        )
        side = (roi_size + 1) // 2
        self.fc = nn.Linear(conv_channels * side**2, fc_channels)
        self.fc_occlusion = nn.Linear(fc_channels, 1)

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for half in (self.first, self.second):
            # Their sum is one convolution of both.
            half.weight.data *= 0.5**0.5
        nn.init.xavier_uniform_(self.fc.weight)
        nn.init.zeros_(self.fc.bias)
        # Nobody on top of anybody, at first.
        nn.init.normal_(self.fc_occlusion.weight, std=0.01)
        nn.init.zeros_(self.fc_occlusion.bias)

    def read(self, priors: Priors) -> Tensor:
        """What the network sees of each instance, (K, inputs, S, S)."""
        parts = []
        size = (self.roi_size, self.roi_size)
        if self.use_masks:
            parts.append(F.adaptive_avg_pool2d(priors.masks[:, None], size))
        if self.use_features:
            parts.append(priors.features)
        if self.use_labels:
            embedded = self.embedding(priors.labels)
            parts.append(embedded[:, :, None, None].expand(-1, -1, *size))
        return torch.cat(parts, 1)

    def forward(self, priors: Priors, pairs: Tensor, chunk: int = _CHUNK) -> Tensor:
        """Compute the logits of O for pairs.

        Args:
            priors: Of the instances.
            pairs: (P, 2) places.
            chunk: Pairs at a time.

        Returns:
            (P,) logits.
        """
        # Who overlaps with nobody is not looked at.
        present, pairs = pairs.unique(return_inverse=True)
        seen = self.read(Priors(*(None if prior is None else prior[present] for prior in priors)))
        front, back = self.first(seen), self.second(seen)
        logits = [
            self.fc_occlusion(
                F.relu(self.fc(self.convs(front[part[:, 0]] + back[part[:, 1]]).flatten(1)))
            )[:, 0]
            for part in pairs.split(chunk)
        ]
        return torch.cat(logits) if logits else front.new_zeros(0)


def occlusion_matrix(pairs: Tensor, logits: Tensor, count: int) -> Tensor:
    """O (K, K) in [0, 1] from the logits (P,) of pairs (P, 2); 0 where a pair does not overlap."""
    matrix = logits.new_zeros(count, count, dtype=torch.float32)
    matrix[pairs[:, 0], pairs[:, 1]] = logits.sigmoid().float()
    return matrix
