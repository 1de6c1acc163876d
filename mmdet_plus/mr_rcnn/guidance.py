"""The mathematics of MR R-CNN around its heads, as free functions.

Shape letters: K RoIs, C foreground classes (background is class C), M x M mask of a RoI.
"""

from mmdet.models.layers import multiclass_nms
from mmdet.models.task_modules.assigners import AssignResult
from torch import Tensor, nn


def guidance_classes(labels: Tensor, cls_score: Tensor) -> Tensor:
    """Give every RoI a foreground class to take its mask from (section 3.3, Training).

    Args:
        labels: (K,) assigned classes, C for background.
        cls_score: (K, C + 1) logits of the vanilla box head.

    Returns:
        (K,) in [0, C): the label, or for background the pseudo label, which is the foreground
        class of the largest score.
    """
    num_classes = cls_score.shape[1] - 1
    return labels.where(labels < num_classes, cls_score[:, :num_classes].argmax(1))


def average_scores(vanilla: Tensor, refining: Tensor, alpha: float) -> Tensor:
    """S = (S^b + alpha S^r) / (1 + alpha) of section 3.3, Inference: logits, any shape."""
    return (vanilla + alpha * refining) / (1 + alpha)


def class_probability(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """P: the sigmoid of each RoI's channel of its class, (K, C or 1, M, M) -> (K, M, M)."""
    if mask_logits.shape[1] == 1:
        return mask_logits[:, 0].sigmoid()
    channel = classes.view(-1, 1, 1, 1).expand(-1, 1, *mask_logits.shape[2:])
    return mask_logits.gather(1, channel)[:, 0].sigmoid()


def run_with_conv_features(mask_head: nn.Module, mask_feats: Tensor) -> tuple[Tensor, Tensor]:
    """Run a mask head and keep what its last convolution before upsampling gives.

    Args:
        mask_head: mmdet's ``FCNMaskHead`` or a head that extends it.
        mask_feats: F_B, (K, channels, 14, 14).

    Returns:
        Mask logits (K, C, M, M), and the features that F^- is made of (Eq. 6).
    """
    kept = []
    hook = mask_head.convs[-1].register_forward_hook(lambda *call: kept.append(call[-1]))
    try:
        return mask_head(mask_feats), kept[0]
    finally:
        hook.remove()


def select_by_class(boxes: Tensor, scores: Tensor, cfg: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Class-wise threshold and NMS, keeping track of the rows.

    Args:
        boxes: (K, 4), or (K, 4 C) with a box per class.
        scores: (K, C + 1) probabilities, background last.
        cfg: ``score_thr``, ``nms`` and ``max_per_img``.

    Returns:
        ``dets`` (n, 5) boxes with scores, best first, ``labels`` (n,) and ``rows`` (n,), the row
        that each came from.
    """
    if len(boxes) == 0:
        boxes = boxes[:, :4]  # mmdet cannot tell the classes of no box per class
    dets, labels, flat = multiclass_nms(
        boxes, scores, cfg["score_thr"], cfg["nms"], cfg["max_per_img"], return_inds=True
    )
    return dets, labels, flat // (scores.shape[1] - 1)


def inherited_assignment(
    gt_inds: Tensor, gt_labels: Tensor, num_negatives: int, boxes: Tensor
) -> AssignResult:
    """The first assignment, positives first, carried over to the boxes regressed from its RoIs.

    Args:
        gt_inds: (P,) ground truth of the positive RoIs, from 0.
        gt_labels: (P,) their classes.
        num_negatives: Q.
        boxes: (P + Q, 4). A positive whose box has lost a side is left out: no deltas lead from
            it to its ground truth.

    Returns:
        In mmdet's form: 0 is background, -1 is left out, i + 1 is ground truth i.
    """
    num_positives = len(gt_inds)
    assigned = gt_inds.new_zeros(num_positives + num_negatives)
    assigned[:num_positives] = gt_inds + 1
    labels = gt_labels.new_full((len(assigned),), -1)
    labels[:num_positives] = gt_labels
    sides = boxes[:, 2:] - boxes[:, :2]
    assigned[(assigned > 0) & (sides.amin(1) < 1)] = -1
    num_gts = int(gt_inds.max()) + 1 if num_positives else 0
    return AssignResult(num_gts, assigned, max_overlaps=None, labels=labels)
