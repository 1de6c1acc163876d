"""Speed of panoptic evaluation beside panopticapi's and mmdet's, on one thread.

All count the same perturbed predictions, and the record is only made if the counts agree. Times are
the processor's own, of this process: some milliseconds would else tell more of the machine's load.
"""

import importlib
import io
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple
from unittest.mock import patch

import cv2
import numpy as np
import torch
from mmdet.evaluation import CocoPanopticMetric
from mmdet.evaluation.functional import INSTANCE_OFFSET
from torch import Tensor

from mmdet_plus.datasets import make_shapes
from mmdet_plus.datasets.checked_coco import CheckedCOCOPanoptic
from mmdet_plus.evaluation.id_maps import encode_id_map, read_id_map
from mmdet_plus.evaluation.panoptic_files import count_image
from mmdet_plus.evaluation.panoptic_metric import PanopticMetric
from mmdet_plus.evaluation.panoptic_quality import Counts, add_counts
from mmseg_plus.common.coco_checks import read_annotation_file
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import write_json

from .ops import Case, use_threads
from .timing import environment

_IMAGES_IN_A_ROW = 20


def _panopticapi() -> Any:
    """The module that is compared with; nothing else of the package needs it."""
    try:
        return importlib.import_module("panopticapi.evaluation")
    except ImportError as error:
        raise UserError(
            f"the benchmark compares with panopticapi ({error}): pip install --no-deps "
            "panopticapi-lite"
        ) from error


