"""The detector: a two-stage panoptic segmentor whose tasks read each other's predictions."""

import copy
from typing import Any

from mmdet.models.detectors.panoptic_two_stage_segmentor import TwoStagePanopticSegmentor
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from mmdet.utils import InstanceList, OptConfigType
from torch import Tensor, nn

from mmdet_plus.panoptic_fusion import HeuristicFusion, WithOcclusionHead

from .iterative_projection_roi_head import SEG_PREDS
from .semantic_head import ProjectionSemanticHead


@MODELS.register_module()
class REFINE(WithOcclusionHead, TwoStagePanopticSegmentor):
    """REFINE (Ren et al., AAAI 2021).

    With ``roi_head.num_iterations=0`` and mmdet's ``PanopticFPNHead`` it is Panoptic-FPN; with
    mmdet's own RoI heads it is that, too, so that the fusers with a network can be had for any
    two-stage panoptic model.

    Args:
        roi_head: Config of an :class:`IterativeProjectionRoIHead` or
            :class:`IterativeProjectionCascadeRoIHead`, or of one of mmdet's.
        semantic_head: Config of a :class:`ProjectionSemanticHead`; with one of mmdet's RoI heads
            mmdet's ``PanopticFPNHead`` will do.
        occlusion_head: Config of an :class:`OcclusionHead`, for fusers by occlusion, or of a
            :class:`SpatialRankingHead`, for that by ranking.
        occlusion_only: Whether the occlusion head alone is trained; all else stays as it was
            loaded.
        kwargs: Of mmdet's ``TwoStagePanopticSegmentor``.

    Raises:
        ValueError: ``occlusion_only`` without an occlusion head, iterations without semantics to
            read, parts that were given different numbers of classes, or a fuser that
            :meth:`check_fuser` refuses.
    """

    def __init__(
        self,
        *,
        occlusion_head: OptConfigType = None,
        occlusion_only: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # mmdet's RoI heads do not iterate.
        self.num_iterations = getattr(self.roi_head, "num_iterations", 0)
        if self.num_iterations and not isinstance(self.semantic_head, ProjectionSemanticHead):
            raise ValueError(
                "iterations read the semantics: semantic_head must be a ProjectionSemanticHead"
            )
        self._check_classes()
        self.init_occlusion_head(occlusion_head, occlusion_only)
        if isinstance(self.semantic_head, ProjectionSemanticHead):
            self.panoptic_fusion_head.things_apart = True

    def _check_classes(self) -> None:
        """Compare the numbers of classes, of which a config tells each part anew."""
        roi_head = self.roi_head
        parts = {
            "semantic_head": self.semantic_head,
            "panoptic_fusion_head": self.panoptic_fusion_head,
            "roi_head": getattr(roi_head, "projection", None),
        }
        numbers = {
            field: {
                name: getattr(part, field) for name, part in parts.items() if hasattr(part, field)
            }
            for field in ("num_things_classes", "num_stuff_classes")
        }
        for name in ("bbox_head", "mask_head"):
            heads = getattr(roi_head, name, None)
            for head in heads if isinstance(heads, nn.ModuleList) else [heads]:
                # One of masks for any class has no number of its own.
                if hasattr(head, "num_classes") and not getattr(head, "class_agnostic", False):
                    numbers["num_things_classes"][f"roi_head.{name}"] = head.num_classes
        for field, told in numbers.items():
            if len(set(told.values())) > 1:
                listed = ", ".join(f"{name} {number}" for name, number in told.items())
                raise ValueError(
                    f"parts of the model differ in {field}: {listed} (of the roi_head, classes "
                    "of things are those of its mask_head); set them all"
                )

    def check_fuser(self, fuser: nn.Module) -> None:
        """See that a fuser knows the semantics, and is told all that it asks for.

        Args:
            fuser: In the place of ``panoptic_fusion_head``.

        Raises:
            ValueError: It is mmdet's, which knows other semantics; the occlusion head that it
                needs is not there, or has a higher threshold.
        """
        if isinstance(self.semantic_head, ProjectionSemanticHead) and not isinstance(
            fuser, HeuristicFusion
        ):
            raise ValueError(
                f"{type(fuser).__name__} does not know the channels of a ProjectionSemanticHead: "
                "take HeuristicFusion, or another fuser of mmdet_plus.panoptic_fusion"
            )
        super().check_fuser(fuser)

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses of all parts.

        Args:
            batch_inputs: (N, 3, H, W), normalised.
            batch_data_samples: ``gt_instances`` with ``bboxes``, ``labels`` and ``masks``, and
                ``gt_sem_seg``.

        Returns:
            Those of Panoptic-FPN, where ``loss_seg`` is that of P_sem^(0); ``loss_mask_t`` and
            ``loss_seg_t`` of each iteration t, in a cascade the former as ``s0.loss_mask_1``; and
            those of the occlusion head. Of a frozen model the latter alone.
        """
        x = self.extract_feat(batch_inputs)
        losses = {} if self.occlusion_only else self._task_losses(x, batch_data_samples)
        return losses | self.occlusion_loss(x, batch_data_samples)

    def _task_losses(
        self, x: tuple[Tensor, ...], batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """The losses of both tasks, from the feature maps."""
        # The RPN knows one class.
        rpn_samples = copy.deepcopy(batch_data_samples)
        for sample in rpn_samples:
            sample.gt_instances.labels.zero_()
        losses, proposals = self.rpn_head.loss_and_predict(
            x, rpn_samples, proposal_cfg=self.train_cfg.get("rpn_proposal", self.test_cfg.rpn)
        )
        losses = {
            name if "rpn" in name or "loss" not in name else f"rpn_{name}": value
            for name, value in losses.items()
        }
        if not self.num_iterations:
            losses |= self.roi_head.loss(x, proposals, batch_data_samples)
            return losses | self.semantic_head.loss(x, batch_data_samples)
        state = self._with_semantics(x)
        losses["loss_seg"] = self.semantic_head.loss_by_feat(state[-1], batch_data_samples)
        for name, value in self.roi_head.loss(state, proposals, batch_data_samples).items():
            _, found, t = name.partition(SEG_PREDS)
            if found:
                name = f"loss_seg_{t}"
                value = self.semantic_head.loss_by_feat(value, batch_data_samples)
            losses[name] = value
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict instances and semantics, and fuse them.

        Args:
            batch_inputs: (N, 3, H, W), normalised.
            batch_data_samples: With the images' meta information.
            rescale: To the original images, otherwise to the network's input.

        Returns:
            The samples with ``pred_panoptic_seg.sem_seg`` (1, H, W), in mmdet's labels; with
            ``test_cfg.instance_on`` also with ``pred_instances``, as they were before the fusion.
        """
        metas = [sample.metainfo for sample in batch_data_samples]
        x = self.extract_feat(batch_inputs)
        results, state = self._find(x, batch_data_samples, rescale)
        if self.num_iterations:
            seg_preds = self.semantic_head.predict_by_feat(state[-1], metas, rescale)
        else:
            seg_preds = self.semantic_head.predict(x, metas, rescale)
        if not rescale:
            # Semantics come with the batch's padding, and no masks in the original's size.
            shapes = [meta["img_shape"][:2] for meta in metas]
            pairs = zip(seg_preds, shapes, strict=True)
            seg_preds = [seg[:, :rows, :cols] for seg, (rows, cols) in pairs]
            for result, shape in zip(results, shapes, strict=True):
                if not len(result):
                    result.masks = result.masks.new_zeros(0, *shape)
        results = self.with_occlusion(x, results, metas, rescale)
        fused = self.panoptic_fusion_head.predict(results, seg_preds)
        if self.test_cfg.get("instance_on"):
            for sample, result in zip(batch_data_samples, results, strict=True):
                sample.pred_instances = result
        return self.add_pred_to_datasample(batch_data_samples, fused)

    def find_instances(self, x: tuple[Tensor, ...], batch_data_samples: SampleList) -> InstanceList:
        """What the model finds in a batch, for its occlusion head to learn from."""
        return self._find(x, batch_data_samples, rescale=False)[0]

    def _find(
        self, x: tuple[Tensor, ...], batch_data_samples: SampleList, rescale: bool
    ) -> tuple[InstanceList, list[Tensor]]:
        """Instances with masks of each image, and the feature maps with the semantics."""
        if batch_data_samples[0].get("proposals") is None:
            proposals = self.rpn_head.predict(x, batch_data_samples, rescale=False)
        else:
            proposals = [sample.proposals for sample in batch_data_samples]
        state = self._with_semantics(x) if self.num_iterations else list(x)
        results = self.roi_head.predict(state, proposals, batch_data_samples, rescale=rescale)
        return results, state

    def _with_semantics(self, x: tuple[Tensor, ...]) -> list[Tensor]:
        """The feature maps, F_sem and P_sem^(0), as the RoI heads take them."""
        semantics = self.semantic_head(x)
        return [*x, semantics["seg_feats"], semantics["seg_preds"]]

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> tuple[Any, ...]:
        if not self.num_iterations:
            return super()._forward(batch_inputs, batch_data_samples)
        x = self.extract_feat(batch_inputs)
        proposals = self.rpn_head.predict(x, batch_data_samples, rescale=False)
        state = self._with_semantics(x)
        return (*self.roi_head.forward(state, proposals, batch_data_samples), state[-1])
