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
    labelled_pairs,
    occlusion_matrix,
    overlapping_pairs,
)

# In training overlaps are counted at every fourth pixel of the network's input.
STRIDE = 4
_MASK_SIZE = 28
_MASKS_AT_A_TIME = 16


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
        train_score_thr: The same in training; ``score_thr`` if None. With a lower one there are
            more pairs to learn from.
        max_pairs: So many pairs of an image are learnt from, drawn at random if there are more.
        match_iou: In training an instance stands for the ground truth of its class whose mask it
            overlaps most, from this IoU on.
        loss_weight: Of the cross-entropy.
        kwargs: Further ones of :class:`OcclusionNetwork`, the switches of the priors among them.
    """

    #: What it tells of the instances.
    field = "occlusion"

    def __init__(
        self,
        num_classes: int,
        roi_extractor: ConfigType,
        *,
        overlap_thr: float = 0.2,
        score_thr: float = 0.5,
        train_score_thr: float | None = None,
        max_pairs: int = 128,
        match_iou: float = 0.5,
        loss_weight: float = 1.0,
        **kwargs,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.roi_extractor = MODELS.build(roi_extractor)
        self.network = OcclusionNetwork(
            num_classes, channels=self.roi_extractor.out_channels, **kwargs
        )
        self.overlap_thr = overlap_thr
        self.score_thr = score_thr
        self.train_score_thr = score_thr if train_score_thr is None else train_score_thr
        self.max_pairs = max_pairs
        self.match_iou = match_iou
        self.loss_weight = loss_weight

    def loss(
        self, x: tuple[Tensor, ...], results_list: InstanceList, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Learn from the overlaps of what was found in a batch.

        Args:
            x: Feature maps.
            results_list: Per image, what the model finds, in pixels of the network's input:
                ``bboxes`` (K, 4), ``scores`` and ``labels`` (K,), ``masks`` (K, H, W) bool.
            batch_data_samples: ``gt_instances`` with ``labels``, and ``masks`` that do not overlap.

        Returns:
            ``loss_occlusion``, and ``acc_occlusion``, the percentage of pairs that are right (a
            coin's 50 where there is none).
        """
        logits, targets = [], []
        for i, (results, sample) in enumerate(zip(results_list, batch_data_samples, strict=True)):
            chosen = results[results.scores >= self.train_score_thr]
            if len(chosen) < 2:
                continue
            masks, segments = found_and_true_masks(chosen, sample)
            owners = match(
                masks, chosen.labels, segments, sample.gt_instances.labels, self.match_iou
            )
            pairs, target = labelled_pairs(masks, owners, ownership(segments), self.overlap_thr)
            if len(pairs) > self.max_pairs:
                taken = torch.randperm(len(pairs))[: self.max_pairs].to(pairs.device)
                pairs, target = pairs[taken], target[taken]
            if len(pairs):
                logits.append(self.network(self.priors(x, i, chosen, chosen.bboxes), pairs))
                targets.append(target)
        if not targets:
            # Every parameter takes part, as distributed training needs.
            nothing = sum(parameter.sum() for parameter in self.parameters()) * 0
            return dict(loss_occlusion=nothing, acc_occlusion=nothing.detach() + 50)
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
        self,
        results: InstanceData,
        segments: Tensor,
        segment_labels: Tensor,
        listed: bool = False,
    ) -> PairCounts:
        """Judge the predicted order of one image's instances, see :func:`count_right_pairs`.

        Args:
            results: With ``scores``, ``labels``, ``masks`` (K, H, W) and ``occlusion`` (K, K).
            segments: (G, H, W) bool, the things that the ground truth shows, without overlap.
            segment_labels: (G,).
            listed: Judge by the order of ``segments``, the first on top, see :func:`listed_pairs`;
                by the pixels otherwise, see :func:`true_pairs`.

        Returns:
            The counts, over the pairs that :meth:`predict` looked at.
        """
        kept = (results.scores >= self.score_thr).nonzero()[:, 0]
        chosen = results[kept]
        order = listed_pairs if listed else true_pairs
        pairs = order(chosen, segments, segment_labels, self.overlap_thr, self.match_iou)
        return count_right_pairs(chosen.scores, results.occlusion[kept][:, kept], pairs)

    @torch.no_grad()
    def true_occlusion(
        self, results: InstanceData, segments: Tensor, segment_labels: Tensor
    ) -> Tensor:
        """What a network without a fault would say of the pairs that :meth:`pair_accuracy` judges.

        Args:
            results: With ``scores``, ``labels`` and ``masks`` (K, H, W).
            segments: See there.
            segment_labels: See there.

        Returns:
            (K, K) float32: 1 where i lies upon j, 0 where j lies upon i, 0.5 where the ground truth
            does not tell.
        """
        pairs = true_pairs(results, segments, segment_labels, self.overlap_thr, self.match_iou)
        occlusion = results.scores.new_full((len(results),) * 2, 0.5, dtype=torch.float32)
        front, back = pairs.unbind(1)
        occlusion[front, back], occlusion[back, front] = 1, 0
        return occlusion

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
        features = None
        if self.network.use_features:
            rois = bbox2roi([boxes])
            rois[:, 0] = image
            features = self.roi_extractor(x[: self.roi_extractor.num_inputs], rois)
        return Priors(mask_crops(results.masks, results.bboxes), features, results.labels)


