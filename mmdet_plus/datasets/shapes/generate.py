"""Write the Shapes data set: many images, several processes, one folder that is never half done.

Every file appears whole (written beside the data, then moved). An image counts as done when its
three pictures lie in place and its records lie in the work folder or in the finished JSONs, so a
run that was killed goes on where it was. The JSONs come last.
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path

import cv2
import numpy as np

from mmseg_plus.common.files import only_one, write_file, write_json

from .catalog import panoptic_categories, thing_categories
from .sample import MAX_IMAGES, SPLITS, draw_sample

# Goes up whenever the same arguments give other bytes.
VERSION = 1
INFO_NAME = "shapes.json"
_WORK_NAME = ".shapes-unfinished"
_MIN_SIDE, _MAX_SIDE = 64, 4096
_BUSY = (
    "another process is drawing Shapes there; wait for it, then run this again, or choose "
    "another folder"
)
_CHUNK = 8
_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95]
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 3]


def make_shapes(
    root: str | os.PathLike,
    num_train: int = 200,
    num_val: int = 50,
    image_size: tuple[int, int] = (256, 256),
    seed: int = 0,
    workers: int = 0,
    progress: bool = True,
) -> Path:
    """Draw the Shapes data set into a folder.

    The folder then holds, for each split ``S`` of ``train`` and ``val``:

    - ``S/000000.jpg``: the images;
    - ``annotations/instances_S.json``: COCO instances with compressed RLEs of the visible pixels.
      Beside COCO's fields every annotation has ``depth`` (rank in its image, 0 = on top of all),
      ``amodal_area`` (pixels of the whole silhouette inside the image) and ``visible_ratio``
      (``area / amodal_area``, at least 0.25). Annotation ids are the panoptic segment ids;
    - ``annotations/panoptic_S.json`` and ``panoptic_S/000000.png``: COCO panoptic; about a third
      of the images contain some void (ground of no class);
    - ``stuff_S/000000.png``: label maps as mmdet and mmseg read them: 0 to 7 things, 8 to 12
      stuff, 255 void; the same labels that ``LoadPanopticAnnotations`` makes.

    Category ids are 1 to 8 for things and 9 to 13 for stuff in both JSONs. The bytes depend on
    ``image_size``, ``seed`` and the image's index alone, not on ``workers``.

    Args:
        root: The folder; made if need be.
        num_train: Number of training images, >= 0.
        num_val: Number of validation images, >= 0.
        image_size: Width and height in pixels, 64 to 4096 each.
        seed: Seed, >= 0.
        workers: Processes that draw; 0 draws in this one.
        progress: Show a progress bar on stderr.

    Returns:
        The folder. A call that finds it finished with the same arguments returns at once; one that
        finds it unfinished completes it.

    Raises:
        ValueError: An argument is out of range, or ``root`` holds something else: another
            data set, or Shapes of other arguments.
        RuntimeError: A worker process died; a further call goes on from there.
        UserError: Another process is drawing into the folder.
        OSError: A file cannot be written; a further call goes on from there.
    """
    counts = dict(
        train=_whole("num_train", num_train, 0, MAX_IMAGES),
        val=_whole("num_val", num_val, 0, MAX_IMAGES),
    )
    size = _image_size(image_size)
    info = dict(
        generator="mmplus shapes",
        version=VERSION,
        seed=_whole("seed", seed, 0, 2**63 - 1),
        image_size=list(size),
        num_train=counts["train"],
        num_val=counts["val"],
    )
    workers = _whole("workers", workers, 0, 1024)
    root = Path(root)
    if _is_ours(root, info) and _is_finished(root, counts):
        return root
    with only_one(root, patience=1.0, busy=_BUSY, remove=True):
        _claim(root, info)
        _complete(root, info, counts, workers, progress)
    return root


def _complete(root: Path, info: dict, counts: dict, workers: int, progress: bool) -> None:
    """Draw and write what is not there yet."""
    size = tuple(info["image_size"])
    todo = [(split, index) for split in SPLITS for index in _missing(root, split, counts[split])]
    if todo:
        _make_folders(root)
        with _progress_bar(len(todo), enabled=progress) as advance:
            jobs = [
                (str(root), info["seed"], size, todo[i : i + _CHUNK])
                for i in range(0, len(todo), _CHUNK)
            ]
            for done in _run(jobs, workers):
                advance(done)
    for split in SPLITS:
        if not _has_annotations(root, split):
            _make_folders(root)
            _write_annotations(root, split, counts[split], size, info)
    shutil.rmtree(root / _WORK_NAME, ignore_errors=True)


def _whole(name: str, value: int, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not least <= value <= most:
        raise ValueError(f"{name} must be a whole number from {least} to {most}, got {value!r}")
    return int(value)


def _image_size(value: tuple[int, int]) -> tuple[int, int]:
    try:
        width, height = value
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be (width, height) in pixels, got {value!r}") from None
    return tuple(
        _whole(f"image_size ({side})", length, _MIN_SIDE, _MAX_SIDE)
        for side, length in (("width", width), ("height", height))
    )


def _is_ours(root: Path, info: dict) -> bool:
    """Whether ``root`` was begun with the same arguments; False where it is free.

    Raises:
        ValueError: It holds something else.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(f"root: {root} is a file; give a folder")
    path = root / INFO_NAME
    if path.is_file():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is no JSON object")
        except ValueError as error:
            raise ValueError(
                f"root: {path} cannot be read ({error}); delete {root} and make it again"
            ) from None
        other = [
            f"{key}={found.get(key)!r} (asked for: {value!r})"
            for key, value in info.items()
            if found.get(key) != value
        ]
        if other:
            raise ValueError(
                f"root: {root} holds Shapes made with {', '.join(other)}; choose another folder, "
                "ask for the same arguments, or delete that folder first"
            )
        return True
    taken = [name for name in _folders() if (root / name).is_dir() and any((root / name).iterdir())]
    if taken:
        raise ValueError(
            f"root: {root} has no {INFO_NAME} but holds other files in {', '.join(taken)}; "
            "choose another folder"
        )
    return False


