"""The occlusion head: the network beside a two-stage panoptic model, in training and at test.

Shape letters: K instances of an image, G things of its ground truth, P pairs of instances, H x W
the image they lie in.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmcv.ops import roi_align
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample, SampleList
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import ConfigType, InstanceList
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from mmplus_ops import mask_intersections

from .occlusion import (
    OcclusionNetwork,
    Priors,
    occlusion_matrix,
    occlusion_targets,
    overlapping_pairs,
)

# Masks are read at every fourth pixel: the network sees 14 x 14 of them.
STRIDE = 4
_MASK_SIZE = 28
# Pairs at a time whose shared pixels are counted in the whole image.
_CHUNK = 64


class PairCounts(NamedTuple):
    """Pairs of instances whose order the ground truth tells, and in how many a guess is right.

    Attributes:
        pairs: How many there are, each counted once.
        right: Where the network has the right one on top; a draw is wrong.
        right_by_score: Where the higher score lies on top; of equal ones the first is the higher.
    """

    pairs: int
    right: int
    right_by_score: int


@MODELS.register_module()
class OcclusionHead(BaseModule):
    """Predicts who lies on top of whom, from the instances that a model found.

    Masks are read as they were pasted into the image, so that the head fits any model with masks.

    Args:
        num_classes: Classes of things.
        roi_extractor: Config of the extractor of the RoIs' features.
        overlap_thr: Two instances overlap if they share more than this part of the smaller one.
        score_thr: Instances of lower scores, which no fuser uses, are passed over at test; as the
            fuser's.
        match_iou: In training an instance stands for the ground truth of its class whose mask it
            overlaps most, from this IoU on.
        loss_weight: Of the cross-entropy.
        kwargs: Further ones of :class:`OcclusionNetwork`, the switches of the priors among them.
    """

    def __init__(
        self,
        num_classes: int,
        roi_extractor: ConfigType,
        *,
        overlap_thr: float = 0.2,
        score_thr: float = 0.5,
        match_iou: float = 0.5,
        loss_weight: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__()
        self.roi_extractor = MODELS.build(roi_extractor)
        self.network = OcclusionNetwork(
            num_classes, channels=self.roi_extractor.out_channels, **kwargs
        )
        self.overlap_thr = overlap_thr
        self.score_thr = score_thr
        self.match_iou = match_iou
        self.loss_weight = loss_weight

    def loss(
        self, x: tuple[Tensor, ...], results_list: InstanceList, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Learn from the overlaps of what was found in a batch.

        Args:
            x: Feature maps.
            results_list: Per image, what the model finds, in pixels of the network's input:
                ``bboxes`` (K, 4), ``labels`` (K,), ``masks`` (K, H, W) bool.
            batch_data_samples: ``gt_instances`` with ``labels``, and ``masks`` that do not overlap.

        Returns:
            ``loss_occlusion``, and ``acc_occlusion``, the percentage of pairs that are right (100
            where there is none).
        """
        logits, targets = [], []
        for i, (results, sample) in enumerate(zip(results_list, batch_data_samples, strict=True)):
            if len(results) < 2:
                continue
            masks, segments = found_and_true_masks(results, sample)
            pairs = overlapping_pairs(masks, self.overlap_thr)
            owners = match(
                masks, results.labels, segments, sample.gt_instances.labels, self.match_iou
            )
            target = occlusion_targets(masks, owners, ownership(segments), pairs)
            usable = target >= 0
            pairs, target = pairs[usable], target[usable]
            if len(pairs):
                logits.append(self.network(self.priors(x, i, results, results.bboxes), pairs))
                targets.append(target)
        if not targets:
            # Every parameter takes part, as distributed training needs.
            nothing = sum(parameter.sum() for parameter in self.parameters()) * 0
            return dict(loss_occlusion=nothing, acc_occlusion=nothing.detach() + 100)
        found, wanted = torch.cat(logits), torch.cat(targets)
        loss = F.binary_cross_entropy_with_logits(found.float(), wanted.float())
        accuracy = 100 * ((found > 0) == wanted.bool()).float().mean()
        return dict(loss_occlusion=self.loss_weight * loss, acc_occlusion=accuracy)

    @torch.no_grad()
    def predict(
        self, x: tuple[Tensor, ...], results_list: InstanceList, scales: list[Tensor]
    ) -> InstanceList:
        """Give each image's instances their ``occlusion`` (K, K).

        Args:
            x: Feature maps.
            results_list: Per image, ``bboxes``, ``scores``, ``labels`` and ``masks`` (K, H, W).
            scales: Per image, (4,), what their boxes are multiplied with to be in pixels of the
                network's input.

        Returns:
            The results; pairs that do not overlap, or of too low scores, have 0.
        """
        for i, (results, scale) in enumerate(zip(results_list, scales, strict=True)):
            kept = (results.scores >= self.score_thr).nonzero()[:, 0]
            chosen = results[kept]
            pairs = overlapping_pairs(chosen.masks, self.overlap_thr)
            matrix = results.scores.new_zeros(len(results), len(results), dtype=torch.float32)
            if len(pairs):
                logits = self.network(self.priors(x, i, chosen, chosen.bboxes * scale), pairs)
                matrix[kept[:, None], kept] = occlusion_matrix(pairs, logits, len(kept))
            results.occlusion = matrix
        return results_list

    def pair_accuracy(
        self, results: InstanceData, segments: Tensor, segment_labels: Tensor
    ) -> PairCounts:
        """Judge the predicted order of one image's instances, see :func:`count_right_pairs`.

        Args:
            results: With ``scores``, ``labels``, ``masks`` (K, H, W) and ``occlusion`` (K, K).
            segments: (G, H, W) bool, the things that the ground truth shows, without overlap.
            segment_labels: (G,).

        Returns:
            The counts, over the pairs that :meth:`predict` looked at.
        """
        kept = (results.scores >= self.score_thr).nonzero()[:, 0]
        occlusion = results.occlusion[kept][:, kept]
        return count_right_pairs(
            results[kept], occlusion, segments, segment_labels, self.overlap_thr, self.match_iou
        )

    def priors(
        self, x: tuple[Tensor, ...], image: int, results: InstanceData, boxes: Tensor
    ) -> Priors:
        """What the network knows of one image's instances.

        Args:
            x: Feature maps of the batch.
            image: Which one.
            results: ``bboxes`` and ``masks`` in the same pixels, and ``labels``.
            boxes: The same boxes in pixels of the network's input.
        """
        rois = bbox2roi([boxes])
        rois[:, 0] = image
        features = self.roi_extractor(x[: self.roi_extractor.num_inputs], rois)
        masks = results.masks[:, None, ::STRIDE, ::STRIDE].to(features)
        index = torch.arange(len(masks), device=rois.device)[:, None]
        crops = torch.cat([index.to(rois), results.bboxes.to(rois)], 1)
        masks = roi_align(masks, crops.to(masks), _MASK_SIZE, 1 / STRIDE, 0, "avg", True)
        return Priors(masks[:, 0], features, results.labels)


