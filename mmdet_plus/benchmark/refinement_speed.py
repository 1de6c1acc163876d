"""Speed and memory of boundary patch refinement, step by step, beside the way the authors' go.

The authors' scripts write every patch as a PNG, read the image again for each instance, run the
network as it was trained, and sum patches up in float maps as large as the image. What stands here
for them is written from that description; both ways use the same network and the same batches, and
cropping and resizing count as extraction in both.

Shape legend: N masks, H and W the image's size, P patches, S the side of the network's input.
"""

import copy
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmseg.models import EncoderDecoder
from torch import Tensor

from mmseg_plus.bpr import BoundaryPatchRefiner, BoundaryRefiner
from mmseg_plus.bpr.patch_refiner import FOREGROUND
from mmseg_plus.bpr.refiner import DEFAULT_CONFIG, PARTS, load_refiner

from .ops import blob_masks, boxes_along_boundary, forget_peak, memory_mb, reassemble_full_size
from .timing import environment, time_in_turn

#: ``files``: of images and patches, read and written; ``all`` is measured, and holds the rest too.
STEPS = ("files", *PARTS, "all")
_SIZE = (1024, 2048)
_PATCH = 64
_BATCH = 64


def refinement_speed(
    repeats: int = 5, instances: int = 20, config: str = DEFAULT_CONFIG
) -> dict[str, Any]:
    """Measure refinement of an image of 1024 x 2048 pixels.

    Args:
        repeats: Rounds; the median counts.
        instances: Masks in the image.
        config: The refiner's config, with weights beside it.

    Returns:
        A record: ``environment``, ``patches``, ``steps`` (step, seconds of both ways,
        ``times_faster``, ``share`` of ours), ``network`` (way, ``patches_per_second``) and
        ``peak_memory`` (None where there is no Linux to tell it).
    """
    image, masks = scene(instances)
    # The authors' way has no caution; so both do the same.
    refiner = BoundaryRefiner(config, caution=0.0)
    plain = load_refiner(config, fold=False).to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as folder:
        steps = time_steps(refiner, plain, image, masks, repeats, Path(folder))
    return {
        "environment": environment(),
        "image": [*_SIZE],
        "instances": instances,
        "patches": refiner.num_patches,
        "steps": steps,
        "network": network_speed(refiner, plain, repeats),
        "peak_memory": peak_memory(config) if sys.platform == "linux" else None,
    }


def scene(instances: int) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 of smooth noise and star-like masks (N, H, W) bool in it."""
    height, width = _SIZE
    noise = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    image = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return image, blob_masks(instances, height, width, "cpu").numpy()


# ---- Step by step ----


def time_steps(
    refiner: BoundaryRefiner,
    plain: BoundaryPatchRefiner,
    image: np.ndarray,
    masks: np.ndarray,
    repeats: int,
    folder: Path,
) -> list[dict[str, Any]]:
    """Time each step of both ways, in turn.

    Args:
        refiner: Ours.
        plain: The same network as it was trained.
        image: (H, W, 3) uint8 BGR.
        masks: (N, H, W) bool.
        repeats: Rounds that count, after one that does not.
        folder: For the image and the authors' patches.

    Returns:
        A row for each step and one for ``all``.
    """
    path = folder / "image.png"
    cv2.imwrite(str(path), image)
    rounds: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(-1, repeats):
        ours: dict[str, float] = defaultdict(float)
        with timed(ours, "all"):
            with timed(ours, "files"):
                picture = cv2.imread(str(path))
            refiner.refine(picture, masks)
        ours.update(refiner.seconds)
        theirs, _ = refine_by_files(plain, path, masks, folder, refiner.batch_size)
        if number >= 0:
            rounds["ours"].append(ours)
            rounds["theirs"].append(theirs)
    middle = {
        name: {part: statistics.median(r[part] for r in taken) for part in STEPS}
        for name, taken in rounds.items()
    }
    return [
        {
            "step": part,
            "seconds": round(middle["ours"][part], 5),
            "authors_seconds": round(middle["theirs"][part], 5),
            "times_faster": round(middle["theirs"][part] / middle["ours"][part], 2),
            "share": round(middle["ours"][part] / middle["ours"]["all"], 4),
            "rounds": {n: [round(r[part], 5) for r in taken] for n, taken in rounds.items()},
        }
        for part in STEPS
    ]


@contextmanager
def timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the time of a block to a step's."""
    start = time.perf_counter()
    yield
    seconds[step] += time.perf_counter() - start


