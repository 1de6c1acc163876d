"""Test-time augmentation of instance masks; mmdet's own merges boxes alone."""

import torch
from mmcv.ops import batched_nms
from mmdet.models.test_time_augs import DetTTAModel
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_flip
from mmengine.structures import InstanceData
from torch import Tensor

# The axes of (N, H, W) masks that a flip turns round.
_FLIPPED_AXES = {"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}


@MODELS.register_module()
class MaskTTAModel(DetTTAModel):
    """Pools the detections of all views of an image; every one keeps its view's mask.

    Args:
        tta_cfg: ``nms`` over the pooled detections, class by class, and ``max_per_img``.
    """

    def _merge_single_sample(self, data_samples: list[DetDataSample]) -> DetDataSample:
        views = [sample.pred_instances for sample in data_samples]
        if any("masks" not in view for view in views):
            return super()._merge_single_sample(data_samples)
        merged = data_samples[0]
        merged.pred_instances = merge_views(
            views,
            [sample.metainfo for sample in data_samples],
            self.tta_cfg["nms"],
            self.tta_cfg["max_per_img"],
        )
        return merged


def merge_views(
    views: list[InstanceData], metas: list[dict], nms: dict, max_per_img: int
) -> InstanceData:
    """Merge the detections of an image's views.

    Args:
        views: Per view ``bboxes`` (n, 4), ``scores`` (n,), ``labels`` (n,), ``masks`` (n, H, W),
            at the size of the original image.
        metas: Per view ``ori_shape``, ``flip`` and ``flip_direction``.
        nms: Config of the non-maximum suppression.
        max_per_img: Detections to keep.

    Returns:
        The same fields, best first, unflipped.
    """
    pooled = InstanceData.cat([unflip(view, meta) for view, meta in zip(views, metas, strict=True)])
    if len(pooled) == 0:
        return pooled
    dets, keep = batched_nms(pooled.bboxes, pooled.scores, pooled.labels, nms)
    keep = keep[:max_per_img]
    merged = pooled[keep]
    merged.scores = dets[: len(keep), 4]  # soft NMS lowers scores
    return merged


def unflip(instances: InstanceData, meta: dict) -> InstanceData:
    """Turn the detections of a flipped view back to how the image lies."""
    masks: Tensor = torch.as_tensor(instances.masks)
    if not meta.get("flip"):
        bboxes = instances.bboxes
    else:
        direction = meta["flip_direction"]
        bboxes = bbox_flip(instances.bboxes, meta["ori_shape"], direction)
        masks = masks.flip(_FLIPPED_AXES[direction])
    return InstanceData(
        bboxes=bboxes, scores=instances.scores, labels=instances.labels, masks=masks
    )
