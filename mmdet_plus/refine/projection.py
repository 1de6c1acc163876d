"""Iterative Bi-directional Prediction Projection, step by step (Eq. 2 to 6).

Shape letters: N images, K RoIs, D channels of features (256), C_ins and C_sem classes of things and
of stuff, C both, h x w a quarter of the network's input, M x M masks (28 x 28).
"""

from typing import Literal

import torch
from mmcv.cnn import ConvModule
from mmcv.ops import RoIAlign
from mmdet.registry import MODELS
from mmdet.utils import ConfigType
from mmengine.config import ConfigDict
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from mmplus_ops import roi_flatten

# F_sem and P_sem are a quarter of the network's input.
SPATIAL_SCALE = 0.25


class SemanticRefinement(BaseModule):
    """H~_sem: a new semantic prediction from the instances' and F_sem (Eq. 6).

    One 3 x 3 convolution with GroupNorm and ReLU, one 1 x 1 (ours; the paper says nothing of it).

    Args:
        num_things_classes: C_ins.
        num_classes: C.
        channels: D.
        norm_cfg: Of the first convolution.
    """

    def __init__(
        self, num_things_classes: int, num_classes: int, channels: int, norm_cfg: ConfigType
    ) -> None:
        super().__init__()
        inputs = num_things_classes + channels
        self.conv = ConvModule(inputs, channels, 3, padding=1, norm_cfg=norm_cfg)
        self.conv_logits = nn.Conv2d(channels, num_classes, 1)

    def init_weights(self) -> None:
        super().init_weights()
        nn.init.normal_(self.conv_logits.weight, std=0.01)
        nn.init.zeros_(self.conv_logits.bias)

    def forward(self, canvas: Tensor, sem_feats: Tensor) -> Tensor:
        """P_ins (N, C_ins, h, w) and F_sem (N, D, h, w) -> logits (N, C, h, w)."""
        return self.conv_logits(self.conv(torch.cat([canvas, sem_feats], 1)))


class IterativeProjection(BaseModule):
    """T mask heads and T semantic heads that read each other's predictions.

    No prediction is detached on the way: that each task's loss also reaches the other's head is
    the paper's claim.

    Args:
        num_iterations: T, 1 or more.
        mask_head: Config of H~_ins, an ``FCNMaskHead`` with a mask for each class; its
            ``in_channels`` is D here, C is added.
        num_stuff_classes: C_sem.
        share_heads: Whether all iterations have one mask head and one semantic head.
        canvas_weight: 'score' multiplies masks by the detached box score of their label before
            they are projected, 'none' does not.
        norm_cfg: Of the semantic heads.
        roi_size: Size of the RoIs' features.
        sampling_ratio: Of RoIAlign.

    Raises:
        ValueError: A setting is none of these.
    """

    def __init__(
        self,
        num_iterations: int,
        mask_head: ConfigType,
        num_stuff_classes: int,
        *,
        share_heads: bool = False,
        canvas_weight: Literal["score", "none"] = "score",
        norm_cfg: ConfigType | None = None,
        roi_size: int = 14,
        sampling_ratio: int = 0,
    ) -> None:
        super().__init__()
        if num_iterations < 1:
            raise ValueError(f"num_iterations must be 1 or more, got {num_iterations}")
        if canvas_weight not in ("score", "none"):
            raise ValueError(f"canvas_weight must be 'score' or 'none', got {canvas_weight!r}")
        if mask_head.get("class_agnostic"):
            raise ValueError("masks are projected by their classes: not class_agnostic ones")
        norm_cfg = norm_cfg or dict(type="GN", num_groups=32, requires_grad=True)
        self.num_iterations = num_iterations
        self.canvas_weight = canvas_weight
        self.num_things_classes = mask_head["num_classes"]
        self.num_stuff_classes = num_stuff_classes
        num_classes = self.num_things_classes + num_stuff_classes
        channels = mask_head["in_channels"]
        heads = 1 if share_heads else num_iterations
        config = ConfigDict(mask_head, in_channels=channels + num_classes)
        self.mask_heads = ModuleList(MODELS.build(config) for _ in range(heads))
        self.semantic_heads = ModuleList(
            SemanticRefinement(self.num_things_classes, num_classes, channels, norm_cfg)
            for _ in range(heads)
        )
        self.roi_align = RoIAlign(roi_size, SPATIAL_SCALE, sampling_ratio)

    def mask_head(self, t: int) -> nn.Module:
        """H~_ins of iteration ``t``, counted from 1."""
        return self.mask_heads[min(t, len(self.mask_heads)) - 1]

    def enhance(self, roi_feats: Tensor, sem_feats: Tensor, rois: Tensor) -> Tensor:
        """f_ins + f_sem (Eq. 2).

        Args:
            roi_feats: f_ins (K, D, S, S).
            sem_feats: F_sem (N, D, h, w).
            rois: (K, 5) as (image, x1, y1, x2, y2) in pixels of the network's input.

        Returns:
            (K, D, S, S).
        """
        return roi_feats + self._align(sem_feats, rois)

    def _align(self, feats: Tensor, rois: Tensor) -> Tensor:
        """RoIAlign on whole numbers of boxes, none included, in full precision."""
        feats = _full(feats)
        if len(rois):
            return self.roi_align(feats, rois.to(feats))
        # mmcv's CUDA kernel cannot be launched on nothing; the graph goes on all the same.
        return feats.new_zeros(0, feats.shape[1], *self.roi_align.output_size) + feats.sum() * 0

    def forward(
        self,
        t: int,
        enhanced: Tensor,
        rois: Tensor,
        labels: Tensor,
        scores: Tensor,
        sem_feats: Tensor,
        seg_preds: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """One iteration: from the semantic prediction to the instances', and back.

        Args:
            t: The iteration, from 1.
            enhanced: f_ins + f_sem of :meth:`enhance`.
            rois: (K, 5) as (image, x1, y1, x2, y2) in pixels of the network's input.
            labels: (K,) classes of the instances.
            scores: (K,) box scores of these classes; no gradient passes to them.
            sem_feats: F_sem (N, D, h, w).
            seg_preds: Logits of P_sem^(t-1), (N, C, h, w).

        Returns:
            Logits of the masks of all classes (K, C_ins, M, M), of which m_ins^(t) is the label's,
            and logits of P_sem^(t), (N, C, h, w).
        """
        # Eq. 3 and 4.
        aligned = self._align(seg_preds.softmax(1), rois)
        mask_preds = self.mask_head(t)(torch.cat([enhanced, aligned], 1))
        # Eq. 5.
        # Half precision would move boxes by whole pixels.
        masks = _full(mask_preds[torch.arange(len(labels), device=labels.device), labels]).sigmoid()
        if self.canvas_weight == "score":
            masks = masks * scores.detach().to(masks)[:, None, None]
        canvas = roi_flatten(
            masks,
            rois.to(masks),
            labels,
            self.num_things_classes,
            len(sem_feats),
            tuple(sem_feats.shape[-2:]),
            SPATIAL_SCALE,
        )
        # Eq. 6.
        semantic_head = self.semantic_heads[min(t, len(self.semantic_heads)) - 1]
        return mask_preds, semantic_head(canvas, sem_feats)


def _full(values: Tensor) -> Tensor:
    """Values of half precision in full precision, others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
