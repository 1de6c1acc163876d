"""What ``tools/demo.py`` does: MR R-CNN beside Mask R-CNN on Shapes, in minutes.

As in section 4.1 of the paper, both go on from a trained Mask R-CNN for equally many iterations:
Mask R-CNN as it is, MR R-CNN with its refining heads copied from it. They see the same data with
the same seed under the same schedule. All of it happens through the commands that users have,
``tools/train.py`` and ``tools/test.py``, with configs of the zoo.

The trained Mask R-CNN lies beside the configs: from scratch Shapes takes an hour, not minutes.
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
from pycocotools import mask as rle
from pycocotools.coco import COCO

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.stages import Stage, run_chains, shown
from mmdet_plus.visualization import (
    UNMATCHED,
    distinct_colours,
    draw_masks,
    match_masks,
    picture_grid,
    write_png,
)
from mmseg_plus.common.compat import available_cores, versions
from mmseg_plus.common.config import resolve_config
from mmseg_plus.common.files import only_one, write_json
from mmseg_plus.common.progress import ProgressLine

BASELINE, REFINED = "Mask R-CNN", "MR R-CNN"
_CONFIGS = {BASELINE: "mask-rcnn_r18_shapes_demo", REFINED: "mr-rcnn_r18_shapes_demo"}
METRICS = tuple(f"{kind}_mAP{at}" for kind in ("bbox", "segm") for at in ("", "_50", "_75"))
_HEADS = ("box AP", "AP50", "AP75", "mask AP", "AP50", "AP75")
_ANNOTATIONS = "annotations/instances_val.json"
_WARM_UP = 20
_BUSY = (
    "a demo is at work there, or a training that an earlier one left behind; wait for it, end it, "
    "or choose another --root"
)
_BYTES_PER_IMAGE = 97_000


class Settings(NamedTuple):
    """What a demo is asked for; a folder holds a demo of one kind of settings.

    Attributes:
        iterations: For each of the two models, at least 2.
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
        images: Images in the pictures, at least 1.
        score_thr: Predictions below this score are not drawn, in [0, 1].
        line: Shows the progress; on stdout by default.

    Returns:
        The content of ``results.json``.

    Raises:
        UserError: An argument is out of its range, ``root`` holds a demo of other settings or is
            in use, or a command failed.
    """
    line = line or ProgressLine()
    folder = Path(root).absolute()
    began, began_cpu = time.monotonic(), _cpu_seconds()
    if set(str(folder)) & set(",()[]'\""):
        raise UserError(
            f"{folder}: --cfg-options cannot hold this path; choose a --root without ,()[]"
        )
    _check(settings, images, score_thr)
    with only_one(folder, busy=_BUSY) as lock:
        _claim(folder, settings)
        cores = available_cores()
        line.say(f"Shapes: drawing {settings.num_train} + {settings.num_val} images")
        data = make_shapes(
            folder / "shapes",
            settings.num_train,
            settings.num_val,
            seed=settings.seed,
            workers=cores if cores > 1 else 0,
            progress=False,
        )
        chains = plan(folder, data, settings, tools)
        stages = [stage for chain in chains.values() for stage in chain]
        continued = any(stage.folder.exists() for stage in stages)
        line.say(
            f"From one trained {BASELINE}, beside each other: {settings.iterations} more "
            f"iterations of {BASELINE}, and {settings.iterations} of {REFINED}"
        )
        run_chains(list(chains.values()), line, threads=max(1, cores // 2), locks=[lock])
        tests = {name: chain[-1].folder for name, chain in chains.items()}
        metrics = {name: read_metrics(test) for name, test in tests.items()}
        found = {name: test / "coco.segm.json" for name, test in tests.items()}
        pictures = draw_pictures(data, found, folder / "pictures", images, score_thr)
        record = {
            "command": command,
            "settings": settings._asdict(),
            "versions": versions(),
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


def plan(folder: Path, data: Path, settings: Settings, tools: Path) -> dict[str, list[Stage]]:
    """List the commands of a demo.

    Args:
        folder: The demo's folder.
        data: Folder of the Shapes set.
        settings: Seed and length.
        tools: Folder of ``train.py`` and ``test.py``.

    Returns:
        By model its training and its test.
    """
    return {
        name: [
            _training(name, folder / "runs", data, settings, tools),
            _test(name, folder / "runs", data, settings, tools),
        ]
        for name in _CONFIGS
    }


def _training(name: str, runs: Path, data: Path, settings: Settings, tools: Path) -> Stage:
    work_dir, iterations = _work_dir(name, runs), settings.iterations
    warm_up = min(_WARM_UP, iterations // 2)
    command = (
        shown(tools / "train.py"),
        shown(resolve_config(_CONFIGS[name])),
        "--work-dir",
        shown(work_dir),
        "--resume",
        "--cfg-options",
        f"randomness.seed={settings.seed}",
        f"train_dataloader.dataset.data_root={shown(data)}/",
        f"train_cfg.max_iters={iterations}",
        f"param_scheduler.0.end={warm_up}",
        f"param_scheduler.1.begin={warm_up}",
        f"param_scheduler.1.end={iterations}",
        f"param_scheduler.1.T_max={iterations - warm_up}",
        "default_hooks.logger.interval=10",
        "default_hooks.checkpoint.interval=50",
        # The test follows in a process of its own.
        "val_cfg=None",
        "val_dataloader=None",
        "val_evaluator=None",
    )
    return Stage(name, work_dir, command, iterations)


def _test(name: str, runs: Path, data: Path, settings: Settings, tools: Path) -> Stage:
    folder = _work_dir(name, runs) / "test"
    command = (
        shown(tools / "test.py"),
        shown(resolve_config(_CONFIGS[name])),
        shown(_work_dir(name, runs) / f"iter_{settings.iterations}.pth"),
        "--work-dir",
        shown(folder),
        "--cfg-options",
        f"randomness.seed={settings.seed}",
        f"test_dataloader.dataset.data_root={shown(data)}/",
        f"test_evaluator.ann_file={shown(data / _ANNOTATIONS)}",
        f"test_evaluator.outfile_prefix={shown(folder / 'coco')}",
    )
    return Stage(f"{name}, test on new images", folder, command)


def _work_dir(name: str, runs: Path) -> Path:
    return runs / _CONFIGS[name].partition("_")[0]


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
        if all(f"coco/{name}" in found for name in METRICS):
            return {name: found[f"coco/{name}"] for name in METRICS}
    raise UserError(f"{folder}: holds no metrics; delete it and start the demo again")


def comparison_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out the metrics of two models, in per cent, with the change from the first to the second.

    Args:
        metrics: By model, as from :func:`read_metrics`.

    Returns:
        Lines of text.
    """
    (_, before), (_, after) = metrics.items()
    rows = [(name, [f"{100 * found[m]:.1f}" for m in METRICS]) for name, found in metrics.items()]
    rows.append(("change", [f"{100 * (after[m] - before[m]):+.1f}" for m in METRICS]))
    lines = [" " * 12 + "".join(f"{head:>9}" for head in _HEADS)]
    lines += [f"{name:<12}" + "".join(f"{cell:>9}" for cell in cells) for name, cells in rows]
    return "\n".join(lines)


