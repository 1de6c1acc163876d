"""What ``tools/panoptic_fuse.py`` does: saved results fused into a COCO panoptic file and its PNGs.

Image by image, by several processes; a run that was killed goes on where it was.

Shape legend: N records of an image of H x W pixels, K of them of sufficient score, S segments.
"""

import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmseg_plus.common.compat import available_cores
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import only_one
from mmseg_plus.common.progress import ProgressLine, duration
from mmseg_plus.common.workers import Workers

from .files_inputs import SEM_ORDERS, SEM_VALUES, FusionFiles, ImageFiles
from .files_output import OutFolder
from .files_readers import read_masks, read_occlusion, read_probs, read_semantic_map
from .heuristic import fuse_heuristic
from .occlusion import fuse_occlusion, fuse_soft_occlusion
from .spatial_ranking import fuse_spatial_ranking
from .unknown_erasing import erase_regions

FUSERS = ("heuristic", "spatial-ranking", "occlusion", "soft-occlusion")

_MEND = "start again to go on, with fewer --workers if memory is short"


@dataclass(frozen=True)
class FusionSettings:
    """How results are fused.

    Attributes:
        fuser: One of :data:`FUSERS`.
        score_thr: Least score of an instance.
        overlap_thr: Largest covered share of an instance's area.
        stuff_area_limit: Least pixels of a stuff class.
        occlusion_thr: Of the occlusion fusers: from which overlap on occlusion decides.
        sigma: Of soft occlusion.
        erase_unknown: Erase uncertain regions of stuff.
        erase_threshold: Least confidence of a region.
        erase_dilation: By how many pixels a region is grown for its confidence.
        sem_values: What semantic maps hold, see :class:`ClassTable`.
        sem_order: How labels and channels of probabilities count the categories, likewise; None
            where it does not matter.
    """

    fuser: str = "heuristic"
    score_thr: float = 0.5
    overlap_thr: float = 0.5
    stuff_area_limit: int = 4096
    occlusion_thr: float = 0.2
    sigma: float = 2.5
    erase_unknown: bool = False
    erase_threshold: float = 0.5
    erase_dilation: int = 3
    sem_values: str = "ids"
    sem_order: str | None = None

    def by_name(self) -> dict[str, Any]:
        """Those that the outcome depends on."""
        names = ["fuser", "score_thr", "overlap_thr", "stuff_area_limit", "sem_values"]
        names += ["sem_order"] * (self.sem_order is not None)
        names += ["occlusion_thr"] * self.needs_occlusion
        names += ["sigma"] * (self.fuser == "soft-occlusion")
        names += ["erase_unknown"]
        names += ["erase_threshold", "erase_dilation"] * self.erase_unknown
        return {name: getattr(self, name) for name in names}

    @property
    def needs_occlusion(self) -> bool:
        """Whether the fuser reads occlusion matrices."""
        return self.fuser in ("occlusion", "soft-occlusion")


@dataclass
class FusionReport:
    """What was fused.

    Attributes:
        out: The COCO panoptic file; its PNGs are in the folder of the same name.
        images: Of the annotation file.
        segments: In all.
        resumed: Images that earlier runs had done.
        seconds: That this run took.
    """

    out: Path
    images: int
    segments: int
    resumed: int
    seconds: float