def _claim(root: Path, info: dict) -> None:
    """Make ``root`` ours."""
    if not _is_ours(root, info):
        write_json(root / INFO_NAME, info, indent=2)


def _is_finished(root: Path, counts: dict[str, int]) -> bool:
    return not (root / _WORK_NAME).exists() and all(
        _has_annotations(root, split) and not _missing(root, split, counts[split])
        for split in SPLITS
    )


def _folders() -> list[str]:
    kinds = ("", "panoptic_", "stuff_")
    return ["annotations"] + [f"{kind}{split}" for split in SPLITS for kind in kinds]


def _make_folders(root: Path) -> None:
    for name in [*_folders(), _WORK_NAME]:
        (root / name).mkdir(parents=True, exist_ok=True)


def _annotation_paths(root: Path, split: str) -> tuple[Path, Path]:
    folder = root / "annotations"
    return folder / f"instances_{split}.json", folder / f"panoptic_{split}.json"


def _has_annotations(root: Path, split: str) -> bool:
    return all(path.is_file() for path in _annotation_paths(root, split))


def _listing(folder: Path) -> set[str]:
    return set(os.listdir(folder)) if folder.is_dir() else set()


def _missing(root: Path, split: str, count: int) -> list[int]:
    """The indices of a split that are still to be drawn."""
    images = _listing(root / split)
    panoptics, stuffs = _listing(root / f"panoptic_{split}"), _listing(root / f"stuff_{split}")
    recorded = _has_annotations(root, split)
    records = _listing(root / _WORK_NAME)
    return [
        i
        for i in range(count)
        if not (
            f"{i:06d}.jpg" in images
            and f"{i:06d}.png" in panoptics
            and f"{i:06d}.png" in stuffs
            and (recorded or f"{split}-{i:06d}.json" in records)
        )
    ]


