"""What ``tools/demo.py`` does: MR R-CNN beside Mask R-CNN on Shapes, in minutes.

As in section 4.1 of the paper, a Mask R-CNN is trained first; then both go on from its weights for
equally many iterations: Mask R-CNN as it is, MR R-CNN with its refining heads copied from it. They
see the same data with the same seed under the same schedule. All of it happens through the
commands that users have, ``tools/train.py`` and ``tools/test.py``, with configs of the zoo.

A model from scratch needs hours on Shapes to do well on new images. What minutes can show is that
it learns the few images that it trains on, so both kinds are tested and pictured.
"""

import contextlib
import io
import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine.config import resolve_config
from mmdet_plus.engine.errors import UserError
from mmdet_plus.files import write_json

from .side_by_side import (
    UNMATCHED,
    distinct_colours,
    draw_masks,
    match_masks,
    picture_grid,
    write_png,
)
from .stages import ProgressLine, Stage, only_one, run_chains

BASELINE, REFINED = "Mask R-CNN", "MR R-CNN"
_CONFIGS = {BASELINE: "mask-rcnn_r18_shapes_demo", REFINED: "mr-rcnn_r18_shapes_demo"}
# Each split is tested; the name is for people.
SPLITS = {"train": "training images", "val": "new images"}
_METRICS = tuple(f"{kind}_mAP{at}" for kind in ("bbox", "segm") for at in ("", "_50", "_75"))
_HEADS = ("box AP", "AP50", "AP75", "mask AP", "AP50", "AP75")
# The part of the iterations that the two have in common.
_COMMON = 2 / 3
_WARM_UP = 20
_OVERVIEW_BYTES = 390_000


class Settings(NamedTuple):
    """What a demo is asked for; a folder holds a demo of one kind of settings.

    Attributes:
        iterations: For each of the two models, the common ones included; at least 6.
        seed: Of the data and of the trainings.
        num_train: Training images.
        num_val: Validation images.
    """

    iterations: int
    seed: int
    num_train: int
    num_val: int


