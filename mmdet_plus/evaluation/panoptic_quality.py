"""Panoptic quality on arrays: segments of two id maps are matched and counted.

The rules are those of panopticapi (Kirillov et al. 2019, *Panoptic Segmentation*, section 4, and
what its code adds for void and crowds):

1. The IoU of a predicted and a true segment is intersection / (predicted area + true area -
   intersection - predicted pixels on void). Void are the pixels of ground truth with id 0. Pixels
   with an id that the ground truth does not list are no void; they belong to no segment. Areas
   are counted in the maps. (panopticapi takes true areas from the JSON, unseen: where they are
   wrong its IoU is, and may be above 1.)
2. The two match if their category is the same, the true one is no crowd and the IoU is above 0.5.
   So each has at most one match: a true positive.
3. A true segment without a match is a false negative, unless it is a crowd.
4. A predicted segment without a match is a false positive, unless more than half of its pixels lie
   on void or on the crowd of its category (the last one listed, if there are several).

Per category, PQ is the sum of the matches' IoU over TP + FP/2 + FN/2, SQ the mean IoU of the
matches (0 without one) and RQ TP over that same sum; PQ = SQ x RQ. The figures of a group are means
over its categories that occur in ground truth or predictions at all.

All of it follows from the areas of the pairs (true id, predicted id), which
:func:`mmplus_ops.pair_areas` counts.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from terminaltables import AsciiTable
from torch import Tensor

from mmplus_ops import pair_areas
from mmseg_plus.common.coco_checks import CROWD_FLAGS, raise_faults

VOID = 0


class Segments(NamedTuple):
    """The segments that an id map is said to have.

    Attributes:
        ids: (N,) int64 above 0, all different.
        categories: (N,) int64.
        crowd: (N,) bool, or None where there are no crowds.
        areas: (N,) pixels as the records say, or None. Only :func:`contradictions` looks at them;
            what counts are the map's pixels.
    """

    ids: np.ndarray
    categories: np.ndarray
    crowd: np.ndarray | None = None
    areas: np.ndarray | None = None


@dataclass(frozen=True)
class Overlaps:
    """Areas of all pairs of a true and a predicted id that share pixels.

    Attributes:
        gt_ids: (K,) int64.
        pred_ids: (K,) int64. A pair may occur more than once, its area is the sum.
        areas: (K,) int64, pixels.
    """

    gt_ids: np.ndarray
    pred_ids: np.ndarray
    areas: np.ndarray

    @cached_property
    def gt_areas(self) -> dict[int, int]:
        """Pixels of each true id."""
        return _sums(self.gt_ids, self.areas)

    @cached_property
    def pred_areas(self) -> dict[int, int]:
        """Pixels of each predicted id."""
        return _sums(self.pred_ids, self.areas)


class Counts(NamedTuple):
    """What panoptic quality needs to know of a category.

    Attributes:
        tp: Matched pairs.
        fp: Predicted segments without a match.
        fn: True segments without a match.
        iou: Sum of the IoUs of the matched pairs.
    """

    tp: int
    fp: int
    fn: int
    iou: float


def pq_statistics(
    gt: np.ndarray,
    pred: np.ndarray,
    gt_segments: Sequence[Mapping[str, Any]],
    pred_segments: Sequence[Mapping[str, Any]],
) -> dict[int, Counts]:
    """Match and count the segments of one image, see the module's docstring.

    Args:
        gt: (H, W) whole numbers, the ids of the ground truth; 0 = void.
        pred: (H, W) whole numbers, the predicted ids; 0 = no segment.
        gt_segments: COCO's records: ``id``, ``category_id`` and, if there are such, ``iscrowd``.
            An ``area`` is not read: pixels are counted in the map.
        pred_segments: ``id`` and ``category_id``.

    Returns:
        Counts of the categories that have any, by category id.

    Raises:
        ValueError: The maps differ in shape, predicted map and records contradict each other, or a
            true record has an ``iscrowd`` that is neither 0 nor 1.
    """
    overlaps = overlap_areas(gt, pred)
    raise_faults("ground truth", _crowd_faults(gt_segments))
    found = segments_of(pred_segments)
    raise_faults("predictions", contradictions(overlaps.pred_areas, found))
    return count_segments(overlaps, segments_of(gt_segments), found)


def _crowd_faults(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for record in records:
        crowd = record.get("iscrowd", 0)
        if crowd not in CROWD_FLAGS:
            yield f"segment {record['id']}: iscrowd {crowd!r} must be the number 0 or 1 (a crowd)"


def segments_of(records: Sequence[Mapping[str, Any]]) -> Segments:
    """COCO's ``segments_info`` as arrays; areas only where all records have one."""
    ids = np.array([record["id"] for record in records], np.int64)
    categories = np.array([record["category_id"] for record in records], np.int64)
    crowd = np.array([record.get("iscrowd", 0) == 1 for record in records], bool)
    areas = None
    if all("area" in record for record in records):
        areas = np.array([record["area"] for record in records])
    return Segments(ids, categories, crowd, areas)