def _picture(suffix: str, array: np.ndarray, options: list[int]) -> bytes:
    done, content = cv2.imencode(suffix, array, options)
    if not done:
        raise RuntimeError(f"OpenCV could not encode a {suffix} of shape {array.shape}")
    return content.tobytes()


def _draw(job: tuple[str, int, tuple[int, int], list[tuple[str, int]]]) -> int:
    """Draw and write some images; runs in a worker, so it depends on its argument alone."""
    folder, seed, size, items = job
    root = Path(folder)
    work = root / _WORK_NAME
    for split, index in items:
        sample = draw_sample(seed, split, index, size)
        stem = f"{index:06d}"
        write_file(root / split / f"{stem}.jpg", _picture(".jpg", sample.image, _JPEG), work)
        panoptic = _picture(".png", np.ascontiguousarray(sample.panoptic[..., ::-1]), _PNG)
        write_file(root / f"panoptic_{split}" / f"{stem}.png", panoptic, work)
        write_file(
            root / f"stuff_{split}" / f"{stem}.png", _picture(".png", sample.stuff, _PNG), work
        )
        # The record comes last: it vouches for the three pictures.
        record = dict(instances=sample.instances, segments=sample.segments)
        write_json(work / f"{split}-{stem}.json", record, indent=None)
    return len(items)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread: processes share the work, and a fork must find no thread pool."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _run(jobs: list[tuple], workers: int) -> Iterator[int]:
    """Do the jobs, here or in processes; yields the number of images of each as it ends."""
    with _one_thread():
        if workers == 0:
            for job in jobs:
                yield _draw(job)
            return
        # Forked workers start at once; spawned ones import this package, and mmdet, each anew.
        method = "fork" if sys.platform.startswith("linux") else "spawn"
        pool = ProcessPoolExecutor(
            min(workers, len(jobs)),
            mp_context=multiprocessing.get_context(method),
            initializer=cv2.setNumThreads,
            initargs=(1,),
        )
        try:
            yield from _collect(pool, jobs)
        except BrokenProcessPool:
            raise RuntimeError(
                "a worker process died while drawing Shapes (out of memory, or killed); run the "
                "same command again to go on, with fewer workers if memory is short"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(pool: ProcessPoolExecutor, jobs: list[tuple]) -> Iterator[int]:
    # A bounded queue: an error or Ctrl-C has little left to cancel.
    waiting = iter(jobs)
    pending = set()
    while True:
        for job in waiting:
            pending.add(pool.submit(_draw, job))
            if len(pending) >= 64:
                break
        if not pending:
            return
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            yield future.result()


@contextmanager
def _progress_bar(total: int, enabled: bool) -> Iterator:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    bar = Progress(
        "Shapes",
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not enabled,
    )
    with bar:
        task = bar.add_task("Shapes", total=total)
        yield lambda count: bar.advance(task, count)


def _write_annotations(
    root: Path, split: str, count: int, size: tuple[int, int], info: dict
) -> None:
    """Join the records of a split into its two JSONs."""
    width, height = size
    images, annotations, panoptic = [], [], []
    for index in range(count):
        path = root / _WORK_NAME / f"{split}-{index:06d}.json"
        record = json.loads(path.read_bytes())
        image_id, stem = index + 1, f"{index:06d}"
        images.append(dict(id=image_id, file_name=f"{stem}.jpg", width=width, height=height))
        annotations += [dict(image_id=image_id, **item) for item in record["instances"]]
        panoptic.append(
            dict(image_id=image_id, file_name=f"{stem}.png", segments_info=record["segments"])
        )
    description = f"MMPlus Shapes, seed {info['seed']}, version {info['version']}"
    head = dict(info=dict(description=description), images=images)
    instances_path, panoptic_path = _annotation_paths(root, split)
    work = root / _WORK_NAME
    instances = dict(head, annotations=annotations, categories=thing_categories())
    write_json(instances_path, instances, indent=None, aside=work)
    segments = dict(head, annotations=panoptic, categories=panoptic_categories())
    write_json(panoptic_path, segments, indent=None, aside=work)
