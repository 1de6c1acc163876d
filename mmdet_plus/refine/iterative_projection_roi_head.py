"""RoI heads whose masks are predicted together with the semantics, in T iterations.

The semantics travel behind the feature maps: ``[*x, F_sem, P]`` is a list, and P, its last entry,
is the latest semantic prediction. Each iteration puts its own there, so that the next one, the
next stage of a cascade and finally the detector find it.
"""

from typing import Any, Literal

import torch
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from mmdet.models.task_modules.samplers import SamplingResult
from mmdet.models.utils import empty_instances
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox2roi
from mmdet.utils import ConfigType, InstanceList
from torch import Tensor

from .projection import IterativeProjection

# Begin of the names of semantic predictions among the losses, from which the detector takes them.
SEG_PREDS = "seg_preds_"


class _ProjectionMixin:
    """What both RoI heads share.

    Args:
        num_iterations: T. With 0 the head is mmdet's own.
        num_stuff_classes: C_sem.
        share_heads, canvas_weight: As of :class:`IterativeProjection`.
        semantic_norm_cfg: Of its semantic heads.
        mask_head, mask_roi_extractor: Of the mask heads of all iterations.
        kwargs: Of the RoI head.
    """

    def __init__(
        self,
        *,
        num_iterations: int = 3,
        num_stuff_classes: int = 53,
        share_heads: bool = False,
        canvas_weight: Literal["score", "none"] = "score",
        semantic_norm_cfg: ConfigType | None = None,
        **kwargs: Any,
    ) -> None:
        self.num_iterations = num_iterations
        self._settings = dict(
            num_stuff_classes=num_stuff_classes,
            share_heads=share_heads,
            canvas_weight=canvas_weight,
            norm_cfg=semantic_norm_cfg,
        )
        super().__init__(**kwargs)

    def init_mask_head(self, mask_roi_extractor: ConfigType, mask_head: ConfigType) -> None:
        """Build the mask heads of all iterations, and what they need."""
        if not self.num_iterations:
            super().init_mask_head(mask_roi_extractor, mask_head)
            return
        if mask_roi_extractor is None:
            raise ValueError("IBPP needs a mask_roi_extractor: boxes have features of another size")
        parts = {"mask_head": mask_head, "mask_roi_extractor": mask_roi_extractor}
        for name, part in parts.items():
            if isinstance(part, (list, tuple)):
                raise ValueError(f"{name} is a list: give one config, for all iterations")
        self.share_roi_extractor = False
        self.mask_roi_extractor = MODELS.build(mask_roi_extractor)
        layer = mask_roi_extractor["roi_layer"]
        self.projection = IterativeProjection(
            self.num_iterations,
            mask_head,
            roi_size=layer["output_size"],
            sampling_ratio=layer.get("sampling_ratio", 0),
            **self._settings,
        )

    @property
    def with_mask(self) -> bool:
        """Whether there are masks."""
        return hasattr(self, "projection") or super().with_mask

    def enhanced_features(self, state: list[Tensor], rois: Tensor) -> Tensor:
        """f_ins + f_sem (K, D, S, S) of RoIs (K, 5)."""
        extractor = self.mask_roi_extractor
        roi_feats = extractor(tuple(state[: extractor.num_inputs]), rois)
        return self.projection.enhance(roi_feats, state[-2], rois)

    def iterate(
        self,
        t: int,
        state: list[Tensor],
        enhanced: Tensor,
        rois: Tensor,
        labels: Tensor,
        scores: Tensor,
    ) -> Tensor:
        """Do iteration ``t``, from 1, and put its semantic prediction last in ``state``.

        Returns:
            Mask logits (K, C_ins, M, M).
        """
        mask_preds, seg_preds = self.projection(
            t, enhanced, rois, labels, scores, state[-2], state[-1]
        )
        state[-1] = seg_preds
        return mask_preds

    def _all_iterations(
        self, state: list[Tensor], rois: Tensor, iterations: range | None = None
    ) -> Tensor:
        """What parameter and FLOP counters see: all RoIs are taken for class 0."""
        labels = rois.new_zeros(len(rois), dtype=torch.long)
        enhanced = self.enhanced_features(state, rois)
        for t in iterations or range(1, self.num_iterations + 1):
            mask_preds = self.iterate(t, state, enhanced, rois, labels, rois.new_ones(len(rois)))
        return mask_preds

    def projection_loss(
        self,
        iterations: range,
        state: list[Tensor],
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
        rcnn_train_cfg: ConfigType,
    ) -> dict[str, Tensor]:
        """Mask losses of some iterations on the positive RoIs.

        Returns:
            ``loss_mask_t`` of each iteration t, and its semantic logits as ``seg_preds_t``.
        """
        rois = bbox2roi([result.pos_priors for result in sampling_results])
        labels = torch.cat([result.pos_gt_labels for result in sampling_results])
        scores = torch.cat([result.pos_scores for result in sampling_results])
        enhanced = self.enhanced_features(state, rois)
        losses = {}
        for t in iterations:
            mask_preds = self.iterate(t, state, enhanced, rois, labels, scores)
            result = self.projection.mask_head(t).loss_and_target(
                mask_preds, sampling_results, batch_gt_instances, rcnn_train_cfg
            )
            losses[f"loss_mask_{t}"] = result["loss_mask"]["loss_mask"]
            losses[f"{SEG_PREDS}{t}"] = state[-1]
        return losses

    def predict_mask(
        self,
        x: list[Tensor],
        batch_img_metas: list[dict],
        results_list: InstanceList,
        rescale: bool = False,
    ) -> InstanceList:
        """Masks m_ins^(T) of the detections.

        Args:
            x: The feature maps, F_sem and P_sem^(0); the latter becomes P_sem^(T).
            batch_img_metas: Of the images.
            results_list: Per image, ``bboxes`` in pixels of the network's input, ``scores`` and
                ``labels``.
            rescale: Whether masks are wanted in pixels of the original images.

        Returns:
            The results with ``masks``.
        """
        if not self.num_iterations:
            return super().predict_mask(x, batch_img_metas, results_list, rescale)
        rois = bbox2roi([result.bboxes for result in results_list])
        labels = torch.cat([result.labels for result in results_list])
        scores = torch.cat([result.scores for result in results_list])
        enhanced = self.enhanced_features(x, rois)
        # Without detections, too: the semantics are refined all the same.
        for t in range(1, self.num_iterations + 1):
            mask_preds = self.iterate(t, x, enhanced, rois, labels, scores)
        if not len(rois):
            return empty_instances(
                batch_img_metas,
                rois.device,
                task_type="mask",
                instance_results=results_list,
                mask_thr_binary=self.test_cfg.mask_thr_binary,
            )
        return self.projection.mask_head(self.num_iterations).predict_by_feat(
            mask_preds.split([len(result) for result in results_list]),
            results_list,
            batch_img_metas,
            self.test_cfg,
            rescale,
        )


