"""Building a patch store from images, their ground truth and coarse masks: one image at a time.

Processes share the images out among them; the store is written by one, in the source's order, so
that it holds the same whatever their number, and after however many interruptions.

Shape legend: N coarse masks of an image of H x W pixels, P patches.
"""

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmplus_ops import extract_boundary_patches
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.progress import ProgressLine, duration
from mmseg_plus.common.workers import Workers

from .coarse_masks import KINDS, degrade
from .instances import ImageInstances, InstanceSource
from .patch_store import EncodedPatch, PatchStoreWriter, encode_patch
from .patches import crop_training_patches, match

_MEND = "go on with --resume, with fewer --workers if memory is short"
_CROWD = "a crowd"
_EMPTY = "no pixels"
_UNMATCHED = "no ground truth of its class that it overlaps enough"
_NO_TRUTH = "an image without ground truth"
_NOT_SAMPLED = "not sampled"


@dataclass(frozen=True)
class PatchSettings:
    """What is made of each image.

    Attributes:
        patch_size: Side of a patch in pixels.
        iou_thr: Of the NMS over patches.
        scheme: ``dense``, ``grid`` or ``instance``.
        padding: Pixels around each patch.
        min_iou: A coarse mask is used if its IoU with its ground truth is larger.
        degrade: Ways to make coarse masks where there are none.
        codec: Of the stored pictures, ``webp`` or ``png``.
        max_instances: So many instances, sampled from all that can be used; None for all.
        seed: Of the sampling and of the coarse masks that are made.
    """

    patch_size: int = 64
    iou_thr: float = 0.25
    scheme: str = "dense"
    padding: int = 0
    min_iou: float = 0.5
    degrade: tuple[str, ...] = tuple(KINDS)
    codec: str = "webp"
    max_instances: int | None = None
    seed: int = 0


@dataclass
class BuildReport:
    """What is in a store.

    Attributes:
        path: Of the store.
        images: Of which at least one patch was taken.
        instances: Of which patches were taken.
        patches: In the store.
        bytes: Size of the file.
        left_out: Numbers of instances that were not used, by the reason.
        skipped: Why images were skipped, one text each.
        resumed: Images that an earlier run had done.
        seconds: That this run took.
    """

    path: Path
    images: int = 0
    instances: int = 0
    patches: int = 0
    bytes: int = 0
    left_out: Counter = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    resumed: int = 0
    seconds: float = 0.0


def build_patches(
    coarse: InstanceSource | None,
    truth: InstanceSource,
    out: str | os.PathLike,
    settings: PatchSettings | None = None,
    *,
    inputs: Mapping[str, Any] | None = None,
    workers: int = 0,
    resume: bool = False,
    skip_bad: bool = False,
    progress: ProgressLine | None = None,
) -> BuildReport:
    """Cut the patches along the boundaries of coarse masks, with their ground truth, into a store.

    A coarse mask is used if it covers a ground truth of its class with more than ``min_iou``; the
    target is that ground truth, whether or not another mask is trained towards it too. Crowds are
    no ground truth (the supplement does not say what became of them).

    Args:
        coarse: A segmenter's results; None makes coarse masks from the ground truth.
        truth: The ground truth of the same images, and maybe of others.
        out: File of the store.
        settings: See :class:`PatchSettings`.
        inputs: What the sources are, of JSON's types, as noted in the store; an unfinished store is
            not gone on with for others.
        workers: Processes; 0 does the work in this one.
        resume: Go on with an unfinished store; without one, start.
        skip_bad: Leave images out whose file is missing, unreadable or of another size, rather
            than stop at the first one.
        progress: Shows how far the work is.

    Returns:
        What is in the store, all runs together.

    Raises:
        UserError: An image or a mask is unusable, there is a store already or it does not fit, or
            nothing at all could be used.
    """
    began = time.monotonic()
    settings = settings or PatchSettings()
    meta = {
        **asdict(settings),
        "degrade": list(settings.degrade) if coarse is None else None,
        "inputs": dict(inputs or {}),
    }
    with PatchStoreWriter(out, meta, resume) as writer:
        resumed = len(writer.done)
        if not writer.finished:
            job = _Job(coarse, truth, settings, skip_bad)
            if coarse is not None:
                job.places = _places(coarse, truth)
            with Workers(job, workers, mend=_MEND) as run:
                _fill(writer, job, run, progress)
        report = _report(writer)
        if not report.patches:
            raise UserError(_nothing(report))
        report.path = writer.finish()
    report.bytes = report.path.stat().st_size
    report.resumed = resumed
    report.seconds = time.monotonic() - began
    return report


