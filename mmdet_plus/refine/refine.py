"""The detector: a two-stage panoptic segmentor whose tasks read each other's predictions."""

import copy
from typing import Any

from mmdet.models.detectors.panoptic_two_stage_segmentor import TwoStagePanopticSegmentor
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor


@MODELS.register_module()
class REFINE(TwoStagePanopticSegmentor):
    """REFINE (Ren et al., AAAI 2021).

    With ``roi_head.num_iterations=0`` it is Panoptic-FPN.

    Args:
        roi_head: Config of an :class:`IterativeProjectionRoIHead` or
            :class:`IterativeProjectionCascadeRoIHead`.
        semantic_head: Config of a :class:`ProjectionSemanticHead`.
        kwargs: Of mmdet's ``TwoStagePanopticSegmentor``.
    """

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses of all parts.

        Args:
            batch_inputs: (N, 3, H, W), normalised.
            batch_data_samples: ``gt_instances`` with ``bboxes``, ``labels`` and ``masks``, and
                ``gt_sem_seg``.

        Returns:
            Those of Panoptic-FPN, where ``loss_seg`` is that of P_sem^(0); ``loss_mask_t`` and
            ``loss_seg_t`` of each iteration t; in a cascade the former as ``s0.loss_mask_1``.
        """
        if not self.roi_head.num_iterations:
            return super().loss(batch_inputs, batch_data_samples)
        x = self.extract_feat(batch_inputs)
        # The RPN knows one class.
        rpn_samples = copy.deepcopy(batch_data_samples)
        for sample in rpn_samples:
            sample.gt_instances.labels.zero_()
        losses, proposals = self.rpn_head.loss_and_predict(
            x, rpn_samples, proposal_cfg=self.train_cfg.get("rpn_proposal", self.test_cfg.rpn)
        )
        losses = {
            name.replace("loss_", "loss_rpn_", 1) if "rpn" not in name else name: value
            for name, value in losses.items()
        }
        state = self._with_semantics(x)
        losses["loss_seg"] = self.semantic_head.loss_by_feat(state[-1], batch_data_samples)
        for name, value in self.roi_head.loss(state, proposals, batch_data_samples).items():
            _, found, t = name.partition("seg_preds_")
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
            The samples with ``pred_panoptic_seg.sem_seg`` (1, H, W), in mmdet's labels.
        """
        if not self.roi_head.num_iterations:
            return super().predict(batch_inputs, batch_data_samples, rescale)
        x = self.extract_feat(batch_inputs)
        metas = [sample.metainfo for sample in batch_data_samples]
        proposals = self.rpn_head.predict(x, batch_data_samples, rescale=False)
        state = self._with_semantics(x)
        results = self.roi_head.predict(state, proposals, batch_data_samples, rescale=rescale)
        seg_preds = self.semantic_head.predict_by_feat(state[-1], metas, rescale)
        fused = self.panoptic_fusion_head.predict(results, seg_preds)
        return self.add_pred_to_datasample(batch_data_samples, fused)

    def _with_semantics(self, x: tuple[Tensor, ...]) -> list[Tensor]:
        """The feature maps, F_sem and P_sem^(0), as the RoI heads take them."""
        semantics = self.semantic_head(x)
        return [*x, semantics["seg_feats"], semantics["seg_preds"]]

    def _forward(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> tuple[Any, ...]:
        if not self.roi_head.num_iterations:
            return super()._forward(batch_inputs, batch_data_samples)
        x = self.extract_feat(batch_inputs)
        proposals = self.rpn_head.predict(x, batch_data_samples, rescale=False)
        state = self._with_semantics(x)
        return (*self.roi_head.forward(state, proposals, batch_data_samples), state[-1])