@MODELS.register_module()
class IterativeProjectionRoIHead(_ProjectionMixin, StandardRoIHead):
    """IBPP on the boxes of Faster R-CNN: all iterations look at the same RoIs.

    Args:
        num_iterations: T. With 0 it is ``StandardRoIHead``.
        num_stuff_classes: C_sem.
        share_heads: Whether all iterations have the same heads (the paper is silent).
        canvas_weight: 'score' or 'none', see :class:`IterativeProjection` (the paper is silent).
        semantic_norm_cfg: Of the semantic heads of the iterations; GroupNorm by default.
        kwargs: Those of ``StandardRoIHead``; ``mask_head`` is the config of H~_ins.
    """

    def bbox_loss(self, x: list[Tensor], sampling_results: list[SamplingResult]) -> dict:
        """As of ``StandardRoIHead``; the positives' scores are kept for their masks."""
        results = super().bbox_loss(x, sampling_results)
        _keep_scores(results["cls_score"], sampling_results)
        return results

    def mask_loss(
        self,
        x: list[Tensor],
        sampling_results: list[SamplingResult],
        bbox_feats: Tensor,
        batch_gt_instances: InstanceList,
    ) -> dict:
        """Mask losses of all iterations, and their semantic predictions."""
        if not self.num_iterations:
            return super().mask_loss(x, sampling_results, bbox_feats, batch_gt_instances)
        iterations = range(1, self.num_iterations + 1)
        losses = self.projection_loss(
            iterations, x, sampling_results, batch_gt_instances, self.train_cfg
        )
        return dict(loss_mask=losses)

    def _mask_forward(self, x: list[Tensor], rois: Tensor, **kwargs: Any) -> dict[str, Tensor]:
        if not self.num_iterations:
            return super()._mask_forward(x, rois, **kwargs)
        return dict(mask_preds=self._all_iterations(x, rois))