def _fill(
    writer: PatchStoreWriter, job: "_Job", run: Workers, progress: ProgressLine | None
) -> None:
    """Add the images that are not in the store yet."""
    images = range(len(job.source))
    sampled: Mapping[int, np.ndarray | None] = dict.fromkeys(images)
    if job.settings.max_instances is not None:
        sampled = _sample(job.settings, images, run, progress)
    done = {facts["index"] for facts in writer.done.values()}
    left = [index for index in sampled if index not in done]
    began, patches = time.monotonic(), 0
    for number, result in enumerate(run(_patches, [(i, sampled[i]) for i in left]), 1):
        writer.add_image(result.image_id, result.patches, result.facts)
        patches += len(result.patches)
        _show(progress, "images", number, len(left), began, f", {patches} patches")


def _sample(
    settings: PatchSettings, images: Sequence[int], run: Workers, progress: ProgressLine | None
) -> dict[int, np.ndarray]:
    """Choose among all usable instances, evenly.

    Returns:
        By image with at least one, which of its usable instances are taken, in ascending order.
    """
    began, counts = time.monotonic(), []
    for count in run(_count, images):
        counts.append(count)
        _show(progress, "images looked at", len(counts), len(images), began)
    ends = np.cumsum([0, *counts])
    number = min(settings.max_instances, ends[-1])
    chosen = np.random.default_rng(settings.seed).choice(ends[-1], number, replace=False)
    chosen.sort()
    parts = np.split(chosen, np.searchsorted(chosen, ends[1:-1]))
    return {
        image: part - start
        for image, part, start in zip(images, parts, ends, strict=False)
        if len(part)
    }


def _show(
    progress: ProgressLine | None, what: str, done: int, total: int, began: float, more: str = ""
) -> None:
    if progress:
        seconds = max(time.monotonic() - began, 1e-9)
        left = duration(seconds / done * (total - done))
        progress.show(f"  {done}/{total} {what}{more}, {done / seconds:.1f} images/s, {left} left")


def _places(coarse: InstanceSource, truth: InstanceSource) -> list[int | None]:
    """Where the ground truth has the images of the coarse masks."""
    places = {image_id: place for place, image_id in enumerate(_image_ids(truth))}
    return [places.get(image_id) for image_id in _image_ids(coarse)]


def _image_ids(source: InstanceSource) -> list[int | str]:
    # A source that cannot tell has to decode.
    tell = getattr(source, "image_id", None) or (lambda index: source[index].image_id)
    return [tell(index) for index in range(len(source))]


def _report(writer: PatchStoreWriter) -> BuildReport:
    report = BuildReport(writer.path)
    for facts in writer.done.values():
        report.images += facts["patches"] > 0
        report.instances += facts["instances"]
        report.patches += facts["patches"]
        report.left_out.update(facts["left_out"])
        if facts["fault"]:
            report.skipped.append(facts["fault"])
    return report


def _nothing(report: BuildReport) -> str:
    reasons = [f"{count} instances: {reason}" for reason, count in report.left_out.items()]
    reasons += report.skipped[:3]
    return (
        f"{report.path}: not one patch could be taken ({'; '.join(reasons) or 'no instances'}); "
        "see whether the coarse masks, the ground truth and the images belong together, remove "
        f"{report.path}.part and start again"
    )


@dataclass
class _Job:
    """What a process must know to do an image."""

    coarse: InstanceSource | None
    truth: InstanceSource
    settings: PatchSettings
    skip_bad: bool
    places: list[int | None] = field(default_factory=list)

    @property
    def source(self) -> InstanceSource:
        """Whose images are gone through."""
        return self.truth if self.coarse is None else self.coarse


@dataclass
class _Done:
    """An image's part of the store."""

    image_id: int | str
    patches: list[EncodedPatch]
    facts: dict