def fuse_files(
    instances: str | os.PathLike,
    ann_file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    sem: str | os.PathLike | None = None,
    sem_probs: str | os.PathLike | None = None,
    occlusion: str | os.PathLike | None = None,
    settings: FusionSettings | None = None,
    workers: int | None = None,
    line: ProgressLine | None = None,
) -> FusionReport:
    """Fuse saved instances and semantic maps of any model into panoptic maps.

    Args:
        instances: COCO results: a list of ``image_id``, ``category_id``, ``score``,
            ``segmentation`` (RLE or polygons) and, for spatial ranking, ``ranking_score``.
        ann_file: COCO JSON with ``images`` and ``categories`` with ``isthing``, such as the
            panoptic ground truth; its annotations are not looked at. All its images are fused.
        out: Folder to write: ``panoptic.json`` and ``panoptic/*.png``.
        sem: Folder of semantic maps, named as the images but for the ending ``.png``.
        sem_probs: Folder of ``.npz`` with ``probs`` (C, H, W), named likewise: for erasing, and for
            the semantic maps where ``sem`` is None.
        occlusion: Folder of ``.npz`` with ``occlusion`` (N, N) in the order of the image's records.
        settings: How.
        workers: Processes; 0 for none but this one, the cores that it may use if None.
        line: Shows the progress.

    Returns:
        The report.

    Raises:
        UserError: Something that was given is missing or unusable, or the folder holds something
            else.
    """
    began = time.monotonic()
    line, settings = line or ProgressLine(), settings or FusionSettings()
    _check_arguments(settings, sem, sem_probs, occlusion)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; give the name of a folder")
    files = FusionFiles(
        instances,
        ann_file,
        sem,
        sem_probs,
        occlusion,
        settings.sem_values,
        settings.sem_order,
        ranking=settings.fuser == "spatial-ranking",
    )
    workers = available_cores() if workers is None else workers
    busy = "another process is fusing there; wait for it, or give another --out"
    with only_one(out, patience=5.0, busy=busy, remove=True):
        folder = OutFolder(out)
        folder.claim({"inputs": files.inputs(), "settings": settings.by_name()})
        annotations = folder.done(files.images)
        resumed = len(annotations)
        left = [i for i, image in enumerate(files.images) if i not in annotations]
        job, fusing = _Job(files, settings, folder), time.monotonic()
        with Workers(job, min(workers, len(left)), mend=_MEND) as run:
            for number, (place, annotation) in enumerate(run(_do, left), 1):
                annotations[place] = annotation
                _show(line, number, len(left), time.monotonic() - fusing)
        if left or not folder.json.is_file():
            in_order = [annotations[place] for place in sorted(annotations)]
            folder.finish(files, in_order)
        folder.clear()
    segments = sum(len(annotation["segments_info"]) for annotation in annotations.values())
    seconds = time.monotonic() - began
    report = FusionReport(folder.json, len(files.images), segments, resumed, seconds)
    before = f"; {resumed} images were done before" if resumed else ""
    line.say(
        f"{report.out}: {segments} segments on {report.images} images, in "
        f"{duration(seconds)}{before}"
    )
    return report