def draw_pictures(
    data: Path,
    results: Mapping[str, Path],
    folder: Path,
    images: int,
    score_thr: float,
) -> list[Path]:
    """Draw ground truth and predictions side by side, the images with most huddles.

    Args:
        data: Folder of the Shapes set.
        results: By model, its predictions on the validation images as COCO's results JSON.
        folder: Where the pictures go.
        images: How many images, at least 1.
        score_thr: Predictions below this score are not drawn.

    Returns:
        One PNG for all images, below 100 KB for each, then one for each image in full colour.
    """
    truth = _read_coco(data / _ANNOTATIONS)
    predictions = {name: _by_image(json.loads(path.read_text())) for name, path in results.items()}
    titles = ["Ground truth", *results]
    rows, paths = [], []
    for image_id in huddled_images(truth, images):
        info = truth.loadImgs(image_id)[0]
        image = cv2.imread(str(data / "val" / info["file_name"]))
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
        name = f"{Path(info['file_name']).stem}.png"
        paths.append(write_png(folder / name, picture_grid([row], titles)))
    overview = write_png(
        folder / "overview.png", picture_grid(rows, titles), images * _BYTES_PER_IMAGE
    )
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


def _check(settings: Settings, images: int, score_thr: float) -> None:
    """Refuse what would fail only after minutes of training."""
    for option, value, least in (
        ("--iterations", settings.iterations, 2),
        ("--seed", settings.seed, 0),
        ("--num-train", settings.num_train, 2),
        ("--num-val", settings.num_val, 1),
        ("--images", images, 1),
    ):
        if value < least:
            raise UserError(f"{option}: at least {least}, not {value}")
    if not 0 <= score_thr <= 1:
        raise UserError(f"--score-thr: a score in [0, 1], not {score_thr:g}")


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


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _report(record: dict, root: Path, line: ProgressLine) -> None:
    settings = record["settings"]
    line.say(f"\nPer cent on {settings['num_val']} new images")
    line.say(comparison_table(record["metrics"]))
    line.say(
        f"\nBoth started from the same trained {BASELINE} and went on for {settings['iterations']} "
        f"iterations, seed {settings['seed']}.\nOne seed and minutes of training show that all "
        "of it works; which of the two is better takes\nfull trainings and several seeds."
    )
    line.say(f"Pictures: {root / 'pictures' / 'overview.png'}")
    line.say(f"Figures:  {root / 'results.json'}")
    line.say(
        f"Time:     {record['seconds']:.0f} s, {record['cpu_seconds']:.0f} s of processor time"
        + (", since it was started again" if record["continued"] else "")
    )