@dataclass
class _Pairs:
    """The usable instances of an image.

    Attributes:
        coarse: Their source; in its order, ``usable`` are the positions in it.
        truth: The ground truth, None where the image has none.
        targets: Position of each one's ground truth.
    """

    coarse: ImageInstances
    truth: ImageInstances | None
    usable: np.ndarray
    targets: np.ndarray
    left_out: Counter


def _pairs(job: _Job, index: int) -> _Pairs:
    if job.coarse is None:
        truth = job.truth[index]
        empty = ~truth.masks.any(axis=(1, 2))
        usable = np.flatnonzero(~truth.crowd & ~empty)
        left_out = Counter(
            {_CROWD: int(truth.crowd.sum()), _EMPTY: int((empty & ~truth.crowd).sum())}
        )
        return _Pairs(truth, truth, usable, usable, +left_out)
    coarse, place = job.coarse[index], job.places[index]
    nobody = np.zeros(0, np.int64)
    if place is None:
        return _Pairs(coarse, None, nobody, nobody, +Counter({_NO_TRUTH: len(coarse.masks)}))
    truth = job.truth[place]
    if not len(coarse.masks) or not len(truth.masks):
        return _Pairs(coarse, truth, nobody, nobody, +Counter({_UNMATCHED: len(coarse.masks)}))
    if coarse.masks.shape[1:] != truth.masks.shape[1:]:
        raise UserError(
            f"image {coarse.image_id!r}: the coarse masks are {list(coarse.masks.shape[1:])} "
            f"(height, width), the ground truth {list(truth.masks.shape[1:])}; give those of the "
            "same images"
        )
    targets = match(
        coarse.masks,
        coarse.labels,
        truth.masks,
        truth.labels,
        truth.crowd,
        job.settings.min_iou,
    )
    usable = np.flatnonzero(targets >= 0)
    left_out = Counter({_UNMATCHED: len(targets) - len(usable)})
    return _Pairs(coarse, truth, usable, targets[usable], +left_out)


def _count(job: _Job, index: int) -> int:
    """The number of an image's usable instances."""
    return len(_pairs(job, index).usable)


def _patches(job: _Job, task: tuple[int, np.ndarray | None]) -> _Done:
    """Cut the patches of one image; depends on its arguments alone."""
    index, sampled = task
    settings = job.settings
    pairs = _pairs(job, index)
    chosen = np.arange(len(pairs.usable)) if sampled is None else sampled
    if len(pairs.usable) > len(chosen):
        pairs.left_out[_NOT_SAMPLED] = len(pairs.usable) - len(chosen)
    done = _Done(
        pairs.coarse.image_id,
        [],
        dict(
            index=index,
            instances=len(chosen),
            patches=0,
            left_out=dict(pairs.left_out),
            fault=None,
        ),
    )
    if not len(chosen):
        return done
    try:
        image = pairs.truth.read_image()
    except UserError as error:
        if not job.skip_bad:
            raise
        done.facts.update(instances=0, fault=str(error))
        return done
    positions = pairs.usable[chosen]
    targets = pairs.truth.masks[pairs.targets[chosen]]
    if job.coarse is None:
        masks = np.zeros_like(targets)
        for place, position in enumerate(positions):
            # The instance's own, so that it does not depend on which others are sampled.
            rng = np.random.default_rng([settings.seed, index, int(position)])
            masks[place] = degrade(targets[place], rng, settings.degrade, settings.min_iou)
    else:
        masks = pairs.coarse.masks[positions]
    boxes, owners = extract_boundary_patches(
        torch.from_numpy(masks),
        patch_size=settings.patch_size,
        iou_thr=settings.iou_thr,
        scheme=settings.scheme,
    )
    crops = crop_training_patches(image, masks, targets, boxes, owners, settings.padding)
    records = [int(pairs.coarse.records[position]) for position in positions]
    labels = pairs.coarse.labels[positions]
    done.patches = [
        encode_patch(*crop, records[owner], labels[owner], box, settings.codec)
        for crop, owner, box in zip(crops, owners.tolist(), boxes.tolist(), strict=True)
    ]
    done.facts["patches"] = len(done.patches)
    return done
