"""Mask AP, boundary AP and boundary F-score of COCO results, without a runner or a model.

**Mask AP** is COCO's, **boundary AP** that of Cheng et al. 2021: the same with the smaller of mask
IoU and Boundary IoU in place of the mask IoU (the mask IoU alone against crowds). Both are computed
by faster-coco-eval.

**AF** is the figure of BPR's tables, taken over from PolyTransform (Liang et al. 2020): the
boundary F-score at 1 px of the true positives, averaged over the IoU thresholds. More is not known
here, and no code that computes it for instances was found; BPR's authors told that they used
SegFix's code for the F-score, which descends from that of DAVIS. So it is fixed here:

1. Detections are matched as COCO matches them for mask AP: image by image and class by class, in
   the order of their scores, the best ``max_dets`` of each image and class, each with the free
   ground truth of the highest mask IoU, once for every threshold 0.50:0.05:0.95.
2. A true positive is a detection with its ground truth at one threshold. A detection that went to
   a crowd is none. False positives and missed ground truth do not count: AF says how well the
   things that were found are outlined, AP how many were found.
3. Each true positive has the F of :func:`mmdet_plus.evaluation.boundary_f.boundary_f`: precision
   is the share of predicted boundary pixels that have a ground-truth boundary pixel within
   ``boundary_tolerance`` (Euclidean), recall the other way, F = 2PR / (P + R), 0 without a hit.
   DAVIS's boundary map differs a little: it lies between a pixel and its right and lower
   neighbours, depends on which way up the mask is, and leaves out the image's border.
4. AF is the mean over all true positives of all thresholds together, so that a detection of IoU
   0.82 counts seven times. With ``class_average`` it is the mean of the classes' own means.
5. AF_s, AF_m and AF_l are means over the true positives whose ground truth is of that size, by
   COCO's ranges of area: up to 32^2, from 32^2 to 96^2, and from 96^2 pixels.

An undefined figure is -1, as COCO's: there is no ground truth (of that size) to measure. Where
there is some and nothing is found, figures are 0.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from mmseg_plus.common.coco_checks import read_annotation_file
from mmseg_plus.common.coco_results import read_results
from mmseg_plus.common.compat import available_cores

from .boundary_f import rle_boundary_f
from .coco_records import EvaluationRecords, prepare_records

AP_ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
AF_ITEMS = ("AF", "AF_s", "AF_m", "AF_l")
IOU_THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
# COCO's, both ends included; in the order of the evaluator's fourth axis.
AREA_RANGES = {
    "": (0, 1e5**2),
    "s": (0, 32**2),
    "m": (32**2, 96**2),
    "l": (96**2, 1e5**2),
}
# More are of little use and cost memory.
_MOST_THREADS = 4


class TruePositives(NamedTuple):
    """Detections that were matched at one threshold or more, N in all.

    Attributes:
        category: (N,) int64, position of the class.
        area: (N,) float64, area of the ground truth in pixels.
        thresholds: (N,) int64, at how many thresholds the pair matched.
        f_score: (N,) float64 in [0, 1].
    """

    category: np.ndarray
    area: np.ndarray
    thresholds: np.ndarray
    f_score: np.ndarray


def evaluate_results(
    ann_file: str, results: str | Sequence[dict], **options: Any
) -> dict[str, float]:
    """Evaluate COCO results against a ground-truth file.

    Args:
        ann_file: A COCO instances JSON.
        results: A COCO results JSON, or its records.
        options: As for :func:`evaluate_masks`.

    Returns:
        Figures by name, as of :func:`evaluate_masks`.

    Raises:
        UserError: A file is not there or cannot be used, or a record in it; the message names it.
    """
    content = read_annotation_file(ann_file, ann_file, ("images", "annotations", "categories"))
    source = "detections"
    if isinstance(results, str | Path):
        source = str(results)
        results = read_results(source)
    return evaluate_masks(content, results, sources=(ann_file, source), **options)


def evaluate_masks(
    coco_gt: dict | COCO,
    detections: Sequence[dict],
    *,
    img_ids: Collection | None = None,
    cat_ids: Sequence | None = None,
    max_dets: int = 100,
    iou_thrs: Sequence[float] = IOU_THRESHOLDS,
    boundary_dilation_ratio: float = 0.02,
    boundary_tolerance: float = 1.0,
    class_average: bool = False,
    items: Collection[str] = (*AP_ITEMS, *AF_ITEMS),
    classwise: bool = False,
    areas_from_masks: bool = False,
    sources: tuple[str, str] = ("ground truth", "detections"),
) -> dict[str, float]:
    """Compute mask AP, boundary AP and AF; the protocol is that of the module's docstring.

    Args:
        coco_gt: A COCO data set: its content, or an index of it (pycocotools', faster-coco-eval's
            or mmdet's ``COCO``). Masks as polygons or RLEs, crowds by ``iscrowd``. Not changed.
        detections: COCO results with ``image_id``, ``category_id``, ``score`` and an RLE as
            ``segmentation``. The size of a detection is its mask's area, whatever its box. Not
            changed.
        img_ids: Images to evaluate, all by default; detections on others are left out.
        cat_ids: Classes to evaluate, all by default.
        max_dets: Detections that count per image and class, best first.
        iou_thrs: IoU thresholds.
        boundary_dilation_ratio: Width of the boundary region of boundary AP, as a share of the
            image's diagonal; at least 1 px.
        boundary_tolerance: Distance in pixels up to which boundary pixels of AF meet.
        class_average: Whether AF is averaged within each class first.
        items: Which figures, of ``AP_ITEMS`` and ``AF_ITEMS``.
        classwise: Whether to add the classes' own figures, ``{name}_precision`` (mask AP),
            ``{name}_boundary_precision`` and ``{name}_AF``.
        areas_from_masks: Whether the sizes of ground truth are counted from the masks, for records
            that know no better ones; ``area`` of the record otherwise.
        sources: What to call ground truth and detections in messages, such as their files.

    Returns:
        Shares in [0, 1], or -1 where undefined, by name: ``segm_mAP``, ``segm_mAP_50`` and so on,
        ``boundary_mAP`` and so on, ``AF``, ``AF_s``, ``AF_m``, ``AF_l``.

    Raises:
        UserError: A record cannot be used; the message names it and its image.
        ValueError: An argument is out of range.
    """
    check_options(
        max_dets=max_dets,
        iou_thrs=iou_thrs,
        boundary_dilation_ratio=boundary_dilation_ratio,
        boundary_tolerance=boundary_tolerance,
        items=items,
    )
    records = prepare_records(coco_gt, detections, img_ids, cat_ids, areas_from_masks, sources)
    thresholds = np.asarray(iou_thrs, np.float64)
    wants_ap, wants_af = bool(set(items) & {*AP_ITEMS}), bool(set(items) & {*AF_ITEMS})
    figures: dict[str, float] = {}
    columns: dict[str, list[float]] = {}

    segm = _run(records, "segm", thresholds, max_dets)
    if wants_ap:
        boundary = _run(records, "boundary", thresholds, max_dets, boundary_dilation_ratio)
        for name, evaluator in (("segm", segm), ("boundary", boundary)):
            precision = evaluator.eval["precision"]
            for item in AP_ITEMS:
                if item in items:
                    figures[f"{name}_{item}"] = _ap(precision, thresholds, item)
            columns["precision" if name == "segm" else "boundary_precision"] = [
                _mean(precision[:, :, k, 0, -1]) for k in range(len(records.category_names))
            ]
    if wants_af:
        pairs = _true_positives(records, segm.ious, thresholds, max_dets, boundary_tolerance)
        truth = [ann for ann in records.gt.dataset["annotations"] if not ann["iscrowd"]]
        for item in AF_ITEMS:
            if item in items:
                classes = _af(pairs, truth, item, len(records.category_names))
                figures[item] = classes.average if class_average else classes.pooled
        columns["AF"] = _af(pairs, truth, "AF", len(records.category_names)).by_class
    if classwise:
        for k, name in enumerate(records.category_names):
            figures.update({f"{name}_{column}": values[k] for column, values in columns.items()})
    return figures


def check_options(
    *,
    max_dets: int,
    iou_thrs: Sequence[float],
    boundary_dilation_ratio: float,
    boundary_tolerance: float,
    items: Collection[str],
    **_: object,
) -> None:
    """Make sure that options of :func:`evaluate_masks` are in their ranges; takes all of them.

    Raises:
        ValueError: One is not; the message names it.
    """
    unknown = sorted(set(items) - {*AP_ITEMS, *AF_ITEMS})
    if unknown:
        raise ValueError(f"items: {unknown} are not among {[*AP_ITEMS, *AF_ITEMS]}")
    if max_dets < 1:
        raise ValueError(f"max_dets: {max_dets!r} is not 1 or more")
    if not len(iou_thrs) or not all(0 < threshold <= 1 for threshold in iou_thrs):
        raise ValueError(f"iou_thrs: {list(iou_thrs)} are not one or more thresholds in (0, 1]")
    if not 0 < boundary_dilation_ratio < 1:
        raise ValueError(f"boundary_dilation_ratio: {boundary_dilation_ratio!r} is not in (0, 1)")
    if not (math.isfinite(boundary_tolerance) and boundary_tolerance >= 0):
        raise ValueError(
            f"boundary_tolerance: {boundary_tolerance!r} is not a distance in pixels, 0 or more"
        )


def match_as_coco(
    ious: np.ndarray, crowd: Sequence[bool], thresholds: Sequence[float]
) -> np.ndarray:
    """Match the detections of one image and class with its ground truth, as COCO does.

    One after the other, best score first, a detection takes what has the highest IoU of the ground
    truth that is still free, and where no such is left, of the crowds, which are always free. Of
    equal ones it takes the last.

    Args:
        ious: (D, G) IoUs, detections in the order of their scores; intersection over the
            detection's area for crowds.
        crowd: (G,) which ground truth is a crowd.
        thresholds: (T,) smallest IoUs of a match.

    Returns:
        (T, D) int64 positions of ground truth; -1 where a detection has no match.
    """
    matches = np.full((len(thresholds), len(ious)), -1, np.int64)
    limits = [min(threshold, 1 - 1e-10) for threshold in thresholds]
    taken: list[set[int]] = [set() for _ in limits]
    row, column = np.nonzero(ious >= min(limits))
    is_crowd = np.asarray(crowd, bool)
    order = np.lexsort((-column, -ious[row, column], is_crowd[column], row))
    candidates: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for d, g in zip(row[order].tolist(), column[order].tolist(), strict=True):
        candidates[d].append((float(ious[d, g]), g))
    for d, choice in candidates.items():
        for t, limit in enumerate(limits):
            for iou, g in choice:
                if iou >= limit and (is_crowd[g] or g not in taken[t]):
                    matches[t, d] = g
                    taken[t].add(g)
                    break
    return matches


def _true_positives(
    records: EvaluationRecords, ious: dict, thresholds: np.ndarray, max_dets: int, tolerance: float
) -> TruePositives:
    """Match with the evaluator's own IoUs and compute each pair's F-score once."""
    truths, founds = _by_image_and_class(records.gt), _by_image_and_class(records.dt)
    rows = []
    for key, truth in truths.items():
        found = founds.get(key)
        if not found:
            continue
        found = sorted(found, key=lambda ann: -ann["score"])[:max_dets]
        table = np.asarray(ious[key], np.float64)
        if table.shape != (len(found), len(truth)):
            raise RuntimeError(
                f"faster-coco-eval gave IoUs of shape {table.shape} for {len(found)} detections "
                f"and {len(truth)} annotations; this version is not supported"
            )
        crowd = [bool(ann["iscrowd"]) for ann in truth]
        matches = match_as_coco(table, crowd, thresholds)
        hit = (matches >= 0) & ~np.array(crowd)[matches]
        detection = np.broadcast_to(np.arange(len(found)), matches.shape)[hit]
        codes, counts = np.unique(detection * len(truth) + matches[hit], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            d, g = divmod(code, len(truth))
            f_score = rle_boundary_f(found[d]["segmentation"], truth[g]["segmentation"], tolerance)
            rows.append((truth[g]["category_id"] - 1, truth[g]["area"], count, f_score))
    category, area, count, f_score = zip(*rows, strict=True) if rows else ((), (), (), ())
    return TruePositives(
        np.array(category, np.int64),
        np.array(area, np.float64),
        np.array(count, np.int64),
        np.array(f_score, np.float64),
    )


def _by_image_and_class(index: COCO) -> dict[tuple[int, int], list[dict]]:
    groups = defaultdict(list)
    for ann in index.dataset["annotations"]:
        groups[ann["image_id"], ann["category_id"]].append(ann)
    return groups


class _AF(NamedTuple):
    pooled: float
    average: float
    by_class: list[float]


def _af(pairs: TruePositives, truth: Sequence[dict], item: str, num_classes: int) -> _AF:
    """Average F-scores of one range of sizes."""
    low, high = AREA_RANGES[item.partition("_")[2]]
    inside = (pairs.area >= low) & (pairs.area <= high)
    category, weight = pairs.category[inside], pairs.thresholds[inside]
    total = np.bincount(category, weight * pairs.f_score[inside], num_classes)
    count = np.bincount(category, weight, num_classes)
    defined = np.zeros(num_classes, bool)
    defined[[ann["category_id"] - 1 for ann in truth if low <= ann["area"] <= high]] = True
    by_class = np.where(defined, total / np.maximum(count, 1), -1)
    pooled = float(total.sum() / max(count.sum(), 1)) if defined.any() else -1.0
    return _AF(pooled, _mean(by_class), by_class.tolist())


def _ap(precision: np.ndarray, thresholds: np.ndarray, item: str) -> float:
    """One of COCO's figures out of (T, R, K, A, M) precisions."""
    which = item.partition("_")[2]
    if which.isdigit():
        at = np.isclose(thresholds, int(which) / 100)
        return _mean(precision[at, :, :, 0, -1])
    return _mean(precision[:, :, :, list(AREA_RANGES).index(which), -1])


def _mean(values: np.ndarray) -> float:
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0


def _run(
    records: EvaluationRecords,
    iou_type: str,
    thresholds: np.ndarray,
    max_dets: int,
    dilation_ratio: float = 0.02,
) -> COCOeval_faster:
    evaluator = COCOeval_faster(
        records.gt,
        records.dt,
        iou_type,
        print_function=_say_nothing,
        boundary_dilation_ratio=dilation_ratio,
        boundary_cpu_count=min(available_cores(), _MOST_THREADS),
    )
    evaluator.params.imgIds = list(range(1, records.num_images + 1))
    evaluator.params.catIds = list(range(1, len(records.category_names) + 1))
    evaluator.params.maxDets = [max_dets]
    evaluator.params.iouThrs = thresholds
    evaluator.params.areaRng = [list(area) for area in AREA_RANGES.values()]
    evaluator.params.areaRngLbl = ["all", "small", "medium", "large"]
    evaluator.evaluate()
    evaluator.accumulate()
    return evaluator


def _say_nothing(*_: object) -> None:
    pass
