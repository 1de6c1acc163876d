"""Parameters and FLOPs of two-stage detectors' mask branches, counted by mmengine's tools."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.analysis import FlopAnalyzer
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmseg_plus.common.config import read_config

from .timing import environment

_ROW = "maskplus_r50_fpn_{}360k_coco"
#: The baseline, then each technique alone, then all.
MODELS_COMPARED = (
    "mask-rcnn_r50_fpn_360k_coco",
    *(
        _ROW.format(f"{technique}_")
        for technique in (
            "contextual-fusion",
            "deconv-pyramid",
            "gcn-refinement",
            "boundary-refinement",
            "half-quasi-multitask",
            "double-quasi-multitask",
            "biased-training",
        )
    ),
    _ROW.format(""),
)


class MaskBranch(nn.Module):
    """All that a RoI head does for the masks of some RoIs, from the feature maps on.

    Args:
        roi_head: Of Mask R-CNN or Cascade Mask R-CNN, or one that extends them.
        rois: Number of RoIs, all of the first image.
    """

    def __init__(self, roi_head: nn.Module, rois: int) -> None:
        super().__init__()
        self.roi_head = roi_head
        self.rois = rois

    def forward(self, *x: Tensor) -> list[Tensor]:
        """Feature maps (1, C, Hl, Wl) -> logits of each stage."""
        head = self.roi_head
        rois = x[0].new_tensor([0, 8, 8, 104, 104]).repeat(self.rois, 1)
        if hasattr(head, "with_image_features"):
            x = head.with_image_features(x)
        if hasattr(head, "num_stages"):
            outputs = [head._mask_forward(stage, x, rois) for stage in range(head.num_stages)]
        else:
            outputs = [head._mask_forward(x, rois)]
        return [output["mask_preds"] for output in outputs]


def complexity(
    configs: Sequence[str] = MODELS_COMPARED, size: tuple[int, int] = (800, 1216), rois: int = 100
) -> dict[str, Any]:
    """Count parameters and FLOPs.

    Args:
        configs: Names or paths of configs of two-stage detectors with masks; the first is the
            baseline.
        size: Height and width of the image in pixels.
        rois: RoIs that get a mask.

    Returns:
        A record: ``environment``, ``size``, ``rois`` and ``rows`` with ``model``,
        ``parameters`` of the whole model at test, ``training_parameters`` that are there in
        training beyond those, and ``mask_flops`` of the mask branch at test (a multiplication with
        its addition counts once); those of RoIAlign are not counted.
    """
    rows = []
    for name in configs:
        cfg = read_config(name).model
        cfg.backbone.init_cfg = None
        for_training, for_test = _build(cfg), _build(dict(cfg, train_cfg=None)).eval()
        levels = [
            torch.zeros(1, for_test.neck.out_channels, -(-size[0] // s), -(-size[1] // s))
            for s in (4, 8, 16, 32, 64)
        ]
        branch = MaskBranch(for_test.roi_head, rois).eval()
        counter = FlopAnalyzer(branch, tuple(levels))
        counter.uncalled_modules_warnings(False).unsupported_ops_warnings(False)
        parameters = _parameters(for_test)
        rows.append(
            {
                "model": name,
                "parameters": parameters,
                "training_parameters": _parameters(for_training) - parameters,
                "mask_flops": int(counter.total()),
            }
        )
    return {"environment": environment(), "size": list(size), "rois": rois, "rows": rows}


def _build(cfg: dict) -> nn.Module:
    with DefaultScope.overwrite_default_scope("mmdet"):
        return MODELS.build(copy.deepcopy(cfg))


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def markdown(record: dict[str, Any]) -> str:
    """The record as a table for the documentation; the first row is the baseline."""
    first = record["rows"][0]
    lines = [
        "| model | parameters at test (M) | more | only in training (M) | mask GFLOPs | more |",
        "|---|---|---|---|---|---|",
    ]
    for row in record["rows"]:
        millions = row["parameters"] / 1e6
        giga = row["mask_flops"] / 1e9
        more = (row["parameters"] - first["parameters"]) / 1e6
        flops = (row["mask_flops"] - first["mask_flops"]) / 1e9
        extra = row["training_parameters"] / 1e6
        lines.append(
            f"| {row['model']} | {millions:.2f} | {more:+.2f} | {extra:.2f} | "
            f"{giga:.1f} | {flops:+.1f} |"
        )
    return "\n".join(lines) + "\n"