def perturb(gt: np.ndarray, segments: Sequence[dict], seed: int) -> tuple[np.ndarray, list[dict]]:
    """Make a prediction out of ground truth: outlines astray by some pixels, segments confused.

    Of ten segments about one is missing, one of another's category, one in two parts and one joined
    with another. Void is covered by what lies on the image's other side. Colours are drawn anew.

    Args:
        gt: (H, W) ids, 0 = void.
        segments: Their records.
        seed: Of the drawing.

    Returns:
        (H, W) int64 ids and their records, ``id`` and ``category_id``.
    """
    random = np.random.default_rng(seed)
    height, width = gt.shape
    coarse = random.normal(size=(2, height // 12 + 1, width // 12 + 1)).astype(np.float32)
    dy, dx = (cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse)
    rows, columns = np.mgrid[:height, :width]
    rows = (rows + 1.5 * dy).round().astype(int).clip(0, height - 1)
    columns = (columns + 1.5 * dx).round().astype(int).clip(0, width - 1)
    moved = gt[rows, columns]
    filled = np.where(moved == 0, gt[:, ::-1], moved)
    pred, records = np.zeros((height, width), np.int64), []
    colours = random.choice(2**24 - 1, 2 * len(segments), replace=False) + 1
    for colour, part_colour, segment in zip(
        *colours.reshape(2, -1).tolist(), segments, strict=True
    ):
        mask, fate = filled == segment["id"], random.random()
        category = segment["category_id"]
        if not mask.any() or fate < 0.1:
            continue
        if fate < 0.2:
            category = segments[random.integers(len(segments))]["category_id"]
        if fate > 0.9 and records:
            pred[mask] = records[-1]["id"]
            continue
        pred[mask] = colour
        records.append(dict(id=colour, category_id=category))
        if fate > 0.8:
            mask[:, : int(np.median(mask.nonzero()[1])) + 1] = False
            if mask.any():
                pred[mask] = part_colour
                records.append(dict(id=part_colour, category_id=category))
    present = set(np.unique(pred).tolist())
    return pred, [record for record in records if record["id"] in present]


def panoptic_speed(
    images: int = 20,
    size: tuple[int, int] = (480, 640),
    repeats: int = 5,
    real: tuple[str, str] | None = None,
) -> dict[str, Any]:
    """Measure panoptic evaluation.

    Args:
        images: Of Shapes, to draw.
        size: Their height and width.
        repeats: Rounds; the median counts.
        real: A COCO panoptic JSON and the folder of its PNGs, to measure on besides.

    Returns:
        A record: ``environment``, ``threads`` and ``rows`` (data, number of images, what is
        counted, baseline, CPU seconds of both for an image, ``times_faster``).

    Raises:
        RuntimeError: A baseline counts otherwise than we do.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, use_threads(1), redirect_stdout(io.StringIO()):
        root = Path(folder, "shapes")
        make_shapes(root, num_train=1, num_val=images, image_size=size[::-1], progress=False)
        sets = {
            f"Shapes, {size[0]}x{size[1]}": (
                root / "annotations" / "panoptic_val.json",
                root / "panoptic_val",
            )
        }
        if real:
            sets[Path(real[0]).stem] = Path(real[0]), Path(real[1])
        for number, (name, files) in enumerate(sets.items()):
            rows += _measure(name, *files, Path(folder, str(number)), repeats)
        return {"environment": environment(), "threads": 1, "rows": rows}


def _measure(data: str, ann_file: Path, seg_dir: Path, folder: Path, repeats: int) -> list[dict]:
    rows = []
    for case, images in _cases(ann_file, seg_dir, folder):
        _require_same(case.ours(), case.theirs())
        times: dict[str, list[float]] = {"ours": [], "theirs": []}
        # Some images in a row, as in an evaluation: the first after the other's turn is slower.
        passes = math.ceil(_IMAGES_IN_A_ROW / images)
        for _ in range(repeats):
            times["ours"].append(_cpu_seconds(case.ours, passes) / (passes * images))
            times["theirs"].append(_cpu_seconds(case.theirs, passes) / (passes * images))
        ours, theirs = (median(seconds) for seconds in times.values())
        rows.append(
            {
                "data": data,
                "images": images,
                "name": case.name,
                "baseline": case.baseline,
                "cpu_seconds": round(ours, 6),
                "baseline_cpu_seconds": round(theirs, 6),
                "times_faster": round(theirs / ours, 2),
                "rounds": {
                    name: [round(second, 6) for second in seconds]
                    for name, seconds in times.items()
                },
            }
        )
    return rows


def _cpu_seconds(call: Callable[[], object], passes: int) -> float:
    start = time.process_time()
    for _ in range(passes):
        call()
    return time.process_time() - start


def _require_same(ours: dict[int, Counts], theirs: Any) -> None:
    expected = {
        ident: [own.tp, own.fp, own.fn, round(own.iou, 9)]
        for ident, own in theirs.pq_per_cat.items()
        if own.tp + own.fp + own.fn
    }
    found = {ident: [*own[:3], round(own.iou, 9)] for ident, own in ours.items()}
    if found != expected:
        raise RuntimeError(f"the baseline counts {expected}, we count {found}")


def _cases(ann_file: Path, seg_dir: Path, folder: Path) -> Iterator[tuple[Case, int]]:
    """What is compared, each with the number of its images."""
    maps = predict(ann_file, seg_dir, folder)
    metrics = {
        kind: kind(ann_file=str(maps.ann_file), seg_prefix=str(maps.gt_dir))
        for kind in (PanopticMetric, CocoPanopticMetric)
    }
    names = tuple(category["name"] for category in maps.truth.cats.values())
    for metric in metrics.values():
        metric.dataset_meta = dict(classes=names)

    def judge(kind: type) -> list:
        metric = metrics[kind]
        metric.results = []
        for sample, encoded in maps.samples:
            if kind is CocoPanopticMetric:
                # It writes into its input.
                encoded = encoded.clone()
            metric.process({}, [dict(sample, pred_panoptic_seg=dict(sem_seg=encoded))])
        return metric.results

    yield (
        Case(
            "predictions as a model gives them",
            "mmdet's CocoPanopticMetric (writes a PNG, reads it, counts as panopticapi)",
            lambda: add_counts(result["counts"] for result in judge(PanopticMetric)),
            lambda: sum_stats(judge(CocoPanopticMetric)),
        ),
        len(maps.samples),
    )
    for name, count in (
        ("PNGs of predictions", count_ours),
        ("PNGs of predictions, without compiled ops", _count_without_ops),
    ):
        yield (
            Case(
                name,
                "panopticapi's pq_compute_single_core",
                partial(count, maps),
                partial(count_theirs, maps),
            ),
            len(maps.samples),
        )


class Maps(NamedTuple):
    """Ground truth and predictions, as files and as data samples.

    Attributes:
        ann_file: The ground truth's JSON.
        truth: Its index.
        gt_dir: Folder of its pictures.
        pred_dir: Folder of the predicted pictures.
        predictions: Records of the predictions.
        samples: mmdet's data samples, each with its panoptic map (1, H, W).
    """

    ann_file: Path
    truth: CheckedCOCOPanoptic
    gt_dir: Path
    pred_dir: Path
    predictions: list[dict]
    samples: list[tuple[dict, Tensor]]


def predict(ann_file: Path, seg_dir: Path, folder: Path) -> Maps:
    """Perturb a data set's ground truth, and write both as PNGs.

    Args:
        ann_file: A COCO panoptic JSON.
        seg_dir: Folder of its PNGs.
        folder: Where to write to.
    """
    required = ("images", "annotations", "categories")
    content = read_annotation_file(str(ann_file), str(ann_file), required)
    categories = [category["id"] for category in content["categories"]]
    predictions, samples = [], []
    gt_dir, pred_dir = folder / "gt", folder / "pred"
    gt_dir.mkdir(parents=True)
    pred_dir.mkdir()
    for seed, ann in enumerate(content["annotations"]):
        gt = read_id_map(str(seg_dir / ann["file_name"]), ann["file_name"])
        pred, segments = perturb(gt, ann["segments_info"], seed)
        name = f"{seed:06}.png"
        shutil.copyfile(seg_dir / ann["file_name"], gt_dir / name)
        (pred_dir / name).write_bytes(encode_id_map(pred))
        ann["file_name"] = name
        for segment in ann["segments_info"]:
            segment.setdefault("iscrowd", 0)
        predictions.append(dict(image_id=ann["image_id"], file_name=name, segments_info=segments))
        encoded = np.full(gt.shape, len(categories), np.int32)
        for number, segment in enumerate(segments, 1):
            label = categories.index(segment["category_id"])
            encoded[pred == segment["id"]] = label + number * INSTANCE_OFFSET
        sample = dict(img_id=ann["image_id"], img_path=name, ori_shape=gt.shape)
        samples.append((sample, torch.from_numpy(encoded)[None]))
    path = write_json(folder / "gt.json", content)
    # mmdet's metric takes its PNGs' names from the images.
    truth = CheckedCOCOPanoptic(str(path), path.name, required)
    return Maps(path, truth, gt_dir, pred_dir, predictions, samples)


def count_ours(maps: Maps) -> dict[int, Counts]:
    """Our statistics of a data set's files."""
    return add_counts(
        count_image(maps.truth, record["image_id"], maps.gt_dir, record, maps.pred_dir)
        for record in maps.predictions
    )


def _count_without_ops(maps: Maps) -> dict[int, Counts]:
    with patch.dict(os.environ, MMPLUS_WITH_OPS="0"):
        return count_ours(maps)


def count_theirs(maps: Maps) -> Any:
    """panopticapi's statistics of a data set's files."""
    pairs = list(zip(maps.truth.dataset["annotations"], maps.predictions, strict=True))
    return _panopticapi().pq_compute_single_core(
        0, pairs, str(maps.gt_dir), str(maps.pred_dir), maps.truth.cats
    )


def sum_stats(stats: Iterable[Any]) -> Any:
    """The sum of panopticapi's statistics."""
    total = _panopticapi().PQStat()
    for stat in stats:
        total += stat
    return total


def markdown(record: dict[str, Any]) -> str:
    """The record as a table for the documentation."""
    lines = ["| data | what | ms an image | baseline | its ms | times faster |"]
    lines.append("|---|---|---|---|---|---|")
    for row in record["rows"]:
        ours, theirs = 1e3 * row["cpu_seconds"], 1e3 * row["baseline_cpu_seconds"]
        lines.append(
            f"| {row['data']}, {row['images']} images | {row['name']} | {ours:.1f} "
            f"| {row['baseline']} | {theirs:.1f} | {row['times_faster']:.1f} |"
        )
    return "\n".join(lines) + "\n"
