"""The RoI head of MR R-CNN: a vanilla Mask R-CNN head, and the refining module after it.

    RoIs -> vanilla box head -> B -> vanilla mask head -> P of the guidance class
         -> Shape-aware RoIAlign(B, F, P) -> refining box head -> B^r
         -> RoIAlign(B^r, F) + F^- -> refining mask head -> P^r

Training takes this way for every sampled RoI, with ground truth assigned anew to B; testing takes
it for candidates, pairs of a RoI and a class.
"""

import copy
from typing import Literal

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.task_modules.samplers import PseudoSampler, SamplingResult
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import ConfigType, InstanceList
from mmengine.structures import InstanceData
from torch import Tensor, nn

from .guidance import (
    average_scores,
    class_probability,
    guidance_classes,
    inherited_assignment,
    run_with_conv_features,
    select_by_class,
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
        refining_bbox_roi_extractor: Config of the extractor of F_{B,P}. None:
            :class:`ShapeAwareRoIExtractor` with the settings of ``bbox_roi_extractor``.
        refining_bbox_head: Config of the refining box head. None: that of ``bbox_head``.
        refining_mask_head: Config of the refining mask head. None: that of ``mask_head``.
        shape_aware: Whether P guides the refining box head (Table 3: SARA). False gives it the
            features of plain RoIAlign.
        refine_cls: Whether refined scores count at test (Table 4: CLS). False: S = S^b.
        refine_reg: Whether boxes are refined at test (Table 4: REG). False: B^r = B.
        alpha: Weight of the refined logits against the vanilla ones at test (Table 5).
        refine_assign: Targets of the refining heads: 'reassign' assigns ground truth to B with
            the assigner of ``train_cfg``, 'inherit' keeps what the RoI had. The paper is silent.
        detach_guidance: Whether the gradient stops at P. The paper is silent.
        kwargs: Those of ``StandardRoIHead``; a box and a mask head are needed. Its ``test_cfg``
            may have one more field, ``candidates``: ``score_thr``, ``nms`` and ``max_per_img`` of
            the pairs of RoI and class that are refined; the default is ``CANDIDATES``.

    Raises:
        ValueError: A head is missing, a shared head is given, or ``refine_assign`` is neither.
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
        # Taken before the vanilla heads are built: building may change the configs it is given.
        refining_extractor = copy.deepcopy(
            refining_bbox_roi_extractor
            or {**kwargs["bbox_roi_extractor"], "type": "ShapeAwareRoIExtractor"}
        )
        refining_box = copy.deepcopy(refining_bbox_head or kwargs["bbox_head"])
        refining_mask = copy.deepcopy(refining_mask_head or kwargs["mask_head"])
        super().__init__(**kwargs)
        self.refining_bbox_roi_extractor = MODELS.build(refining_extractor)
        self.refining_bbox_head = MODELS.build(refining_box)
        self.refining_mask_head = MODELS.build(refining_mask)
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

    # The refining module, as training and testing share it

    def guidance(self, x: Features, rois: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
        """Run the vanilla mask head on boxes B.

        Args:
            x: Feature maps (N, channels, Hl, Wl).
            rois: B as (K, 5).
            classes: (K,) guidance classes.

        Returns:
            P (K, M, M) in [0, 1], and F^- (K, channels, 14, 14).
        """
        mask_feats = self.mask_roi_extractor(x[: self.mask_roi_extractor.num_inputs], rois)
        logits, conv_features = run_with_conv_features(self.mask_head, mask_feats)
        return class_probability(logits, classes), self.fusion(conv_features)

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
        """Vanilla losses under their usual names, and the refining module's as ``refining.*``."""
        gts, ignored, metas = unpack_gt_instances(batch_data_samples)
        sampled = []
        for proposals, gt, ignore in zip(rpn_results_list, gts, ignored, strict=True):
            priors = InstanceData(priors=proposals.bboxes)
            assigned = self.bbox_assigner.assign(priors, gt, ignore)
            sampled.append(self.bbox_sampler.sample(assigned, priors, gt, feats=x))
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
            x: Feature maps.
            sampled: Per image, the sampled RoIs with the targets of the vanilla heads.
            bbox_results: ``cls_score`` and ``bbox_pred`` of the vanilla box head on them.
            gts: Per image, ground truth with boxes, labels and masks.
            ignored: Per image, ground truth to ignore.
            metas: Per image, its meta information.
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
            prob, _ = self.guidance(x, rois, classes)

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
        _, fused = self.guidance(
            x,
            bbox2roi([result.pos_priors for result in results]),
            torch.cat([result.pos_gt_labels for result in results]),
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

        Each result also holds ``fused`` (n, channels, 14, 14), F^- of its boxes, for
        :meth:`predict_mask`. Arguments and the other fields as in ``StandardRoIHead``.
        """
        proposals = [result.bboxes for result in rpn_results_list]
        rois = bbox2roi(proposals)
        if len(rois) == 0:
            return super().predict_bbox(
                x, batch_img_metas, rpn_results_list, rcnn_test_cfg, rescale
            )
        vanilla = self._bbox_forward(x, rois)
        counts = [len(boxes) for boxes in proposals]
        candidates = [
            self._candidates(*args, rcnn_test_cfg.get("candidates", CANDIDATES))
            for args in zip(
                proposals,
                vanilla["cls_score"].split(counts),
                vanilla["bbox_pred"].split(counts),
                batch_img_metas,
                strict=True,
            )
        ]
        counts = [len(candidate) for candidate in candidates]
        labels = torch.cat([candidate.labels for candidate in candidates])
        rois = bbox2roi([candidate.bboxes for candidate in candidates])
        prob, fused = self.guidance(x, rois, labels)
        cls_score, bbox_pred = self.refine_box(x, rois, prob)
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
        for candidate, boxes, logits, features in zip(
            candidates, refined, cls_score.split(counts), fused.split(counts), strict=True
        ):
            score = candidate.cls_score
            if self.refine_cls:
                score = average_scores(score, logits.float(), self.alpha)
            # A candidate stands for one class; it competes in no other.
            own = torch.zeros_like(score)
            own.scatter_(
                1, candidate.labels[:, None], score.softmax(1).gather(1, candidate.labels[:, None])
            )
            dets, dets_labels, rows = select_by_class(boxes, own, rcnn_test_cfg)
            results_list.append(
                InstanceData(
                    bboxes=dets[:, :4],
                    scores=dets[:, 4],
                    labels=dets_labels,
                    fused=features[rows],
                )
            )
        return results_list

    def _candidates(
        self, proposals: Tensor, cls_score: Tensor, bbox_pred: Tensor, meta: dict, cfg: ConfigType
    ) -> InstanceData:
        """Pairs of a RoI and a class worth refining, in one image.

        Returns:
            ``bboxes`` B_c (n, 4), ``labels`` c (n,), ``cls_score`` S^b (n, C + 1) of the RoI.
        """
        cls_score, bbox_pred = cls_score.float(), bbox_pred.float()
        per_roi = 1 if self.bbox_head.reg_class_agnostic else self.bbox_head.num_classes
        boxes = self.bbox_head.bbox_coder.decode(
            proposals.repeat_interleave(per_roi, 0),
            bbox_pred.reshape(-1, 4),
            max_shape=meta["img_shape"],
        ).view(len(proposals), 4 * per_roi)
        dets, labels, rows = select_by_class(boxes, cls_score.softmax(1), cfg)
        return InstanceData(bboxes=dets[:, :4], labels=labels, cls_score=cls_score[rows])

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
        prob, fused = self.guidance(x, rois, classes)
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