def mask_crops(masks: Tensor, boxes: Tensor) -> Tensor:
    """Masks over their boxes, the same at any resolution of the image.

    Args:
        masks: (K, H, W) bool.
        boxes: (K, 4) in their pixels.

    Returns:
        (K, 28, 28) in [0, 1], the part of each cell that the mask fills.
    """
    crops = [masks.new_zeros(0, _MASK_SIZE, _MASK_SIZE, dtype=torch.float32)]
    for start in range(0, len(masks), _MASKS_AT_A_TIME):
        some = slice(start, start + _MASKS_AT_A_TIME)
        # In full precision: half of it would move boxes by whole pixels.
        rois = bbox2roi([box[None] for box in boxes[some].float()])
        planes = masks[some, None].float()
        crops.append(roi_align(planes, rois, _MASK_SIZE, 1.0, 0, "avg", True)[:, 0])
    return torch.cat(crops)


def count_right_pairs(scores: Tensor, occlusion: Tensor, pairs: Tensor) -> PairCounts:
    """Judge an order of one image's instances.

    Args:
        scores: (K,).
        occlusion: (K, K), i lies upon j where it is larger than its transpose.
        pairs: (P, 2) places, that on top first.

    Returns:
        The counts.
    """
    front, back = pairs.unbind(1)
    place = scores.argsort(descending=True, stable=True).argsort()
    right = occlusion[front, back] > occlusion[back, front]
    return PairCounts(len(front), int(right.sum()), int((place[front] < place[back]).sum()))


def true_pairs(
    results: InstanceData,
    segments: Tensor,
    segment_labels: Tensor,
    overlap_thr: float,
    match_iou: float,
) -> Tensor:
    """Order the pairs of one image's instances as its ground truth does.

    Only those that overlap, that stand for different things of the ground truth (as :func:`match`
    finds them), and of which one owns more of the pixels in both masks.

    Args:
        results: With ``labels`` and ``masks`` (K, H, W).
        segments: (G, H, W) bool, the things that the ground truth shows, without overlap.
        segment_labels: (G,).
        overlap_thr: Of :func:`overlapping_pairs`.
        match_iou: Of :func:`match`.

    Returns:
        (P, 2) places, that on top first; each pair once.
    """
    masks = results.masks.bool()
    owners = match(masks, results.labels, segments, segment_labels, match_iou)
    pairs, targets = labelled_pairs(masks, owners, ownership(segments), overlap_thr)
    return pairs[targets == 1]


def listed_pairs(
    results: InstanceData,
    segments: Tensor,
    segment_labels: Tensor,
    overlap_thr: float,
    match_iou: float,
) -> Tensor:
    """Order the pairs of one image's instances as ground truth that lists its things top first.

    Those that overlap and stand for different things, also where the pixels in both masks do not
    tell. Arguments and result are those of :func:`true_pairs`.
    """
    masks = results.masks.bool()
    place = match(masks, results.labels, segments, segment_labels, match_iou)
    pairs = overlapping_pairs(masks, overlap_thr)
    front, back = place[pairs].unbind(1)
    return pairs[(front > 0) & (back > front)]


def found_and_true_masks(results: InstanceData, sample: DetDataSample) -> tuple[Tensor, Tensor]:
    """The masks of an image, at every fourth pixel of the network's input.

    Args:
        results: What the model finds: ``masks`` (K, H, W) bool.
        sample: With ``gt_instances.masks``.

    Returns:
        (K, h, w) and (G, h, w), bool.
    """
    masks = results.masks[:, ::STRIDE, ::STRIDE]
    segments = sample.gt_instances.masks.to_ndarray()[:, ::STRIDE, ::STRIDE]
    segments = torch.from_numpy(segments.astype(bool)).to(masks.device)
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