def overlap_areas(gt: np.ndarray | Tensor, pred: np.ndarray | Tensor) -> Overlaps:
    """Count the pixels of all pairs of ids.

    Args:
        gt: (H, W) whole numbers in [0, 2^31), or a map as :func:`mmplus_ops.pair_areas` takes it.
        pred: Likewise.

    Returns:
        The pairs that occur, each once, sorted by true id, then by predicted id.

    Raises:
        ValueError: The shapes differ, or an id is out of range.
    """
    first, second = (
        x if isinstance(x, Tensor) else torch.from_numpy(_as_int32(x)) for x in (gt, pred)
    )
    if first.dtype == second.dtype and first.shape != second.shape:
        raise ValueError(f"id maps of one image have one size, not {gt.shape} and {pred.shape}")
    pairs, areas = pair_areas(first, second)
    gt_ids, pred_ids = pairs.numpy().T
    for ids in (gt_ids, pred_ids):
        _check_range(ids)
    return Overlaps(gt_ids, pred_ids, areas.numpy())


def _as_int32(ids: np.ndarray) -> np.ndarray:
    """The ids as they are counted: in memory of their own that torch may have."""
    if ids.dtype.itemsize >= 4 and ids.dtype != np.int32:
        # As 32 bits they would be others.
        _check_range(ids)
    return np.require(ids, np.int32, ["C", "W"])


def _check_range(ids: np.ndarray) -> None:
    if not ids.size:
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= 2**31:
        raise ValueError(f"ids must be in [0, 2^31), found {low} to {high}")


def contradictions(pixels: Mapping[int, int], listed: Segments) -> Iterator[str]:
    """Where an id map and the records of its segments do not agree.

    Args:
        pixels: Of each id in the map.
        listed: The records. Their areas are compared if they are there.

    Yields:
        Descriptions of faults, each with its mend.
    """
    records = listed.ids.tolist()
    told = [None] * len(records) if listed.areas is None else listed.areas.tolist()
    for ident in sorted(pixels.keys() - set(records) - {VOID}):
        yield (
            f"segment {ident} ({pixels[ident]} pixels) is in the PNG but not in `segments_info`; "
            "list it there, or give its pixels the id 0, void. Ids in a PNG are "
            "R + 256 G + 65536 B"
        )
    for ident, area in zip(records, told, strict=True):
        if ident not in pixels:
            yield (
                f"segment {ident} is in `segments_info` but has no pixel in the PNG; remove it. "
                "Ids in a PNG are R + 256 G + 65536 B"
            )
        elif area is not None and area != pixels[ident]:
            yield (
                f"segment {ident} has the area {area} in `segments_info` but {pixels[ident]} "
                "pixels in the PNG; write that number (was the PNG resized?)"
            )