@torch.inference_mode()
def refine_by_files(
    model: BoundaryPatchRefiner, image_path: Path, masks: np.ndarray, folder: Path, batch_size: int
) -> tuple[dict[str, float], Tensor]:
    """Refine as the authors' scripts do, patch files between the steps.

    Args:
        model: Network as it was trained.
        image_path: The image's file.
        masks: (N, H, W) bool.
        folder: Where patches are written.
        batch_size: Patches in the network at a time.

    Returns:
        Seconds by step, and the refined masks (N, H, W) bool.
    """
    seconds: dict[str, float] = defaultdict(float)
    coarse, size = torch.from_numpy(masks), model.data_preprocessor.input_size
    with timed(seconds, "all"):
        files, boxes, index = write_patches(image_path, coarse, folder, seconds)
        patches = []
        for at in range(0, len(files), batch_size):
            with timed(seconds, "files"):
                read = [read_patch(*pair) for pair in files[at : at + batch_size]]
            with timed(seconds, "extraction"):
                images, inside = resize_patches(read, size)
            with timed(seconds, "network"):
                patches.append(run_as_trained(model, images, inside, (_PATCH, _PATCH)))
        with timed(seconds, "reassembly"):
            refined = reassemble_full_size(coarse, boxes, index, torch.cat(patches))
    return seconds, refined


def write_patches(
    image_path: Path, masks: Tensor, folder: Path, seconds: dict[str, float]
) -> tuple[list[tuple[str, str]], Tensor, Tensor]:
    """Find patches as the authors do, and write image and mask of each as PNGs.

    Args:
        image_path: The image's file, which is read for each mask.
        masks: (N, H, W) bool.
        folder: Where patches are written.
        seconds: Receives the times of ``files`` and ``extraction``.

    Returns:
        Files of image and mask, boxes (P, 4) int64 and the mask of each (P,) int64.
    """
    files, found, index = [], [], []
    height, width = masks.shape[1:]
    for number, mask in enumerate(masks):
        with timed(seconds, "extraction"):
            corners = boxes_along_boundary(mask, _PATCH)[:, :2].long()
            left = corners[:, 0].clamp(0, width - _PATCH)
            top = corners[:, 1].clamp(0, height - _PATCH)
            boxes = torch.stack([left, top, left + _PATCH, top + _PATCH], 1)
        with timed(seconds, "files"):
            image = cv2.imread(str(image_path))
            plane = mask.numpy().astype(np.uint8) * 255
            for x1, y1, x2, y2 in boxes.tolist():
                stem = folder / str(len(files))
                pair = (f"{stem}_image.png", f"{stem}_mask.png")
                cv2.imwrite(pair[0], image[y1:y2, x1:x2])
                cv2.imwrite(pair[1], plane[y1:y2, x1:x2])
                files.append(pair)
                index.append(number)
        found.append(boxes)
    return files, torch.cat(found), torch.tensor(index)


def read_patch(image_file: str, mask_file: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a patch's files: (h, w, 3) uint8 BGR and (h, w) uint8 of 0 and 255."""
    return cv2.imread(image_file), cv2.imread(mask_file, cv2.IMREAD_GRAYSCALE)


def resize_patches(
    patches: list[tuple[np.ndarray, np.ndarray]], size: int
) -> tuple[Tensor, Tensor]:
    """Bring patches to the network's size, one by one: (B, 3, S, S), 0 to 255, and (B, 1, S, S)."""
    images, masks = [], []
    for image, mask in patches:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
        mask = cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)
        images.append(torch.from_numpy(image).permute(2, 0, 1).float())
        masks.append(torch.from_numpy(mask)[None] / 255)
    return torch.stack(images), torch.stack(masks)


def run_as_trained(
    model: BoundaryPatchRefiner, images: Tensor, masks: Tensor, size: tuple[int, int]
) -> Tensor:
    """:meth:`BoundaryPatchRefiner.refine_patches` in torch's default order of memory, NCHW."""
    inputs = model.data_preprocessor.normalize(images, masks)
    logits = model.decode_head([*EncoderDecoder.extract_feat(model, inputs), inputs])
    for shape in (images.shape[-2:], size):
        logits = F.interpolate(logits, shape, mode="bilinear", align_corners=False)
    return logits.softmax(1)[:, FOREGROUND]


