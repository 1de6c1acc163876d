"""What ``tools/demo.py`` does: in minutes, MR R-CNN beside Mask R-CNN on Shapes, BPR after both.

As in section 4.1 of MR R-CNN's paper, both go on from a trained Mask R-CNN for equally many
iterations: Mask R-CNN as it is, MR R-CNN with its refining heads copied from it. They see the same
data with the same seed under the same schedule. Then the boundaries of what each has found are
refined by the refiner that ships. All of it happens through the commands that users have,
``tools/train.py``, ``tools/test.py`` and ``tools/bpr_refine.py``, with configs of the zoo.

The trained Mask R-CNN and the refiner lie beside their configs: from scratch they take hours, not
minutes. Neither has seen the images of the test.
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
from pycocotools.cocoeval import COCOeval

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.stages import Stage, run_chains, shown
from mmdet_plus.evaluation import evaluate_results
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

BASELINE, SYSTEM = "Mask R-CNN", "MR R-CNN"
_CONFIGS = {BASELINE: "mask-rcnn_r18_shapes_demo", SYSTEM: "mr-rcnn_r18_shapes_demo"}
#: Columns of the table: figure and heading.
METRICS = {
    "bbox_mAP": "box AP",
    "segm_mAP": "mask AP",
    "segm_mAP_75": "mask AP75",
    "boundary_mAP": "boundary AP",
    "AF": "AF",
}
_ANNOTATIONS = "annotations/instances_val.json"
_RESULTS = "coco.segm.json"
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
    """Draw Shapes, train, test, refine, compare, and write ``results.json`` and pictures.

    A demo that was stopped goes on when it is started again; one that is finished shows its
    results again.

    Args:
        root: Folder of all that the demo writes.
        settings: Data, seed and length.
        tools: Folder of ``train.py``, ``test.py`` and ``bpr_refine.py``.
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
            f"iterations of {BASELINE}, and {settings.iterations} of {SYSTEM}"
        )
        run_chains(list(chains.values()), line, threads=max(1, cores // 2), locks=[lock])
        found = {}
        for name, (_, test, refinement) in chains.items():
            found[name] = test.folder / _RESULTS
            found[f"{name} + BPR"] = refinement.folder / _RESULTS
        metrics = {name: measure(data / _ANNOTATIONS, path) for name, path in found.items()}
        # What refinement does is seen on one of the two; a fifth column would make all smaller.
        del found[f"{BASELINE} + BPR"]
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
        tools: Folder of ``train.py``, ``test.py`` and ``bpr_refine.py``.

    Returns:
        By model its training, its test and the refinement of what the test has found.
    """
    return {
        name: [
            _training(name, folder / "runs", data, settings, tools),
            _test(name, folder / "runs", data, settings, tools),
            _refinement(name, folder / "runs", data, tools),
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
    folder = _test_dir(name, runs)
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
        f"test_evaluator.outfile_prefix={shown(folder / _RESULTS.partition('.')[0])}",
    )
    return Stage(f"{name}, test on new images", folder, command)


def _refinement(name: str, runs: Path, data: Path, tools: Path) -> Stage:
    # Inside the test's folder, as that is inside the training's: whoever deletes one of them to
    # have it done again deletes what was made from it.
    folder = _test_dir(name, runs) / "refined"
    command = (
        shown(tools / "bpr_refine.py"),
        shown(_test_dir(name, runs) / _RESULTS),
        "--ann",
        shown(data / _ANNOTATIONS),
        "--img-dir",
        shown(data / "val"),
        "--out",
        shown(folder / _RESULTS),
        "--resume",
    )
    return Stage(f"{name}, boundaries refined", folder, command)


def _work_dir(name: str, runs: Path) -> Path:
    return runs / _CONFIGS[name].partition("_")[0]


def _test_dir(name: str, runs: Path) -> Path:
    return _work_dir(name, runs) / "test"


def measure(annotations: Path, results: Path) -> dict[str, float]:
    """Evaluate boxes, masks and boundaries of predictions.

    Args:
        annotations: COCO JSON of the ground truth.
        results: The predictions, COCO's results JSON with boxes and masks.

    Returns:
        Shares in [0, 1] (-1 where there is nothing to measure), rounded to 4 digits, by name:
        ``bbox_mAP``, and all of :func:`mmdet_plus.evaluation.evaluate_masks`.

    Raises:
        UserError: A file is missing or cannot be used.
    """
    if not results.is_file():
        raise UserError(f"{results}: is gone; delete {results.parent} and start the demo again")
    figures = evaluate_results(str(annotations), str(results))
    figures["bbox_mAP"] = _box_ap(_read_coco(annotations), json.loads(results.read_text()))
    return {name: round(value, 4) for name, value in figures.items()}


def _box_ap(truth: COCO, predictions: list[dict]) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        # It cannot load an empty list.
        found = truth.loadRes(predictions) if predictions else COCO()
        evaluator = COCOeval(truth, found, "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0])


def figures_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """Lay out figures in per cent, nothing where they are undefined.

    Args:
        metrics: By the name of the row, as from :func:`measure`.

    Returns:
        Lines of text.
    """
    rows = [("", list(METRICS.values()))]
    for name, found in metrics.items():
        shares = [found[metric] for metric in METRICS]
        rows.append((name, ["" if share < 0 else f"{100 * share:.1f}" for share in shares]))
    return "\n".join(f"{name:<17}" + "".join(f"{c:>12}" for c in cells) for name, cells in rows)


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
    line.say(f"\nPer cent on {settings['num_val']} new images (AF: F-score of boundaries)")
    line.say(figures_table(record["metrics"]))
    line.say(
        f"\nBoth started from the same trained {BASELINE} and went on for {settings['iterations']} "
        f"iterations, seed {settings['seed']}.\nOne seed and minutes of training show that all "
        "of it works; which of the two is better takes\nfull trainings and several seeds.\n"
        "+ BPR: the same predictions with refined masks, and the boxes around these. The refiner "
        "has\nlearnt from other drawn pictures; for photographs, measure first "
        "(tools/bpr_evaluate.py)."
    )
    line.say(f"Pictures: {root / 'pictures' / 'overview.png'}")
    line.say(f"Figures:  {root / 'results.json'}")
    line.say(
        f"Time:     {record['seconds']:.0f} s, {record['cpu_seconds']:.0f} s of processor time"
        + (", since it was started again" if record["continued"] else "")
    )