@torch.no_grad()
def count_right_pairs(
    results: InstanceData,
    occlusion: Tensor,
    segments: Tensor,
    segment_labels: Tensor,
    overlap_thr: float,
    match_iou: float,
) -> PairCounts:
    """Judge an order of one image's instances by its ground truth.

    Only pairs count that overlap, that stand for different things of the ground truth (as
    :func:`match` finds them), and of which one owns more of the pixels in both masks.

    Args:
        results: With ``scores``, ``labels`` and ``masks`` (K, H, W).
        occlusion: (K, K), i lies upon j where it is larger than its transpose.
        segments: (G, H, W) bool, the things that the ground truth shows, without overlap.
        segment_labels: (G,).
        overlap_thr: Of :func:`overlapping_pairs`.
        match_iou: Of :func:`match`.

    Returns:
        The counts.
    """
    masks = results.masks.bool()
    owners = match(masks, results.labels, segments, segment_labels, match_iou)
    canvas = ownership(segments)
    pairs = overlapping_pairs(masks, overlap_thr)
    # Of both orders of a pair, the right one alone is looked at.
    in_front = [
        part[occlusion_targets(masks, owners, canvas, part) == 1] for part in pairs.split(_CHUNK)
    ]
    front, back = torch.cat([pairs[:0], *in_front]).unbind(1)
    place = results.scores.argsort(descending=True, stable=True).argsort()
    right = occlusion[front, back] > occlusion[back, front]
    return PairCounts(len(front), int(right.sum()), int((place[front] < place[back]).sum()))


def found_and_true_masks(results: InstanceData, sample: DetDataSample) -> tuple[Tensor, Tensor]:
    """The masks of an image, at every fourth pixel of the network's input.

    Args:
        results: What the model finds: ``masks`` (K, H, W) bool.
        sample: With ``gt_instances.masks``.

    Returns:
        (K, h, w) and (G, h, w), bool.
    """
    masks = results.masks[:, ::STRIDE, ::STRIDE]
    segments = sample.gt_instances.masks.to_tensor(torch.bool, masks.device)
    segments = segments[:, ::STRIDE, ::STRIDE]
    # After a crop mmdet pastes masks into the uncropped size.
    rows, cols = map(min, masks.shape[1:], segments.shape[1:])
    return masks[:, :rows, :cols], segments[:, :rows, :cols]


def match(
    masks: Tensor, labels: Tensor, segments: Tensor, segment_labels: Tensor, least_iou: float
) -> Tensor:
    """Find the ground truth that each instance stands for.

    Args:
        masks: (K, h, w) bool.
        labels: (K,).
        segments: (G, h, w) bool, of the ground truth.
        segment_labels: (G,).
        least_iou: From this IoU on.

    Returns:
        (K,): 0 for none, g + 1 for the segment g of the same class and the largest IoU.
    """
    if not len(masks) or not len(segments):
        return labels.new_zeros(len(masks))
    areas = mask_intersections(torch.cat([masks, segments]))
    shared, own = areas[: len(masks), len(masks) :], areas.diagonal()
    iou = shared / (own[: len(masks), None] + own[None, len(masks) :] - shared).clamp(min=1)
    iou = iou.masked_fill(labels[:, None] != segment_labels[None], 0)
    best, place = iou.max(1)
    return (place + 1).masked_fill(best < least_iou, 0)


def ownership(segments: Tensor) -> Tensor:
    """The segment of each pixel, (G, h, w) bool -> (h, w) int64: g + 1, or 0 for none."""
    canvas = segments.new_zeros(segments.shape[1:], dtype=torch.long)
    for number, segment in enumerate(segments, 1):
        canvas[segment] = number
    return canvas
