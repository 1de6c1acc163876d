"""What ``tools/bpr_patches.py`` does."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmseg_plus.common.compat import available_cores
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import file_digest, files_digest
from mmseg_plus.common.progress import ProgressLine, duration

from .build_patches import BuildReport, PatchSettings, build_patches
from .sources import CityscapesGroundTruth, CocoGroundTruth, open_results

#: The splits, each with the least IoU of its coarse masks: the validation's are not filtered.
SPLITS = {"train": 0.5, "val": 0.0}


def build_files(
    coarse: str | os.PathLike | None,
    truth: str | os.PathLike,
    img_dir: str | os.PathLike,
    out: str | os.PathLike,
    split: str = "train",
    *,
    format: str = "auto",
    min_iou: float | None = None,
    workers: int | None = None,
    resume: bool = False,
    skip_bad: bool = False,
    line: ProgressLine | None = None,
    **settings: Any,
) -> BuildReport:
    """Build ``OUT/SPLIT.sqlite`` from files and say what is in it.

    Args:
        coarse: A segmenter's results, see :func:`open_results`; None makes coarse masks from the
            ground truth.
        truth: COCO instances file, or the folder of Cityscapes' ``*_gtFine_instanceIds.png``.
        img_dir: Folder of the images.
        out: Folder of the store.
        split: One of :data:`SPLITS`.
        format: Of the results.
        min_iou: Of :class:`PatchSettings`. If None, 0.5; 0 for a segmenter's results on ``val``:
            every mask that touches a ground truth of its class.
        workers: Processes; the cores that this one may use if None.
        resume: Go on with an unfinished store.
        skip_bad: Leave out images that cannot be used.
        line: Shows the progress.
        settings: Other fields of :class:`PatchSettings`.

    Returns:
        What is in the store.

    Raises:
        UserError: Something that was given is missing or unusable.
    """
    line = line or ProgressLine()
    if split not in SPLITS:
        raise UserError(f"--split {split}: must be one of {', '.join(SPLITS)}")
    if min_iou is None:
        min_iou = SPLITS["train" if coarse is None else split]
    chosen = replace(PatchSettings(min_iou=min_iou), **settings)
    is_coco = not Path(truth).is_dir()
    kind = CocoGroundTruth if is_coco else CityscapesGroundTruth
    annotations = kind(truth, img_dir, check_files=not skip_bad)
    if is_coco:
        inputs = {"truth": file_digest(truth)}
    else:
        inputs = {"truth": files_digest(sorted(Path(truth).rglob("*_instanceIds.png")))}
    results = None
    if coarse is not None:
        results = open_results(
            coarse, truth if is_coco else None, img_dir, format, check_files=not skip_bad
        )
        inputs.update(results.inputs())
    report = build_patches(
        results,
        annotations,
        Path(out) / f"{split}.sqlite",
        chosen,
        inputs=inputs,
        workers=available_cores() if workers is None else workers,
        resume=resume,
        skip_bad=skip_bad,
        progress=line,
    )
    for text in described(report):
        line.say(text)
    return report


def described(report: BuildReport) -> list[str]:
    """Tell a report in lines."""
    before = f"; {report.resumed} images were done before" if report.resumed else ""
    lines = [
        f"{report.path}: {report.patches} patches of {report.instances} instances on "
        f"{report.images} images, {report.bytes / 1e6:.1f} MB, in {duration(report.seconds)}"
        f"{before}"
    ]
    if report.left_out:
        lines.append("instances left out:")
        lines += [f"  {count}: {reason}" for reason, count in report.left_out.most_common()]
    if report.skipped:
        lines.append(f"{len(report.skipped)} images skipped:")
        lines += [f"  {text}" for text in report.skipped]
    return lines