def count_segments(overlaps: Overlaps, truth: Segments, found: Segments) -> dict[int, Counts]:
    """Match and count the segments of one image from the areas of their pairs.

    Args:
        overlaps: Areas of the pairs.
        truth: True segments.
        found: Predicted segments, each with pixels; their areas are those of the map.

    Returns:
        Counts of the categories that have any.
    """
    true_categories = dict(zip(truth.ids.tolist(), truth.categories.tolist(), strict=True))
    found_categories = dict(zip(found.ids.tolist(), found.categories.tolist(), strict=True))
    crowds = [] if truth.crowd is None else truth.ids[truth.crowd].tolist()
    crowd_of = {true_categories[crowd]: crowd for crowd in crowds}

    # Not the records' areas, which panopticapi takes: one too small makes an IoU above 1.
    true_areas, found_areas = overlaps.gt_areas, overlaps.pred_areas
    # Pixels of pairs of one category; of predicted segments on void.
    shared, on_void = defaultdict(int), defaultdict(int)
    columns = (overlaps.gt_ids, overlaps.pred_ids, overlaps.areas)
    for gt, pred, area in zip(*(column.tolist() for column in columns), strict=True):
        if gt == VOID:
            on_void[pred] += area
        elif pred in found_categories and true_categories.get(gt) == found_categories[pred]:
            shared[gt, pred] += area

    tp, fp, fn = Counter(), Counter(), Counter()
    total = defaultdict(float)
    done, matched = set(crowds), set()
    for (gt, pred), area in shared.items():
        iou = area / (found_areas[pred] + true_areas[gt] - area - on_void[pred])
        if iou > 0.5 and gt not in crowds:
            category = true_categories[gt]
            tp[category] += 1
            total[category] += iou
            done.add(gt)
            matched.add(pred)
    for gt, category in true_categories.items():
        if gt not in done:
            fn[category] += 1
    for pred, category in found_categories.items():
        on_crowd = shared.get((crowd_of.get(category), pred), 0)
        if pred not in matched and (on_void[pred] + on_crowd) / found_areas[pred] <= 0.5:
            fp[category] += 1
    return {
        category: Counts(tp[category], fp[category], fn[category], total[category])
        for category in sorted(tp.keys() | fp.keys() | fn.keys())
    }


def _sums(ids: np.ndarray, areas: np.ndarray) -> dict[int, int]:
    total: dict[int, int] = defaultdict(int)
    for ident, area in zip(ids.tolist(), areas.tolist(), strict=True):
        total[ident] += area
    return total


def add_counts(parts: Iterable[Mapping[int, Counts]]) -> dict[int, Counts]:
    """Add up the counts of several images, by category."""
    total: dict[int, Counts] = {}
    for part in parts:
        for category, counts in part.items():
            before = total.get(category, Counts(0, 0, 0, 0.0))
            total[category] = Counts(*(a + b for a, b in zip(before, counts, strict=True)))
    return total


def category_quality(counts: Counts | None) -> dict[str, float] | None:
    """PQ, SQ and RQ of a category, shares in [0, 1]; None for one that does not occur."""
    if counts is None or not counts.tp + counts.fp + counts.fn:
        return None
    segments = counts.tp + counts.fp / 2 + counts.fn / 2
    return {
        "PQ": counts.iou / segments,
        "SQ": counts.iou / counts.tp if counts.tp else 0.0,
        "RQ": counts.tp / segments,
    }


def panoptic_figures(
    counts: Mapping[int, Counts], things: Collection[int], stuff: Collection[int]
) -> dict[str, float]:
    """Average PQ, SQ and RQ over the categories.

    Args:
        counts: Counts over all images.
        things: Ids of the thing categories.
        stuff: Ids of the stuff categories.

    Returns:
        ``PQ``, ``SQ``, ``RQ``, and the three with ``_th`` (things) and ``_st`` (stuff), in percent;
        -1 where no category of the group occurs.
    """
    figures = {}
    for suffix, group in (("", [*things, *stuff]), ("_th", things), ("_st", stuff)):
        qualities = [category_quality(counts.get(category)) for category in group]
        present = [quality for quality in qualities if quality is not None]
        for name in ("PQ", "SQ", "RQ"):
            total = sum(quality[name] for quality in present)
            figures[name + suffix] = 100 * total / len(present) if present else -1.0
    return figures


def group_table(figures: Mapping[str, float], things: int, stuff: int) -> str:
    """Lay out the figures of all classes, things and stuff, and how many of each occur."""
    rows = [["", "PQ", "SQ", "RQ", "categories"]]
    groups = (("All", "", things + stuff), ("Things", "_th", things), ("Stuff", "_st", stuff))
    for name, suffix, number in groups:
        own = [f"{figures[figure + suffix]:.3f}" for figure in ("PQ", "SQ", "RQ")]
        rows.append([name, *own, number])
    return AsciiTable(rows).table


def class_table(counts: Mapping[str, Counts | None]) -> str:
    """Lay out the figures of each class; "-" where it does not occur."""
    rows = [["category", "PQ", "SQ", "RQ", "TP", "FP", "FN"]]
    for name, own in counts.items():
        quality = category_quality(own)
        figures = ["-"] * 3 if quality is None else [f"{100 * v:.3f}" for v in quality.values()]
        rows.append([name, *figures, *(map(str, own[:3]) if own else "000")])
    return AsciiTable(rows).table
