"""What ``tools/bpr_refine.py`` does."""

import hashlib
import os

import torch
from torch import nn

from mmseg_plus.common.errors import UserError
from mmseg_plus.common.progress import ProgressLine

from .refine_results import RefineReport, duration, refine_results
from .refiner import BoundaryRefiner
from .sources import open_results


def refine_file(
    results: str | os.PathLike,
    out: str | os.PathLike,
    img_dir: str | os.PathLike,
    ann_file: str | os.PathLike | None = None,
    *,
    config: str | None = None,
    checkpoint: str | None = None,
    format: str = "auto",
    device: str = "auto",
    resume: bool = False,
    overwrite: bool = False,
    score_thr: float | None = None,
    skip_bad: bool = False,
    batch_size: int = 256,
    line: ProgressLine | None = None,
    **options,
) -> RefineReport | None:
    """Refine anybody's results and say what was done.

    Args:
        results: COCO results, a pickle of ``tools/test.py --out``, or a folder of Cityscapes
            results.
        out: The file or folder to write.
        img_dir: Folder of the images.
        ann_file: COCO JSON with the images and categories; Cityscapes results need none.
        config: Of the refiner; the shipped one if None.
        checkpoint: Of the refiner; what lies beside the config if None.
        format: ``auto``, ``coco``, ``cityscapes`` or ``mmdet``.
        device: ``auto`` (a GPU where there is one), or one of torch's names; the processes of a
            job share the machine's GPUs out among them.
        resume: See :func:`refine_results`, as for the next three.
        overwrite: See there.
        score_thr: See there.
        skip_bad: See there.
        batch_size: Patches in the network at a time.
        line: Shows the progress.
        options: ``patch_size``, ``iou_thr``, ``scheme``, ``padding``, ``max_patches``, ``amp`` and
            ``caution`` of :class:`BoundaryRefiner`.

    Returns:
        The report, in the first process; None in the others.

    Raises:
        UserError: Something that was given is missing or unusable.
    """
    line = line or ProgressLine()
    source = open_results(results, ann_file, img_dir, format, check_files=not skip_bad)
    source.check_target(out)
    refiner = BoundaryRefiner(
        config, checkpoint, device=find_device(device), batch_size=batch_size, **options
    )
    # Not the device and not the size of batches, which change roundings alone: after running out of
    # memory one goes on with another.
    settings = {"refiner": network_digest(refiner.model), **options, "caution": refiner.caution}
    report = refine_results(
        source,
        refiner.refine,
        out,
        resume=resume,
        overwrite=overwrite,
        settings=settings,
        score_thr=score_thr,
        skip_bad=skip_bad,
        progress=line,
    )
    if report:
        for text in described(report):
            line.say(text)
    return report


def described(report: RefineReport) -> list[str]:
    """Tell a report in lines."""
    if report.nothing_to_do:
        return [
            f"{report.out}: is there already, and no unfinished run beside it: nothing was done. "
            "--overwrite writes it anew"
        ]
    before = f"; {report.resumed} images were done before" if report.resumed else ""
    lines = [
        f"{report.out}: {report.changed} of {report.instances} masks on {report.images} images "
        f"changed, in {duration(report.seconds)}{before}"
    ]
    if report.skipped:
        lines.append(f"{len(report.skipped)} images skipped, which keep their coarse masks:")
        lines += [f"  {text}" for text in report.skipped]
    return lines


def find_device(device: str = "auto") -> torch.device:
    """Choose this process's device.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` (the process's own GPU), ``cuda:1`` and the like.

    Raises:
        UserError: There is no such device.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise UserError(
            f"--device {device}: there is no such kind; say auto, cpu or cuda"
        ) from None
    if found.type == "cuda":
        number = torch.cuda.device_count()
        if number == 0:
            raise UserError(f"--device {device}: this machine, or this torch, has no GPU; say cpu")
        if found.index is None:
            found = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % number)
        if found.index >= number:
            raise UserError(f"--device {device}: there are {number} GPUs, counted from 0")
    return found


def network_digest(model: nn.Module) -> str:
    """The SHA-256 of a network's structure and weights, in hexadecimal."""
    digest = hashlib.sha256(repr(model).encode())
    # Buffers that no checkpoint holds, such as the mean of the images, count too.
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
