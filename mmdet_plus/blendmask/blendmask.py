"""The detector: FCOS with attention, bases, the blender; panoptic with a semantic branch."""

import copy
from collections.abc import Mapping
from typing import Any

from mmdet.models.detectors.single_stage_instance_seg import SingleStageInstanceSegmentor
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from mmdet.utils import ConfigType, InstanceList, OptConfigType
from mmengine.structures import InstanceData, PixelData
from torch import Tensor

from mmdet_plus.convert import adelaidet_blendmask, adelaidet_unused, is_adelaidet_blendmask
from mmdet_plus.panoptic_fusion import WithOcclusionHead


@MODELS.register_module()
class BlendMask(WithOcclusionHead, SingleStageInstanceSegmentor):
    """BlendMask (section 3), and its panoptic form (appendix A).

    The number of thing classes is told once, in ``bbox_head``: the semantic heads get it from
    there. Checkpoints of the authors' AdelaiDet load as they are.

    Args:
        bbox_head: Config of a :class:`BlendMaskHead`; it and the bases read the last levels of
            the neck, as many as it has strides.
        mask_head: Config of a :class:`Blender`.
        semantic_head: Config of a :class:`StuffHead`, which reads all levels; without it the
            model segments instances only.
        panoptic_fusion_head: Config of a fuser; with a ``semantic_head``,
            :class:`~mmdet_plus.panoptic_fusion.HeuristicFusion` by default.
        occlusion_head: Config of the network that a fuser asks, an ``OcclusionHead`` or
            ``SpatialRankingHead`` of ``mmdet_plus.refine``, with a ``semantic_head``; it reads the
            first levels of the neck.
        occlusion_only: Whether the occlusion head alone is trained; all else stays as it was
            loaded.
        test_cfg: Of the two heads; for panoptic segmentation also ``panoptic``: ``score_thr``,
            ``overlap_thr`` and ``stuff_area_limit`` of the fuser.
        **kwargs: Of :class:`SingleStageInstanceSegmentor`.

    Raises:
        ValueError: An occlusion head without a ``semantic_head``, or what
            :class:`~mmdet_plus.panoptic_fusion.WithOcclusionHead` refuses.
    """

    def __init__(
        self,
        *,
        bbox_head: ConfigType,
        mask_head: ConfigType,
        semantic_head: OptConfigType = None,
        panoptic_fusion_head: OptConfigType = None,
        occlusion_head: OptConfigType = None,
        occlusion_only: bool = False,
        test_cfg: OptConfigType = None,
        **kwargs: Any,
    ) -> None:
        bbox_head, mask_head, semantic_head = map(
            copy.deepcopy, (bbox_head, mask_head, semantic_head)
        )
        if "num_classes" not in mask_head["bases"]:
            mask_head["bases"]["num_classes"] = bbox_head["num_classes"]
        super().__init__(bbox_head=bbox_head, mask_head=mask_head, test_cfg=test_cfg, **kwargs)
        self.semantic_head = self.occlusion_head = None
        if semantic_head is not None:
            if "num_things_classes" not in semantic_head:
                semantic_head["num_things_classes"] = bbox_head["num_classes"]
            self.semantic_head = MODELS.build(semantic_head)
            self.panoptic_fusion_head = MODELS.build(
                {
                    "type": "HeuristicFusion",
                    "num_things_classes": self.semantic_head.num_things_classes,
                    "num_stuff_classes": self.semantic_head.num_stuff_classes,
                    "test_cfg": (test_cfg or {}).get("panoptic"),
                    **(panoptic_fusion_head or {}),
                }
            )
            self.init_occlusion_head(occlusion_head, occlusion_only)
        elif occlusion_head is not None or occlusion_only:
            raise ValueError("an occlusion_head tells a fuser: give a semantic_head to fuse with")

    def loss(self, batch_inputs: Tensor, batch_data_samples: SampleList) -> dict[str, Tensor]:
        """Compute the losses of all parts.

        Args:
            batch_inputs: (N, 3, H, W), normalised.
            batch_data_samples: ``gt_instances`` with ``bboxes``, ``labels``, ``masks``; for
                panoptic segmentation also ``gt_sem_seg``.

        Returns:
            ``loss_cls``, ``loss_bbox``, ``loss_centerness``, ``loss_mask``, ``loss_basis_sem``
            and, panoptic, ``loss_seg``; and those of the occlusion head, alone if that alone is
            trained.
        """
        x = self.extract_feat(batch_inputs)
        losses = {} if self.occlusion_only else self._task_losses(x, batch_data_samples)
        return losses | self.occlusion_loss(x, batch_data_samples)

    def _task_losses(
        self, x: tuple[Tensor, ...], batch_data_samples: SampleList
    ) -> dict[str, Tensor]:
        """The losses of all parts but the occlusion head, from the feature maps."""
        levels = self._detection_levels(x)
        losses = self.bbox_head.loss(levels, batch_data_samples)
        positives = self.bbox_head.get_positive_infos()
        losses |= self.mask_head.loss(levels, batch_data_samples, positive_infos=positives)
        if self.semantic_head is not None:
            losses |= self.semantic_head.loss(x, batch_data_samples)
        return losses

    def predict(
        self, batch_inputs: Tensor, batch_data_samples: SampleList, rescale: bool = True
    ) -> SampleList:
        """Predict instances and, panoptic, a panoptic map.

        Args:
            batch_inputs: (N, 3, H, W), normalised.
            batch_data_samples: With the images' meta information.
            rescale: To the original images, otherwise to the resized ones.

        Returns:
            The samples with ``pred_instances``: ``bboxes`` (K, 4), ``scores``, ``labels`` (K,),
            ``masks`` (K, H, W) bool; and ``pred_panoptic_seg`` as
            :func:`~mmdet_plus.panoptic_fusion.to_mmdet_panoptic` makes it.
        """
        x = self.extract_feat(batch_inputs)
        results = self.find_instances(x, batch_data_samples, rescale)
        metas = [sample.metainfo for sample in batch_data_samples]
        results = self.with_occlusion(x, results, metas, rescale)
        samples = self.add_pred_to_datasample(batch_data_samples, results)
        if self.semantic_head is not None:
            # Without rescaling the logits still have the batch's padding.
            for sample, seg in zip(
                samples, self.semantic_head.predict(x, metas, rescale), strict=True
            ):
                rows, cols = sample.pred_instances.masks.shape[1:]
                sample.pred_panoptic_seg = self.fuse(sample.pred_instances, seg[:, :rows, :cols])
        return samples

    def find_instances(
        self, x: tuple[Tensor, ...], batch_data_samples: SampleList, rescale: bool = False
    ) -> InstanceList:
        """Instances with masks of each image, in pixels of the network's input or the original."""
        levels = self._detection_levels(x)
        results = self.bbox_head.predict(levels, batch_data_samples, rescale=False)
        return self.mask_head.predict(
            levels, batch_data_samples, rescale=rescale, results_list=results
        )

    def fuse(self, instances: InstanceData, seg_logits: Tensor) -> PixelData:
        """Combine one image's instances and semantics (appendix A).

        Args:
            instances: ``scores``, ``labels`` (K,), ``masks`` (K, H, W) bool.
            seg_logits: (stuff classes + 1, H, W).

        Returns:
            ``sem_seg`` (1, H, W), see :func:`~mmdet_plus.panoptic_fusion.to_mmdet_panoptic`.
        """
        # Channel 0 of the semantics is any thing.
        return self.panoptic_fusion_head.fuse(instances, seg_logits, range(1, len(seg_logits)))

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: OptSampleList = None
    ) -> tuple[Any, ...]:
        x = self.extract_feat(batch_inputs)
        levels = self._detection_levels(x)
        outputs = (self.bbox_head(levels), self.mask_head.bases(levels))
        return outputs if self.semantic_head is None else (*outputs, self.semantic_head(x))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # detectron2 keeps the weights below a key of their own, beside the optimiser's.
        wrapped = state_dict.get(prefix + "model")
        theirs = (
            wrapped
            if isinstance(wrapped, Mapping)
            else {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        )
        if is_adelaidet_blendmask(theirs):
            ours = adelaidet_blendmask(theirs)
            # What has no name here is reported as unexpected, as with any other checkpoint.
            ours |= {name: theirs[name] for name in adelaidet_unused(theirs, settings=False)}
            state_dict.clear()
            state_dict.update({prefix + name: value for name, value in ours.items()})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _detection_levels(self, x: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return x[len(x) - len(self.bbox_head.strides) :]