# ---- The network ----


@torch.inference_mode()
def network_speed(
    refiner: BoundaryRefiner, plain: BoundaryPatchRefiner, repeats: int, compiled: bool = True
) -> list[dict[str, Any]]:
    """Time the network alone on a batch of 64 patches, in several ways, in turn.

    Args:
        refiner: With the network as refinement uses it.
        plain: The same network as it was trained.
        repeats: Rounds; the median counts.
        compiled: Try ``torch.compile``, too, which takes a minute once.

    Returns:
        Rows with ``way`` and ``patches_per_second``; or, where torch.compile does not work, its
        error.
    """
    size = refiner.input_size
    images, masks = torch.rand(_BATCH, 3, size, size) * 255, torch.rand(_BATCH, 1, size, size) > 0.5
    batch = (images, masks.float(), (_PATCH, _PATCH))
    channels_last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    half = refiner.with_options(amp=True)
    ways: dict[str, Callable[[], Tensor]] = {
        "as trained, NCHW": lambda: run_as_trained(plain, *batch),
        "channels-last": lambda: channels_last.refine_patches(*batch),
        "channels-last, folded": lambda: refiner.run_network(*batch),
        "channels-last, folded, bfloat16": lambda: half.run_network(*batch),
    }
    errors = []
    if compiled:
        faster = torch.compile(refiner.model.refine_patches)
        try:
            faster(*batch)
            ways["channels-last, folded, torch.compile"] = lambda: faster(*batch)
        except Exception as error:  # whatever its compiler throws
            errors.append({"way": "torch.compile", "error": repr(error).splitlines()[0]})
    times = time_in_turn(ways, repeats)
    rows = [
        {
            "way": way,
            "patches_per_second": round(_BATCH / entry["median"], 1),
            "rounds": entry["seconds"],
        }
        for way, entry in times.items()
    ]
    return rows + errors


# ---- Memory ----


def peak_memory(config: str, instances: int = 100) -> dict[str, Any]:
    """How much a new process holds while it refines an image with many instances (Linux).

    Returns:
        ``instances``, ``patches``, and in MB what it holds ``before`` (libraries, network, image
        and masks), its ``peak`` and the ``masks`` alone.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_refine_many, (config, instances))


def _refine_many(config: str, instances: int) -> dict[str, Any]:
    refiner = BoundaryRefiner(config)
    image, masks = scene(instances)
    # A first call on little data loads what has to be loaded.
    little = np.zeros((1, 128, 128), bool)
    little[0, 32:96, 32:96] = True
    refiner.refine(image[:128, :128], little)
    before = forget_peak()
    refiner.refine(image, masks)
    return {
        "instances": instances,
        "patches": refiner.num_patches,
        "before_mb": round(before, 1),
        # Linux counts in batches, and the peak may seem a little lower than what was held before.
        "peak_mb": round(max(before, memory_mb("VmHWM")), 1),
        "masks_mb": round(masks.nbytes / 2**20, 1),
    }


# ---- Tables ----


def markdown(record: dict[str, Any]) -> str:
    """The record as tables for the documentation."""
    lines = ["| step | ms | share | authors' way, ms | times faster |", "|---|---|---|---|---|"]
    for row in record["steps"]:
        lines.append(
            f"| {row['step']} | {1e3 * row['seconds']:.1f} | {100 * row['share']:.1f} % | "
            f"{1e3 * row['authors_seconds']:.1f} | {row['times_faster']:.1f} |"
        )
    lines += ["", "| network | patches/s |", "|---|---|"]
    for row in record["network"]:
        cell = row.get("error") or f"{row['patches_per_second']:.0f}"
        lines.append(f"| {row['way']} | {cell} |")
    memory = record["peak_memory"]
    if memory:
        lines += [
            "",
            f"Refining {memory['instances']} instances, {memory['patches']} patches, takes "
            f"{memory['peak_mb'] / 1024:.2f} GiB at its peak, {memory['before_mb'] / 1024:.2f} GiB "
            f"of which are held before ({memory['masks_mb'] / 1024:.2f} GiB by the masks).",
        ]
    return "\n".join(lines) + "\n"
