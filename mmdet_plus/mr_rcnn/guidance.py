"""The mathematics of MR R-CNN around its heads, as free functions.

Shape letters: K RoIs, C foreground classes (background is class C), M x M mask of a RoI.
"""

import torch
from mmcv.ops import batched_nms
from mmdet.models.layers import multiclass_nms
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.task_modules.assigners import AssignResult
from torch import Tensor


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
    """S = (S^b + alpha S^r) / (1 + alpha) of section 3.3, Inference: logits, alpha >= 0."""
    return (vanilla + alpha * refining) / (1 + alpha)


def class_probability(mask_logits: Tensor, classes: Tensor) -> Tensor:
    """P: the sigmoid of each RoI's channel of its class, (K, C or 1, M, M) -> (K, M, M)."""
    if mask_logits.shape[1] == 1:
        return mask_logits[:, 0].sigmoid()
    channel = classes.view(-1, 1, 1, 1).expand(-1, 1, *mask_logits.shape[2:])
    return mask_logits.gather(1, channel)[:, 0].sigmoid()


def conv_features(mask_head: FCNMaskHead, mask_feats: Tensor) -> Tensor:
    """What the last convolution before upsampling gives; F^- is made of it (Eq. 6).

    Args:
        mask_head: The vanilla mask head.
        mask_feats: F_B, (K, in_channels, 14, 14).

    Returns:
        (K, conv_out_channels, 14, 14).
    """
    for conv in mask_head.convs:
        mask_feats = conv(mask_feats)
    return mask_feats


def mask_logits(mask_head: FCNMaskHead, features: Tensor) -> Tensor:
    """The rest of the mask head: its logits (K, C, M, M) from its :func:`conv_features`.

    A head that does more there than ``FCNMaskHead`` says what, as a method ``predict_logits``.
    """
    if hasattr(mask_head, "predict_logits"):
        return mask_head.predict_logits(features)
    if mask_head.upsample is not None:
        features = mask_head.upsample(features)
        if mask_head.upsample_method == "deconv":
            features = mask_head.relu(features)
    return mask_head.conv_logits(features)


def select_candidates(boxes: Tensor, scores: Tensor, cfg: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of a RoI and a class that pass a threshold and class-wise NMS.

    Args:
        boxes: (K, 4 C) with a box per class, or (K, 4).
        scores: (K, C + 1) probabilities, background last.
        cfg: ``score_thr``, ``nms`` and ``max_per_img``.

    Returns:
        Boxes (n, 4), best first, classes (n,) and ``rows`` (n,), the RoI that each came from.
    """
    dets, classes, flat = multiclass_nms(
        boxes, scores, cfg["score_thr"], cfg["nms"], cfg["max_per_img"], return_inds=True
    )
    return dets[:, :4], classes, flat // (scores.shape[1] - 1)


def select_detections(
    boxes: Tensor, scores: Tensor, classes: Tensor, cfg: dict
) -> tuple[Tensor, Tensor]:
    """Candidates that pass the final threshold and class-wise NMS, each in its class alone.

    Args:
        boxes: (n, 4).
        scores: (n,) probabilities of the candidates' classes.
        classes: (n,).
        cfg: ``score_thr``, ``nms`` and ``max_per_img``; all that are left where it is not positive.

    Returns:
        ``dets`` (m, 5) boxes with scores, best first, and ``rows`` (m,), the candidates they are.
    """
    rows = (scores > cfg["score_thr"]).nonzero()[:, 0]
    if len(rows) == 0:
        return torch.cat([boxes[rows], scores[rows, None]], 1), rows
    dets, kept = batched_nms(boxes[rows], scores[rows], classes[rows], cfg["nms"])
    limit = cfg["max_per_img"] if cfg["max_per_img"] > 0 else len(kept)
    return dets[:limit], rows[kept[:limit]]


def inherited_assignment(
    gt_inds: Tensor, gt_labels: Tensor, num_negatives: int, boxes: Tensor
) -> AssignResult:
    """The first assignment, positives first, carried over to the boxes regressed from its RoIs.

    Args:
        gt_inds: (P,) ground truth of the positive RoIs, from 0.
        gt_labels: (P,) their classes.
        num_negatives: Q.
        boxes: (P + Q, 4). A positive whose box has a side of 0 is left out: no deltas lead from
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
    assigned[(assigned > 0) & ~(sides.amin(1) > 0)] = -1
    num_gts = int(gt_inds.max()) + 1 if num_positives else 0
    return AssignResult(num_gts, assigned, max_overlaps=None, labels=labels)
