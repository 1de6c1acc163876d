"""How good refined patches are, beside the coarse ones: mIoU and the F-score of their boundaries.

Shape legend: B patches of one size, h and w that size in pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmseg.registry import METRICS
from torch import Tensor


@METRICS.register_module()
class BoundaryPatchMetric(BaseMetric):
    """Patch mIoU and boundary F-score of the refined patches and of the coarse ones.

    Reports, in percent, ``mIoU`` (mean over background and foreground of the IoU over the pixels of
    all patches), ``boundary_F`` (mean over patches, 1 px) and the same of the coarse masks as
    ``coarse_mIoU`` and ``coarse_boundary_F``: a refiner that is of any use is ahead of them.
    """

    default_prefix = "patch"

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch."""
        for sample in data_samples:
            target = sample["gt_sem_seg"]["data"].bool()
            refined = sample["pred_sem_seg"]["data"].to(target.device).bool()
            coarse = sample["coarse_mask"]["data"].to(target.device).bool()
            self.results.append(
                [
                    torch.cat([confusion(mask, target), boundary_f_scores(mask, target).double()])
                    .cpu()
                    .numpy()
                    for mask in (refined, coarse)
                ]
            )

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Figures in percent over all patches."""
        metrics = {}
        totals = torch.tensor([[list(row) for row in result] for result in results]).double()
        for prefix, rows in (("", totals[:, 0]), ("coarse_", totals[:, 1])):
            both, only_mask, only_target, neither = rows[:, :4].sum(0).tolist()
            wrong = only_mask + only_target
            ious = [part / max(part + wrong, 1) for part in (both, neither)]
            metrics[f"{prefix}mIoU"] = 100 * sum(ious) / 2
            metrics[f"{prefix}boundary_F"] = 100 * float(rows[:, 4].nanmean())
        return metrics


def confusion(masks: Tensor, targets: Tensor) -> Tensor:
    """Count pixels in both, in the mask alone, in the target alone, in neither.

    Args:
        masks: Bool of any shape.
        targets: Bool of the same shape.

    Returns:
        (4,) float64.
    """
    counts = [
        (masks & targets).sum(),
        (masks & ~targets).sum(),
        (~masks & targets).sum(),
        (~(masks | targets)).sum(),
    ]
    return torch.stack(counts).double()


def boundary_f_scores(masks: Tensor, targets: Tensor) -> Tensor:
    """F-scores of boundaries at 1 px, the edge of a patch not being a boundary.

    Args:
        masks: (B, h, w) bool.
        targets: (B, h, w) bool.

    Returns:
        (B,) float32 in [0, 1]; nan where neither has a boundary inside the patch.
    """
    found, true = boundaries(masks), boundaries(targets)
    hits = (found & _grow(true)).sum((1, 2)), (true & _grow(found)).sum((1, 2))
    totals = found.sum((1, 2)), true.sum((1, 2))
    precision, recall = (hit / total.clamp(min=1) for hit, total in zip(hits, totals, strict=True))
    scores = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
    return scores.where(totals[0] + totals[1] > 0, torch.nan)


def boundaries(masks: Tensor) -> Tensor:
    """Pixels of (B, h, w) bool masks that share a side with a pixel outside of the mask."""
    return masks & _grow(~masks)


def _grow(masks: Tensor) -> Tensor:
    """Add the four neighbours of each pixel."""
    padded = F.pad(masks, (1, 1, 1, 1))
    return (
        masks
        | padded[:, :-2, 1:-1]
        | padded[:, 2:, 1:-1]
        | padded[:, 1:-1, :-2]
        | padded[:, 1:-1, 2:]
    )