@MODELS.register_module()
class IterativeProjectionCascadeRoIHead(_ProjectionMixin, CascadeRoIHead):
    """IBPP on the boxes of Cascade R-CNN: stage t trains iteration t.

    At test all iterations look at the final detections.

    Args:
        num_iterations: T, the number of stages; with 0 it is ``CascadeRoIHead``.
        kwargs: Further ones of :class:`IterativeProjectionRoIHead`, and those of
            ``CascadeRoIHead`` with one config for the masks of all stages.

    Raises:
        ValueError: T is another number.
    """

    def __init__(self, *, num_stages: int = 3, num_iterations: int = 3, **kwargs: Any) -> None:
        if num_iterations not in (0, num_stages):
            raise ValueError(
                f"a cascade of {num_stages} stages trains as many iterations, or none: "
                f"num_iterations must not be {num_iterations}"
            )
        super().__init__(num_stages=num_stages, num_iterations=num_iterations, **kwargs)

    def bbox_loss(
        self, stage: int, x: list[Tensor], sampling_results: list[SamplingResult]
    ) -> dict:
        """As of ``CascadeRoIHead``; the positives' scores are kept for their masks."""
        results = super().bbox_loss(stage, x, sampling_results)
        _keep_scores(results["cls_score"], sampling_results)
        return results

    def mask_loss(
        self,
        stage: int,
        x: list[Tensor],
        sampling_results: list[SamplingResult],
        batch_gt_instances: InstanceList,
    ) -> dict:
        """Mask loss of one iteration, and its semantic prediction."""
        if not self.num_iterations:
            return super().mask_loss(stage, x, sampling_results, batch_gt_instances)
        losses = self.projection_loss(
            range(stage + 1, stage + 2),
            x,
            sampling_results,
            batch_gt_instances,
            self.train_cfg[stage],
        )
        # A cascade gives later stages less weight, and averages the masks of all at test. Here the
        # last iteration's masks are the result: all iterations weigh the same, as on other boxes.
        losses[f"loss_mask_{stage + 1}"] = (
            losses[f"loss_mask_{stage + 1}"] / self.stage_loss_weights[stage]
        )
        return dict(loss_mask=losses)

    def _mask_forward(self, stage: int, x: list[Tensor], rois: Tensor) -> dict[str, Tensor]:
        if not self.num_iterations:
            return super()._mask_forward(stage, x, rois)
        return dict(mask_preds=self._all_iterations(x, rois, range(stage + 1, stage + 2)))


def _keep_scores(cls_score: Tensor, sampling_results: list[SamplingResult]) -> None:
    """Give each result ``pos_scores`` (P,), the box scores of its positives' labels."""
    counts = [len(result.priors) for result in sampling_results]
    probabilities = cls_score.detach().softmax(1).split(counts)
    for result, scores in zip(sampling_results, probabilities, strict=True):
        labels = result.pos_gt_labels[:, None]
        result.pos_scores = scores[: len(labels)].gather(1, labels)[:, 0]