def fuse_image(
    files: FusionFiles, image: ImageFiles, settings: FusionSettings
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Fuse one image.

    Args:
        files: All inputs.
        image: One of their images.
        settings: How.

    Returns:
        The map (H, W) int32, and ``segments_info`` of those of its ids that have pixels.

    Raises:
        UserError: A file is unusable.
    """
    sem = _semantics(files, image, settings)
    scores = np.array([record["score"] for record in image.records], np.float64)
    # The others take no part; their masks are not even decoded.
    kept = np.flatnonzero(scores >= settings.score_thr)
    records = [image.records[place] for place in kept]
    masks = read_masks(image, kept.tolist(), files.instances)
    labels = np.array([record["category_id"] for record in records], np.int64)
    given = [masks, scores[kept], labels, sem]
    options = dict(
        overlap_thr=settings.overlap_thr,
        stuff_area_limit=settings.stuff_area_limit,
        score_thr=settings.score_thr,
    )
    if settings.fuser == "heuristic":
        panoptic, segments = fuse_heuristic(*given, **options)
    elif settings.fuser == "spatial-ranking":
        ranking = np.array([record["ranking_score"] for record in records], np.float64)
        panoptic, segments = fuse_spatial_ranking(*given, ranking, **options)
    else:
        # A file with a fault is refused, whether or not anybody of this image takes part.
        pairs = read_occlusion(image)[np.ix_(kept, kept)] if len(scores) else np.zeros((0, 0))
        options["occlusion_thr"] = settings.occlusion_thr
        if settings.fuser == "occlusion":
            panoptic, segments = fuse_occlusion(*given, pairs, **options)
        else:
            panoptic, segments = fuse_soft_occlusion(*given, pairs, sigma=settings.sigma, **options)
    return panoptic, _segments_info(panoptic, segments, files.table.stuff)


def _semantics(files: FusionFiles, image: ImageFiles, settings: FusionSettings) -> np.ndarray:
    """Stuff numbers (H, W), 0 for all else, with uncertain regions erased where that is wanted."""
    sem = read_semantic_map(image, files.table) if "sem" in image.paths else None
    if "probs" not in image.paths:
        return sem
    probs, numbers = read_probs(image, files.table)
    probs = torch.from_numpy(np.ascontiguousarray(probs))
    channels = [channel for channel, number in enumerate(numbers) if number]
    if sem is None:
        labels = probs.max(dim=0).indices
    else:
        by_number = torch.full((len(files.table.stuff) + 1,), -1)
        by_number[[numbers[channel] for channel in channels]] = torch.tensor(channels).long()
        labels = by_number[torch.from_numpy(sem)]
    if settings.erase_unknown:
        labels = erase_regions(
            labels, probs, settings.erase_threshold, settings.erase_dilation, channels, -1
        )
    # Label -1, no class, picks the last number.
    return torch.tensor([*numbers, 0])[labels].numpy()


def _segments_info(panoptic: np.ndarray, segments: list[dict], stuff: Sequence[int]) -> list[dict]:
    """COCO's records of those segments that have pixels; the official evaluation wants no other."""
    boxes, areas = _boxes_and_areas(panoptic, len(segments))
    infos = []
    for segment, box, area in zip(segments, boxes, areas, strict=True):
        if area == 0:
            continue
        thing, label = segment["isthing"], segment["category_id"]
        info = dict(
            id=segment["id"],
            category_id=label if thing else stuff[label - 1],
            isthing=int(thing),
            area=area,
            bbox=box,
            iscrowd=0,
        )
        infos.append({**info, "score": segment["score"]} if thing else info)
    return infos


def _boxes_and_areas(panoptic: np.ndarray, number: int) -> tuple[list[list[int]], list[int]]:
    """Boxes [x, y, width, height] and pixels of the segments 1 to ``number``, from their runs."""
    height, width = panoptic.shape
    begins = np.ones((height, width), bool)
    begins[:, 1:] = panoptic[:, 1:] != panoptic[:, :-1]
    first = np.flatnonzero(begins)
    ids = panoptic.ravel()[first]
    row, start = np.divmod(first, width)
    lengths = np.diff(first, append=panoptic.size)
    left, top = np.full((2, number + 1), max(height, width))
    right, bottom = np.zeros((2, number + 1), np.int64)
    np.minimum.at(left, ids, start)
    np.maximum.at(right, ids, start + lengths)
    np.minimum.at(top, ids, row)
    np.maximum.at(bottom, ids, row + 1)
    areas = np.bincount(ids, lengths, minlength=number + 1).astype(np.int64)
    boxes = np.stack([left, top, right - left, bottom - top], axis=1)
    return boxes[1:].tolist(), areas[1:].tolist()


@dataclass(frozen=True)
class _Job:
    """What a process must know to do an image."""

    files: FusionFiles
    settings: FusionSettings
    folder: OutFolder


def _do(job: _Job, place: int) -> tuple[int, dict]:
    """Fuse and write one image; depends on its arguments alone."""
    image = job.files.images[place]
    panoptic, infos = fuse_image(job.files, image, job.settings)
    return place, job.folder.write(place, image, panoptic, infos)


def _show(line: ProgressLine, done: int, total: int, seconds: float) -> None:
    left = duration(seconds / done * (total - done))
    line.show(f"  {done}/{total} images, {done / max(seconds, 1e-9):.1f} images/s, {left} left")


def _check_arguments(
    settings: FusionSettings, sem: object, sem_probs: object, occlusion: object
) -> None:
    if settings.fuser not in FUSERS:
        raise UserError(f"--fuser {settings.fuser}: there is no such; say {', '.join(FUSERS)}")
    if settings.sem_values not in SEM_VALUES:
        raise UserError(f"--sem-values {settings.sem_values}: say {' or '.join(SEM_VALUES)}")
    if settings.sem_order not in (None, *SEM_ORDERS):
        raise UserError(f"--sem-order {settings.sem_order}: say {' or '.join(SEM_ORDERS)}")
    if settings.sem_order and settings.sem_values == "ids" and sem_probs is None:
        raise UserError(
            "--sem-order is of no use to category ids; say --sem-values labels, or drop it"
        )
    if not 0 < settings.sigma < math.inf:
        raise UserError(f"--sigma {settings.sigma}: must be a positive number")
    if sem is None and sem_probs is None:
        raise UserError("there is no semantic map; give --sem, or --sem-probs to take it from")
    if settings.erase_unknown and sem_probs is None:
        raise UserError("--erase-unknown judges regions by probabilities; give --sem-probs")
    if sem is not None and sem_probs is not None and not settings.erase_unknown:
        raise UserError("--sem-probs is of no use beside --sem; say --erase-unknown, or drop one")
    if settings.needs_occlusion and occlusion is None:
        raise UserError(f"--fuser {settings.fuser} needs --occlusion")
    if occlusion is not None and not settings.needs_occlusion:
        raise UserError(
            f"--occlusion is of no use to --fuser {settings.fuser}; say --fuser occlusion or "
            "--fuser soft-occlusion, or drop it"
        )