def run_demo(
    root: str | os.PathLike,
    settings: Settings,
    tools: Path,
    command: str,
    images: int = 4,
    score_thr: float = 0.5,
    line: ProgressLine | None = None,
) -> dict:
    """Draw Shapes, train, test, compare, and write ``results.json`` and pictures.

    A demo that was stopped goes on when it is started again; one that is finished shows its
    results again.

    Args:
        root: Folder of all that the demo writes.
        settings: Data, seed and length.
        tools: Folder of ``train.py`` and ``test.py``.
        command: How the user started the demo, for the record.
        images: Images of each kind in the pictures, at least 1.
        score_thr: Predictions below this score are not drawn, in [0, 1].
        line: Shows the progress; on stdout by default.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: ``root`` holds a demo of other settings or is in use, or a command failed.
    """
    line = line or ProgressLine()
    folder = Path(root).absolute()
    began, began_cpu = time.monotonic(), _cpu_seconds()
    if set(str(folder)) & set(",()[]'\""):
        raise UserError(
            f"{folder}: --cfg-options cannot hold this path; choose a --root without ,()[]"
        )
    if settings.iterations < 6 or settings.num_train < 2 or settings.num_val < 1:
        raise UserError(
            "a demo needs 6 iterations, 2 training images and a validation image at least"
        )
    with only_one(folder) as lock:
        _claim(folder, settings)
        cores = _cores()
        line.say(f"Shapes: drawing {settings.num_train} + {settings.num_val} images")
        data = make_shapes(
            folder / "shapes",
            settings.num_train,
            settings.num_val,
            seed=settings.seed,
            workers=cores if cores > 1 else 0,
            progress=False,
        )
        first, arms = plan(folder, data, settings, tools)
        stages = [first, *(stage for chain in arms.values() for stage in chain)]
        continued = any(stage.folder.exists() for stage in stages)
        rest = arms[BASELINE][0].iterations
        line.say(f"{BASELINE}: {first.iterations} iterations from scratch, {cores} threads")
        run_chains([[first]], line, threads=cores, lock=lock)
        line.say(
            f"From its weights, beside each other: {rest} more iterations of {BASELINE}, and "
            f"{rest} of {REFINED}"
        )
        run_chains(list(arms.values()), line, threads=max(1, cores // 2), lock=lock)
        metrics, pictures = {}, []
        for number, split in enumerate(SPLITS, start=1):
            tests = {name: chain[number].folder for name, chain in arms.items()}
            metrics[split] = {name: read_metrics(test) for name, test in tests.items()}
            found = {name: test / "coco.segm.json" for name, test in tests.items()}
            pictures += draw_pictures(data, split, found, folder / "pictures", images, score_thr)
        record = {
            "command": command,
            "settings": settings._asdict(),
            "iterations": {"common": first.iterations, "each": rest},
            "torch": torch.__version__,
            "cores": cores,
            "continued": continued,
            "seconds": round(time.monotonic() - began, 1),
            "cpu_seconds": round(_cpu_seconds() - began_cpu, 1),
            "metrics": metrics,
            "stages": [json.loads(stage.record.read_text()) for stage in stages],
            "pictures": [str(path.relative_to(folder)) for path in pictures],
        }
        write_json(folder / "results.json", record)
    _report(record, Path(root), line)
    return record


class _Source(NamedTuple):
    """What all stages of a demo share."""

    data: Path
    seed: int
    tools: Path


def plan(
    folder: Path, data: Path, settings: Settings, tools: Path
) -> tuple[Stage, dict[str, list[Stage]]]:
    """List the commands of a demo.

    Args:
        folder: The demo's folder.
        data: Folder of the Shapes set.
        settings: Seed and length.
        tools: Folder of ``train.py`` and ``test.py``.

    Returns:
        The common training, and by model the stages after it: its training, then a test on each
        of ``SPLITS``.
    """
    source = _Source(data, settings.seed, tools)
    common = round(settings.iterations * _COMMON)
    rest = settings.iterations - common
    runs = folder / "runs"
    first = _training(f"{BASELINE}, first part", BASELINE, runs / "common", common, source)
    arms = {}
    for name, config in _CONFIGS.items():
        work_dir = runs / config.partition("_")[0]
        start = f"load_from={first.folder / f'iter_{common}.pth'}"
        training = _training(name, name, work_dir, rest, source, start)
        arms[name] = [training, *(_test(name, training, split, source) for split in SPLITS)]
    return first, arms


def _training(
    title: str, model: str, work_dir: Path, iterations: int, source: _Source, *options: str
) -> Stage:
    warm_up = min(_WARM_UP, max(1, iterations // 4))
    command = (
        str(source.tools / "train.py"),
        str(resolve_config(_CONFIGS[model])),
        "--work-dir",
        str(work_dir),
        "--cfg-options",
        f"randomness.seed={source.seed}",
        f"train_dataloader.dataset.data_root={source.data}/",
        f"train_cfg.max_iters={iterations}",
        f"param_scheduler.0.end={warm_up}",
        f"param_scheduler.1.begin={warm_up}",
        f"param_scheduler.1.end={iterations}",
        f"param_scheduler.1.T_max={iterations - warm_up}",
        "default_hooks.logger.interval=10",
        "default_hooks.checkpoint.interval=50",
        # The tests follow in processes of their own.
        "val_cfg=None",
        "val_dataloader=None",
        "val_evaluator=None",
        *options,
    )
    return Stage(title, work_dir, command, iterations)


def _test(model: str, training: Stage, split: str, source: _Source) -> Stage:
    folder = training.folder / f"test_{split}"
    command = (
        str(source.tools / "test.py"),
        str(resolve_config(_CONFIGS[model])),
        str(training.folder / f"iter_{training.iterations}.pth"),
        "--work-dir",
        str(folder),
        "--cfg-options",
        f"randomness.seed={source.seed}",
        f"test_dataloader.dataset.data_root={source.data}/",
        f"test_dataloader.dataset.ann_file=annotations/instances_{split}.json",
        f"test_dataloader.dataset.data_prefix.img={split}/",
        f"test_evaluator.ann_file={_annotations(source.data, split)}",
        f"test_evaluator.outfile_prefix={folder / 'coco'}",
    )
    return Stage(f"{model}, test on {SPLITS[split]}", folder, command)


def _annotations(data: Path, split: str) -> Path:
    return data / "annotations" / f"instances_{split}.json"


def read_metrics(folder: Path) -> dict[str, float]:
    """Read what a test measured.

    Args:
        folder: Working folder of the test; of several tests the last one counts.

    Returns:
        Average precisions in [0, 1] (-1 where there is nothing to measure) by ``bbox_mAP``,
        ``bbox_mAP_50``, ``bbox_mAP_75`` and the same of ``segm``.

    Raises:
        UserError: There are no metrics in the folder.
    """
    for path in sorted(folder.glob("*/*.json"), reverse=True):
        found = json.loads(path.read_text())
        if all(f"coco/{name}" in found for name in _METRICS):
            return {name: found[f"coco/{name}"] for name in _METRICS}
    raise UserError(f"{folder}: holds no metrics; delete it and start the demo again")


def comparison_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out the metrics of two models, in per cent, with the change from the first to the second.

    Args:
        metrics: By model, as from :func:`read_metrics`.

    Returns:
        Lines of text.
    """
    (_, before), (_, after) = metrics.items()
    rows = [(name, [f"{100 * found[m]:.1f}" for m in _METRICS]) for name, found in metrics.items()]
    rows.append(("change", [f"{100 * (after[m] - before[m]):+.1f}" for m in _METRICS]))
    lines = [" " * 12 + "".join(f"{head:>9}" for head in _HEADS)]
    lines += [f"{name:<12}" + "".join(f"{cell:>9}" for cell in cells) for name, cells in rows]
    return "\n".join(lines)


def draw_pictures(
    data: Path,
    split: str,
    results: Mapping[str, Path],
    folder: Path,
    images: int,
    score_thr: float,
) -> list[Path]:
    """Draw ground truth and predictions side by side, the images with most huddles.

    Args:
        data: Folder of the Shapes set.
        split: ``train`` or ``val``.
        results: By model, its predictions on the split's images as COCO's results JSON.
        folder: Where the pictures go.
        images: How many images, at least 1.
        score_thr: Predictions below this score are not drawn.

    Returns:
        One PNG for all images, below 400 KB, then one for each image in full colour.
    """
    truth = _read_coco(_annotations(data, split))
    predictions = {name: _by_image(json.loads(path.read_text())) for name, path in results.items()}
    titles = [f"Ground truth ({SPLITS[split]})", *results]
    rows, paths = [], []
    for image_id in huddled_images(truth, images):
        info = truth.loadImgs(image_id)[0]
        image = cv2.imread(str(data / split / info["file_name"]))
        real = _masks([ann["segmentation"] for ann in truth.imgToAnns[image_id]], image)
        colours = distinct_colours(len(real))
        row = [draw_masks(image, real, colours)]
        for found in predictions.values():
            kept = [item for item in found.get(image_id, []) if item["score"] >= score_thr]
            kept.sort(key=lambda item: -item["score"])
            masks = _masks([item["segmentation"] for item in kept], image)
            matches = match_masks(masks, real)
            row.append(
                draw_masks(image, masks, [UNMATCHED if m < 0 else colours[m] for m in matches])
            )
        rows.append(row)
        name = f"{split}_{Path(info['file_name']).stem}.png"
        paths.append(write_png(folder / name, picture_grid([row], titles)))
    overview = write_png(folder / f"{split}.png", picture_grid(rows, titles), _OVERVIEW_BYTES)
    return [overview, *paths]


def huddled_images(truth: COCO, count: int) -> list[int]:
    """Choose the images with most neighbours of one class, by their ground truth alone.

    Args:
        truth: Instances with masks.
        count: How many images.

    Returns:
        Image ids, most neighbours first; ties by id.
    """
    scores = {image_id: _count_neighbours(truth.imgToAnns[image_id]) for image_id in truth.imgs}
    return sorted(scores, key=lambda image_id: (-scores[image_id], image_id))[:count]


def _count_neighbours(annotations: Sequence[dict], reach: int = 4) -> int:
    """Pairs of one class whose boxes come within ``reach`` pixels and whose masks do so too."""
    grown, count = [], 0
    kernel = np.ones((reach + 1, reach + 1), np.uint8)
    for ann in annotations:
        grown.append(cv2.dilate(rle.decode(ann["segmentation"]), kernel) > 0)
    for i, ann in enumerate(annotations):
        for j in range(i):
            same = annotations[j]["category_id"] == ann["category_id"]
            count += bool(same and (grown[i] & grown[j]).any())
    return count


def _masks(segmentations: Sequence[dict], image: np.ndarray) -> np.ndarray:
    planes = [rle.decode(item) > 0 for item in segmentations]
    return np.stack(planes) if planes else np.zeros((0, *image.shape[:2]), bool)


def _by_image(predictions: Sequence[dict]) -> dict[int, list[dict]]:
    found: dict[int, list[dict]] = {}
    for item in predictions:
        found.setdefault(item["image_id"], []).append(item)
    return found


def _read_coco(path: Path) -> COCO:
    # Its constructor prints; whoever watches one line of progress need not know.
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def _claim(folder: Path, settings: Settings) -> None:
    """Make sure that a folder is new, or was begun with the same settings."""
    path = folder / "settings.json"
    if not path.is_file():
        write_json(path, settings._asdict())
        return
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); delete {folder}") from error
    if found != settings._asdict():
        raise UserError(
            f"{folder}: holds a demo with {_settings_text(found)}, asked for is "
            f"{_settings_text(settings._asdict())}; delete that folder or choose another --root"
        )


def _settings_text(settings: object) -> str:
    if not isinstance(settings, dict):
        return repr(settings)
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _report(record: dict, root: Path, line: ProgressLine) -> None:
    common, rest = record["iterations"]["common"], record["iterations"]["each"]
    for split, metrics in record["metrics"].items():
        count = record["settings"][f"num_{split}"]
        line.say(f"\nPer cent on {count} {SPLITS[split]}")
        line.say(comparison_table(metrics))
    line.say(
        f"\nAfter {common} common iterations and {rest} of each model, seed "
        f"{record['settings']['seed']}. A training of minutes shows that all of it works: that "
        "both learn the\nimages that they see. It does not show which of the two is better; that "
        "takes full trainings and several seeds."
    )
    overviews = [str(root / "pictures" / f"{split}.png") for split in SPLITS]
    line.say(f"Pictures: {', '.join(overviews)}")
    line.say(f"Figures:  {root / 'results.json'}")
    line.say(
        f"Time:     {record['seconds']:.0f} s, {record['cpu_seconds']:.0f} s of processor time"
        + (", since it was started again" if record["continued"] else "")
    )
