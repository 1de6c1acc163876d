"""The RoI head of MR R-CNN: a vanilla Mask R-CNN head, and the refining module after it.

    RoIs -> vanilla box head -> B -> vanilla mask head -> P of the guidance class
         -> Shape-aware RoIAlign(B, F, P) -> refining box head -> B^r
         -> RoIAlign(B^r, F) + F^- -> refining mask head -> P^r

Training takes this way for every sampled RoI, with ground truth assigned anew to B; testing takes
it for candidates, pairs of a RoI and a class.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.samplers import PseudoSampler, SamplingResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi, scale_boxes
from mmdet.utils import ConfigType, InstanceList
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .guidance import (
    average_scores,
    class_probability,
    conv_features,
    guidance_classes,
    inherited_assignment,
    mask_logits,
    select_candidates,
    select_detections,
)

Features = tuple[Tensor, ...]

# What is refined at test unless test_cfg says otherwise; the paper is silent.
CANDIDATES = {
    "score_thr": 0.05,
    "nms": {"type": "nms", "iou_threshold": 0.7},
    "max_per_img": 200,
}


@MODELS.register_module()
class MaskRefiningRoIHead(StandardRoIHead):
    """Vanilla box and mask head, refined under the guidance of the mask (section 3.3).

    Args:
        refining_bbox_roi_extractor: Changes to the config of the extractor of F_{B,P}, which is
            :class:`ShapeAwareRoIExtractor` with the settings of ``bbox_roi_extractor``.
        refining_bbox_head: Changes to the config of the refining box head, which is that of
            ``bbox_head``; see :func:`changed`.
        refining_mask_head: Likewise for the refining mask head and ``mask_head``.
        shape_aware: Whether P guides the refining box head (Table 3: SARA). False gives it the
            features of plain RoIAlign.
        refine_cls: Whether refined scores count at test (Table 4: CLS). False: S = S^b.
        refine_reg: Whether boxes are refined at test (Table 4: REG). False: B^r = B.
        alpha: Weight, 0 or more, of the refined logits against the vanilla ones at test (Table 5).
        refine_assign: Targets of the refining heads: 'reassign' assigns ground truth to B with
            the assigner of ``train_cfg``, 'inherit' keeps what the RoI had. The paper is silent.
        detach_guidance: Whether the gradient stops at P. The paper is silent.
        kwargs: Those of ``StandardRoIHead``; a box and a mask head are needed. Its ``test_cfg``
            may have one more field, ``candidates``: ``score_thr``, ``nms`` and ``max_per_img`` of
            the pairs of RoI and class that are refined; ``CANDIDATES`` stands for those left out.

    Raises:
        ValueError: A head is missing or of a kind that has no mask of a class or no score of its
            own for each class, a shared head is given, ``alpha`` is negative, or
            ``refine_assign`` is neither.
    """

    def __init__(
        self,
        refining_bbox_roi_extractor: ConfigType | None = None,
        refining_bbox_head: ConfigType | None = None,
        refining_mask_head: ConfigType | None = None,
        *,
        shape_aware: bool = True,
        refine_cls: bool = True,
        refine_reg: bool = True,
        alpha: float = 1.0,
        refine_assign: Literal["reassign", "inherit"] = "reassign",
        detach_guidance: bool = True,
        **kwargs,
    ) -> None:
        if kwargs.get("bbox_head") is None or kwargs.get("mask_head") is None:
            raise ValueError("MaskRefiningRoIHead refines a box and a mask head: give both")
        if kwargs.get("shared_head") is not None:
            raise ValueError("MaskRefiningRoIHead reads a feature pyramid, without a shared_head")
        if refine_assign not in ("reassign", "inherit"):
            raise ValueError(f"refine_assign must be 'reassign' or 'inherit', got {refine_assign}")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"alpha weighs logits: it must be 0 or more, got {alpha}")
        # Taken before the vanilla heads are built: building may change the configs it is given.
        refining_extractor = changed(
            {**kwargs["bbox_roi_extractor"], "type": "ShapeAwareRoIExtractor"},
            refining_bbox_roi_extractor,
        )
        refining_box = changed(kwargs["bbox_head"], refining_bbox_head)
        refining_mask = changed(kwargs["mask_head"], refining_mask_head)
        super().__init__(**kwargs)
        self.refining_bbox_roi_extractor = MODELS.build(refining_extractor)
        self.refining_bbox_head = MODELS.build(refining_box)
        self.refining_mask_head = MODELS.build(refining_mask)
        self._check_heads()
        self.fusion = nn.Conv2d(
            self.mask_head.conv_out_channels, self.refining_mask_head.in_channels, kernel_size=1
        )
        # From zero on, a refining mask head that starts as the trained mask head also acts as it.
        nn.init.zeros_(self.fusion.weight)
        nn.init.zeros_(self.fusion.bias)
        self.shape_aware = shape_aware
        self.refine_cls = refine_cls
        self.refine_reg = refine_reg
        self.alpha = alpha
        self.refine_assign = refine_assign
        self.detach_guidance = detach_guidance

    def _check_heads(self) -> None:
        """Raise for heads that the module could be built on, but would read wrongly."""
        kind = type(self.mask_head)
        plain = getattr(kind, "forward", None) is FCNMaskHead.forward
        if not plain and not hasattr(kind, "predict_logits"):
            raise ValueError(
                "F^- is read between the convolutions and the upsampling of FCNMaskHead: mask_head "
                "must run as that does, or have a method predict_logits for what follows the "
                f"convolutions; {kind.__name__} does neither"
            )
        for head in (self.bbox_head, self.refining_bbox_head):
            if head.custom_cls_channels:
                raise ValueError(
                    "scores are averaged and softmaxed class by class: "
                    f"loss_cls={type(head.loss_cls).__name__} has score channels of its own"
                )

    # The refining module, as training and testing share it

    def conv_features(self, x: Features, rois: Tensor) -> Tensor:
        """Run the vanilla mask head on boxes B up to its upsampling.

        Args:
            x: Feature maps (N, channels, Hl, Wl).
            rois: B as (K, 5).

        Returns:
            (K, channels, 14, 14): what ``fusion`` makes F^- of.
        """
        mask_feats = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        return conv_features(self.mask_head, mask_feats)

    def probability(self, features: Tensor, classes: Tensor) -> Tensor:
        """P (K, M, M) in [0, 1] of the guidance classes (K,), from :meth:`conv_features`."""
        return class_probability(mask_logits(self.mask_head, features), classes)

    def refine_box(self, x: Features, rois: Tensor, prob: Tensor) -> tuple[Tensor, Tensor]:
        """S^r (K, C + 1) and the deltas (K, 4 C) of the refining box head on boxes B."""
        extractor = self.refining_bbox_roi_extractor
        feats = x[: extractor.num_inputs]
        pooled = extractor(feats, rois, prob) if self.shape_aware else extractor(feats, rois)
        return self.refining_bbox_head(pooled)

    def refine_mask(self, x: Features, rois: Tensor, fused: Tensor) -> Tensor:
        """Logits (K, C, M, M) of the refining mask head on boxes B^r, with F^- added (Eq. 6)."""
        mask_feats = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        return self.refining_mask_head(mask_feats + fused)

    # Training

    def loss(
        self, x: Features, rpn_results_list: InstanceList, batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """Vanilla losses, and the refining module's.

        Args:
            x: Feature maps, each (N, channels, Hl, Wl).
            rpn_results_list: Per image, ``bboxes`` (K, 4) in pixels of the network's input.
            batch_data_samples: Per image, ground truth with boxes, labels and masks.

        Returns:
            Scalars: ``loss_cls``, ``acc``, ``loss_bbox`` and ``loss_mask`` of the vanilla heads,
            and the same of the refining heads as ``refining.*``.
        """
        gts, ignored, metas = unpack_gt_instances(batch_data_samples)
        sampled = []
        for i, (proposals, gt, ignore) in enumerate(
            zip(rpn_results_list, gts, ignored, strict=True)
        ):
            priors = InstanceData(priors=proposals.bboxes)
            assigned = self.bbox_assigner.assign(priors, gt, ignore)
            # A sampler that mines hard RoIs runs the box head, on this image's features.
            feats = [level[i : i + 1] for level in x]
            sampled.append(self.bbox_sampler.sample(assigned, priors, gt, feats=feats))
        bbox_results = self.bbox_loss(x, sampled)
        mask_results = self.mask_loss(x, sampled, bbox_results["bbox_feats"], gts)
        refining = self.refining_loss(x, sampled, bbox_results, gts, ignored, metas)
        return {
            **bbox_results["loss_bbox"],
            **mask_results["loss_mask"],
            **{f"refining.{name}": value for name, value in refining.items()},
        }

    def refining_loss(
        self,
        x: Features,
        sampled: list[SamplingResult],
        bbox_results: dict[str, Tensor],
        gts: InstanceList,
        ignored: InstanceList,
        metas: list[dict],
    ) -> dict[str, Tensor]:
        """Losses of the refining box and mask head over all sampled RoIs.

        Args:
            x: Feature maps, each (N, channels, Hl, Wl).
            sampled: Per image, the sampled RoIs with the targets of the vanilla heads.
            bbox_results: ``cls_score`` (K, C + 1) and ``bbox_pred`` (K, 4 C) of the vanilla box
                head on the RoIs of all images.
            gts: Per image, ground truth with boxes, labels and masks.
            ignored: Per image, ground truth to ignore.
            metas: Per image, its meta information.

        Returns:
            Scalars ``loss_cls``, ``acc``, ``loss_bbox`` and ``loss_mask``.
        """
        counts = [len(result.priors) for result in sampled]
        labels = torch.cat(
            [
                nn.functional.pad(
                    result.pos_gt_labels,
                    (0, len(result.neg_priors)),
                    value=self.bbox_head.num_classes,
                )
                for result in sampled
            ]
        )
        classes = guidance_classes(labels, bbox_results["cls_score"].detach())
        boxes = regress(
            self.bbox_head,
            [result.priors for result in sampled],
            classes.split(counts),
            bbox_results["bbox_pred"].split(counts),
            metas,
        )
        rois = bbox2roi(boxes)
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.detach_guidance):
            prob = self.probability(self.conv_features(x, rois), classes)

        results = [
            self._refining_targets(*args) for args in zip(boxes, sampled, gts, ignored, strict=True)
        ]
        # mmdet's losses want positives first, then negatives, image by image.
        first = [sum(counts[:i]) for i in range(len(counts))]
        order = torch.cat(
            [
                start + torch.cat([result.pos_inds, result.neg_inds])
                for start, result in zip(first, results, strict=True)
            ]
        )
        cls_score, bbox_pred = self.refine_box(x, rois[order], prob[order])
        losses = self.refining_bbox_head.loss_and_target(
            cls_score, bbox_pred, rois[order], results, self.train_cfg
        )["loss_bbox"]

        positives = [len(result.pos_priors) for result in results]
        kept = [len(result.priors) for result in results]
        refined = regress(
            self.refining_bbox_head,
            [result.pos_priors for result in results],
            [result.pos_gt_labels for result in results],
            [pred[:num] for pred, num in zip(bbox_pred.split(kept), positives, strict=True)],
            metas,
        )
        # Computed again, with gradient this time, and only where a mask loss follows.
        fused = self.fusion(
            self.conv_features(x, bbox2roi([result.pos_priors for result in results]))
        )
        mask_preds = self.refine_mask(x, bbox2roi(refined), fused)
        for result, box in zip(results, refined, strict=True):
            result.pos_priors = box
        losses_mask = self.refining_mask_head.loss_and_target(
            mask_preds, results, gts, self.train_cfg
        )["loss_mask"]
        return {**losses, **losses_mask}

    def _refining_targets(
        self, boxes: Tensor, first: SamplingResult, gt: InstanceData, ignore: InstanceData | None
    ) -> SamplingResult:
        """Targets of the boxes B of one image; all boxes stay, in two groups."""
        priors = InstanceData(priors=boxes)
        if self.refine_assign == "reassign":
            assigned = self.bbox_assigner.assign(priors, gt, ignore)
        else:
            assigned = inherited_assignment(
                first.pos_assigned_gt_inds, first.pos_gt_labels, len(first.neg_priors), boxes
            )
        return PseudoSampler().sample(assigned, priors, gt)

    # Testing

    def predict_bbox(
        self,
        x: Features,
        batch_img_metas: list[dict],
        rpn_results_list: InstanceList,
        rcnn_test_cfg: ConfigType,
        rescale: bool = False,
    ) -> InstanceList:
        """Detections with refined boxes and averaged scores.

        Args:
            x: Feature maps, each (N, channels, Hl, Wl).
            batch_img_metas: Per image, ``img_shape``, and ``scale_factor`` to rescale.
            rpn_results_list: Per image, ``bboxes`` (K, 4) in pixels of the network's input.
            rcnn_test_cfg: ``candidates``, and ``score_thr``, ``nms`` and ``max_per_img`` of the
                detections.
            rescale: Whether boxes are wanted in pixels of the original image.

        Returns:
            Per image, best first, ``bboxes`` (n, 4), ``scores`` and ``labels`` (n,), and where
            there are RoIs ``fused`` (n, channels, 14, 14), F^- of the boxes B that the detections
            were refined from, for :meth:`predict_mask` (which expects ``rescale=False`` here).
        """
        proposals = [result.bboxes for result in rpn_results_list]
        rois = bbox2roi(proposals)
        if len(rois) == 0:
            return super().predict_bbox(
                x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale
            )
        vanilla = self._bbox_forward(x, rois)
        candidates = self._candidates(rois, proposals, vanilla, batch_img_metas, rcnn_test_cfg)
        counts = [len(candidate) for candidate in candidates]
        labels = torch.cat([candidate.labels for candidate in candidates])
        rois = bbox2roi([candidate.bboxes for candidate in candidates])
        features = self.conv_features(x, rois)
        fused = self.fusion(features)
        cls_score, bbox_pred = self.refine_box(x, rois, self.probability(features, labels))
        refined = [candidate.bboxes for candidate in candidates]
        if self.refine_reg:
            refined = regress(
                self.refining_bbox_head,
                refined,
                labels.split(counts),
                bbox_pred.split(counts),
                batch_img_metas,
            )
        results_list = []
        for candidate, boxes, logits, extra, meta in zip(
            candidates,
            refined,
            cls_score.split(counts),
            fused.split(counts),
            batch_img_metas,
            strict=True,
        ):
            score = candidate.cls_score
            if self.refine_cls:
                score = average_scores(score, logits.float(), self.alpha)
            score = score.softmax(1).gather(1, candidate.labels[:, None])[:, 0]
            dets, rows = select_detections(boxes, score, candidate.labels, rcnn_test_cfg)
            boxes = dets[:, :4]
            if rescale:
                boxes = scale_boxes(boxes, [1 / factor for factor in meta["scale_factor"]])
            results_list.append(
                InstanceData(
                    bboxes=boxes,
                    scores=dets[:, 4],
                    labels=candidate.labels[rows],
                    fused=extra[rows],
                )
            )
        return results_list

    def _candidates(
        self,
        rois: Tensor,
        proposals: list[Tensor],
        vanilla: dict[str, Tensor],
        metas: list[dict],
        rcnn_test_cfg: ConfigType,
    ) -> list[InstanceData]:
        """Pairs of a RoI and a class worth refining.

        Returns:
            Per image, ``bboxes`` B_c (n, 4), ``labels`` c (n,), ``cls_score`` S^b (n, C + 1) of
            the RoI.
        """
        counts = [len(boxes) for boxes in proposals]
        cls_scores = vanilla["cls_score"].float().split(counts)
        decoded = self.bbox_head.predict_by_feat(
            rois.split(counts),
            cls_scores,
            vanilla["bbox_pred"].float().split(counts),
            metas,
            rcnn_test_cfg=None,
        )
        cfg = {**CANDIDATES, **rcnn_test_cfg.get("candidates", {})}
        candidates = []
        for cls_score, raw in zip(cls_scores, decoded, strict=True):
            boxes, labels, rows = select_candidates(raw.bboxes, raw.scores, cfg)
            candidates.append(InstanceData(bboxes=boxes, labels=labels, cls_score=cls_score[rows]))
        return candidates

    def predict_mask(
        self,
        x: Features,
        batch_img_metas: list[dict],
        results_list: InstanceList,
        rescale: bool = False,
    ) -> InstanceList:
        """Masks P^r of the detections; arguments and results as in ``StandardRoIHead``."""
        fused = [result.pop("fused", None) for result in results_list]
        counts = [len(result) for result in results_list]
        if sum(counts) == 0:
            return super().predict_mask(x, batch_img_metas, results_list, rescale)
        rois = bbox2roi([result.bboxes for result in results_list])
        mask_preds = self.refine_mask(x, rois, torch.cat(fused))
        return self.refining_mask_head.predict_by_feat(
            mask_preds.split(counts), results_list, batch_img_metas, self.test_cfg, rescale
        )

    def forward(
        self,
        x: Features,
        rpn_results_list: InstanceList,
        batch_data_samples: SampleList | None = None,
    ) -> tuple[Tensor, ...]:
        """Run all heads without decoding, on the first 100 RoIs after the vanilla box head.

        This is what parameter and FLOP counters call.

        Returns:
            S^b, vanilla deltas, P, S^r, refining deltas and logits of the refined masks.
        """
        rois = bbox2roi([result.bboxes for result in rpn_results_list])
        vanilla = self._bbox_forward(x, rois)
        cls_score, bbox_pred = vanilla["cls_score"], vanilla["bbox_pred"]
        rois = rois[:100]
        classes = cls_score[:100, :-1].argmax(1)
        unbounded = {"img_shape": None}
        boxes = self.bbox_head.regress_by_class(rois[:, 1:], classes, bbox_pred[:100], unbounded)
        rois = torch.cat([rois[:, :1], boxes], 1)
        features = self.conv_features(x, rois)
        prob, fused = self.probability(features, classes), self.fusion(features)
        refined_score, refined_pred = self.refine_box(x, rois, prob)
        boxes = self.refining_bbox_head.regress_by_class(boxes, classes, refined_pred, unbounded)
        mask_preds = self.refine_mask(x, torch.cat([rois[:, :1], boxes], 1), fused)
        return cls_score, bbox_pred, prob, refined_score, refined_pred, mask_preds


def regress(
    head: nn.Module,
    boxes: list[Tensor],
    classes: list[Tensor],
    deltas: list[Tensor],
    metas: list[dict],
) -> list[Tensor]:
    """Move boxes by the deltas of their classes, image by image; no gradient passes.

    Args:
        head: Box head whose coder made the deltas.
        boxes: Per image, (K, 4) in pixels of the network's input.
        classes: Per image, (K,).
        deltas: Per image, (K, 4 C), or (K, 4) from a class-agnostic head.
        metas: Per image, with ``img_shape``, to which the boxes are clipped.
    """
    # Float32 under autocast: half precision would move boxes by whole pixels.
    return [
        head.regress_by_class(box, cls, delta.detach().float(), meta)
        for box, cls, delta, meta in zip(boxes, classes, deltas, metas, strict=True)
    ]


def changed(config: Mapping[str, Any], changes: Mapping[str, Any] | None) -> ConfigDict:
    """A config with some fields changed, section by section as mmengine merges configs.

    Args:
        config: Left as it is, as is ``changes``.
        changes: Fields to put into it. A section (a dict) is merged into the one it meets; one
            with ``_delete_=True`` takes its place. None or empty: no change.
    """
    changes = dict(changes or {})
    result = {} if changes.pop("_delete_", False) else copy.deepcopy(dict(config))
    for key, value in changes.items():
        if isinstance(value, Mapping):
            met = result.get(key)
            result[key] = changed(met if isinstance(met, Mapping) else {}, value)
        else:
            result[key] = copy.deepcopy(value)
    return ConfigDict(result)
