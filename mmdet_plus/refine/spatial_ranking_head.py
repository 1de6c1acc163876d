"""OANet's Spatial Ranking Module (Liu et al., CVPR 2019), one of REFINE's rivals in Table 5.

Shape letters: K instances of an image, C_ins classes, H x W the image, h x w a canvas.
"""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .occlusion_head import (
    STRIDE,
    PairCounts,
    count_right_pairs,
    found_and_true_masks,
    listed_pairs,
    ownership,
    true_pairs,
)


class LargeKernelConv(BaseModule):
    """A k x k convolution made of k x 1 and 1 x k ones in either order, which are added.

    Args:
        in_channels: Of what it reads.
        channels: Between the two.
        out_channels: Of what it gives.
        kernel_size: k, odd.
    """

    def __init__(self, in_channels: int, channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        tall, wide = (kernel_size, 1), (1, kernel_size)
        self.paths = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, channels, first, padding=[side // 2 for side in first]),
                nn.Conv2d(channels, out_channels, second, padding=[side // 2 for side in second]),
            )
            for first, second in ((tall, wide), (wide, tall))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, h, w) -> (N, out, h, w)."""
        return self.paths[0](x) + self.paths[1](x)


@MODELS.register_module()
class SpatialRankingHead(BaseModule):
    """Gives every instance a ranking score, from nothing but the masks of all.

    The masks are painted on a canvas with a channel for each class; a large-kernel convolution
    makes of it a map of the class that is on top, trained by cross-entropy; the score of an
    instance is the mean of its class's probability over its mask. It takes the place of an
    :class:`OcclusionHead`. Two instances of a class look alike on the canvas: what tells them
    apart is what lies around.

    Args:
        num_classes: C_ins.
        score_thr: Instances of lower scores, which no fuser uses, are not painted; as the fuser's.
        train_score_thr: The same in training; ``score_thr`` if None.
        channels: Within the convolution (ours).
        kernel_size: Of the convolution (ours; the paper calls it large).
        loss_weight: Of the cross-entropy.
        overlap_thr: As of :class:`OcclusionHead`; it decides which pairs are judged.
        match_iou: As of :class:`OcclusionHead`, for the same.
    """

    #: What it tells of the instances.
    field = "ranking_scores"

    def __init__(
        self,
        num_classes: int,
        *,
        score_thr: float = 0.5,
        train_score_thr: float | None = None,
        channels: int = 128,
        kernel_size: int = 7,
        loss_weight: float = 1.0,
        overlap_thr: float = 0.2,
        match_iou: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.score_thr = score_thr
        self.train_score_thr = score_thr if train_score_thr is None else train_score_thr
        self.loss_weight = loss_weight
        self.overlap_thr = overlap_thr
        self.match_iou = match_iou
        self.conv = LargeKernelConv(num_classes, channels, num_classes, kernel_size)

    def init_weights(self) -> None:
        super().init_weights()
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def paint(self, masks: Tensor, labels: Tensor) -> Tensor:
        """Masks (K, h, w) bool of ``labels`` (K,) -> canvas (C_ins, h, w) of zeros and ones."""
        canvas = torch.zeros(self.num_classes, *masks.shape[1:], device=masks.device)
        return canvas.index_add_(0, labels, masks.float()).clamp_(max=1)

    def loss(
        self, x: tuple[Tensor, ...], results_list: InstanceList, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Learn which class owns the pixels of what was found in a batch.

        Args:
            x: Not used.
            results_list: Per image, what the model finds, in pixels of the network's input:
                ``scores`` and ``labels`` (K,), ``masks`` (K, H, W) bool.
            batch_data_samples: ``gt_instances`` with ``labels``, and ``masks`` that do not overlap.

        Returns:
            ``loss_ranking``, over the pixels that an instance was found on and a thing owns, and
            ``acc_ranking``, the percentage of them that is right (that of guessing where there is
            none).
        """
        logits, targets = [], []
        for results, sample in zip(results_list, batch_data_samples, strict=True):
            chosen = results[results.scores >= self.train_score_thr]
            if not len(chosen) or not len(sample.gt_instances):
                continue
            masks, segments = found_and_true_masks(chosen, sample)
            owner = ownership(segments)
            counts = masks.any(0) & (owner > 0)
            scores = self.conv(self.paint(masks, chosen.labels)[None])[0]
            logits.append(scores[:, counts].T)
            targets.append(sample.gt_instances.labels[owner[counts] - 1])
        if not sum(map(len, targets)):
            # Every parameter takes part, as distributed training needs.
            nothing = sum(parameter.sum() for parameter in self.parameters()) * 0
            chance = 100 / self.num_classes
            return dict(loss_ranking=nothing, acc_ranking=nothing.detach() + chance)
        found, wanted = torch.cat(logits).float(), torch.cat(targets)
        accuracy = 100 * (found.argmax(1) == wanted).float().mean()
        return dict(
            loss_ranking=self.loss_weight * F.cross_entropy(found, wanted), acc_ranking=accuracy
        )

    @torch.no_grad()
    def predict(
        self, x: tuple[Tensor, ...], results_list: InstanceList, scales: list[Tensor]
    ) -> InstanceList:
        """Give each image's instances their ``ranking_scores`` (K,) in [0, 1].

        Args:
            x: Not used.
            results_list: Per image, ``scores``, ``labels`` and ``masks`` (K, H, W).
            scales: Per image, (4,), what their pixels are multiplied with to be those of the
                network's input, which the canvas is a quarter of.

        Returns:
            The results; instances of too low scores, or without a pixel, have 0.
        """
        for results, scale in zip(results_list, scales, strict=True):
            ranking = results.scores.new_zeros(len(results), dtype=torch.float32)
            kept = (results.scores >= self.score_thr).nonzero()[:, 0]
            if len(kept):
                masks = _shrunk(results.masks[kept], (scale[1] / STRIDE, scale[0] / STRIDE))
                labels = results.labels[kept]
                probs = self.conv(self.paint(masks, labels)[None])[0].float().softmax(0)
                areas = masks.flatten(1).sum(1)
                ranking[kept] = (probs[labels] * masks).flatten(1).sum(1) / areas.clamp(min=1)
            results.ranking_scores = ranking
        return results_list

    def pair_accuracy(
        self,
        results: InstanceData,
        segments: Tensor,
        segment_labels: Tensor,
        listed: bool = False,
    ) -> PairCounts:
        """Judge the order of one image's instances, as :meth:`OcclusionHead.pair_accuracy` does.

        Args:
            results: With ``scores``, ``labels``, ``masks`` (K, H, W) and ``ranking_scores`` (K,).
            segments: See there.
            segment_labels: See there.
            listed: See there.

        Returns:
            See there.
        """
        kept = results[results.scores >= self.score_thr]
        ranking = kept.ranking_scores[:, None].expand(-1, len(kept))
        order = listed_pairs if listed else true_pairs
        pairs = order(kept, segments, segment_labels, self.overlap_thr, self.match_iou)
        return count_right_pairs(kept.scores, ranking, pairs)


def _shrunk(masks: Tensor, factors: tuple[Tensor, Tensor]) -> Tensor:
    """Masks (K, H, W) bool at every 1 / factor-th row and column."""
    size = [
        max(1, round(length * float(factor)))
        for length, factor in zip(masks.shape[1:], factors, strict=True)
    ]
    return F.interpolate(masks[:, None].to(torch.uint8), size, mode="nearest")[:, 0].bool()
