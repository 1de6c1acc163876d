"""Speed of the operators beside what they stand on, and beside the way that the authors went.

Every row names the baseline and holds both times of one run, taken in turn, and their ratio.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops import nms, roi_align
from torch import Tensor

import mmplus_ops
from mmplus_ops import (
    blend_bases,
    connected_components,
    extract_boundary_patches,
    mask_intersections,
    pair_areas,
    reassemble_patches,
    roi_flatten,
    shape_aware_roi_align,
)

from .timing import environment, time_in_turn

_WORK = (1, 4, 16, 64)


class Case(NamedTuple):
    """What is compared: our call and the baseline's, without arguments."""

    name: str
    baseline: str
    ours: Callable[[], object]
    theirs: Callable[[], object]


def ops_speed(repeats: int = 5, device: str = "cpu") -> dict[str, Any]:
    """Measure all operators.

    Args:
        repeats: Rounds; the median counts.
        device: ``cpu``, or a GPU.

    Returns:
        A record: ``environment``, ``library``, ``rows`` (name, baseline, threads, seconds of both,
        ``times_faster``), ``peak_memory`` of blending, and ``growth`` with the work.
    """
    rows = []
    threads = torch.get_num_threads()
    counts = (threads, 1) if device == "cpu" and threads > 1 else (threads,)
    for count in counts:
        with use_threads(count):
            rows += [measure(case, repeats, count, device) for case in cases(device)]
    info = mmplus_ops.ops_info()
    return {
        "environment": environment(),
        "library": {key: info[key] for key in ("compiled", "cuda", "compiler") if key in info},
        "device": device,
        "rows": rows,
        "peak_memory": blending_memory() if device == "cpu" and sys.platform == "linux" else None,
        "growth": growth(repeats, device),
    }


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let torch and OpenCV use so many threads."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(count)
    cv2.setNumThreads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def measure(case: Case, repeats: int, threads: int, device: str) -> dict[str, Any]:
    """Time one case.

    Returns:
        A row of the record.
    """
    calls = {"ours": case.ours, "theirs": case.theirs}
    if device != "cpu":
        calls = {name: _synchronised(call) for name, call in calls.items()}
    times = time_in_turn(calls, repeats)
    ours, theirs = times["ours"]["median"], times["theirs"]["median"]
    return {
        "name": case.name,
        "baseline": case.baseline,
        "threads": threads,
        "seconds": round(ours, 6),
        "baseline_seconds": round(theirs, 6),
        "times_faster": round(theirs / ours, 2),
        "rounds": {name: entry["seconds"] for name, entry in times.items()},
    }


def _synchronised(call: Callable[[], object]) -> Callable[[], None]:
    def run() -> None:
        call()
        torch.cuda.synchronize()

    return run


def cases(device: str) -> Iterator[Case]:
    """List what is compared, with inputs on a device."""
    for bins in (7, 14):
        yield roi_align_case(bins, device)
    yield from patch_cases(device)
    bases, rois, attention = blending_input(device=device)
    grad = torch.randn(len(rois), 56, 56, device=device)
    yield Case(
        "blend_bases, forward + backward, 500 RoIs",
        "roi_align + interpolate + softmax + mul + sum",
        lambda: torch.autograd.grad(blend_bases(bases, rois, attention), (bases, attention), grad),
        lambda: torch.autograd.grad(
            blend_unfused(bases, rois, attention), (bases, attention), grad
        ),
    )
    masks, rois, labels = canvas_input(100, device)
    yield Case(
        "roi_flatten, forward + backward, 100 instances, 200x304",
        "grid_sample of each instance onto its own canvas, maximum",
        lambda: _sum_backward(roi_flatten(masks, rois, labels, 8, 1, (200, 304)), masks),
        lambda: _sum_backward(flatten_unfused(masks, rois, labels, 8, (200, 304)), masks),
    )
    planes = box_masks(100, 800, 1333, device)
    yield Case(
        "mask_intersections, 100 masks of 800x1333",
        "float matrix product of the flattened masks",
        lambda: mask_intersections(planes),
        lambda: _product(planes),
    )
    if device == "cpu":
        labels_map = blob_map(800, 1333)
        bytes_map = labels_map.to(torch.uint8).numpy()
        yield Case(
            "connected_components, 800x1333",
            "OpenCV's connectedComponents",
            lambda: connected_components(labels_map, [0]),
            lambda: cv2.connectedComponents(bytes_map, connectivity=8),
        )
        maps = segment_maps(60, 800, 1333)
        ids, others = (value.numpy().astype(np.uint64) for value in maps)
        yield Case(
            "pair_areas, 60 segments in each of two maps of 800x1333",
            "panopticapi's: NumPy's unique of one number for each pixel",
            lambda: pair_areas(*maps),
            lambda: np.unique(ids * 256**3 + others, return_counts=True),
        )


# ---- Shape-aware RoIAlign ----


def random_rois(
    count: int, height: float, width: float, device: str, smallest: float = 20.0
) -> Tensor:
    """(K, 5) RoIs of one image, sides from ``smallest`` to twelve times that, inside the image."""
    generator = torch.Generator().manual_seed(count)
    draw = torch.rand(count, 4, generator=generator)
    side = smallest * torch.exp(draw[:, 2] * 2.5)
    shape = torch.exp((draw[:, 3] - 0.5) * 0.8)
    x, y = draw[:, 0] * width, draw[:, 1] * height
    corners = [
        x - side * shape / 2,
        y - side / shape / 2,
        x + side * shape / 2,
        y + side / shape / 2,
    ]
    limits = (width - 1, height - 1, width - 1, height - 1)
    boxes = [torch.zeros(count)]
    boxes += [
        value.clamp(min=0).minimum(torch.tensor(limit))
        for value, limit in zip(corners, limits, strict=True)
    ]
    return torch.stack(boxes, 1).to(device)


def roi_align_case(bins: int, device: str, count: int = 256) -> Case:
    """256 channels at 200x304, forward and backward; ours to the probabilities as well."""
    feature = torch.randn(1, 256, 200, 304, device=device, requires_grad=True)
    prob = torch.rand(count, 28, 28, device=device, requires_grad=True)
    rois = random_rois(count, 800.0, 1216.0, device)
    grad = torch.randn(count, 256, bins, bins, device=device)
    return Case(
        f"shape_aware_roi_align, forward + backward, {count} RoIs, {bins}x{bins}",
        "mmcv.ops.roi_align, forward + backward",
        lambda: torch.autograd.grad(
            shape_aware_roi_align(feature, rois, prob, bins, 0.25, 0), (feature, prob), grad
        ),
        lambda: torch.autograd.grad(
            roi_align(feature, rois, bins, 0.25, 0, "avg", True), feature, grad
        ),
    )


# ---- Boundary patches ----


def blob_masks(count: int, height: int, width: int, device: str) -> Tensor:
    """(N, H, W) bool star-like shapes, each with a boundary of some hundred pixels."""
    random = np.random.RandomState(0)
    planes = np.zeros((count, height, width), np.uint8)
    angles = np.linspace(0, 2 * np.pi, 60)
    for plane in planes:
        centre = (
            random.randint(width // 10, width - width // 10),
            random.randint(height // 7, height - height // 7),
        )
        radius = random.uniform(height / 26, height / 5)
        radius = radius * (1 + 0.3 * np.sin(5 * angles + random.rand() * 6))
        points = np.stack(
            [centre[0] + radius * np.cos(angles), centre[1] + radius * np.sin(angles)], 1
        )
        cv2.fillPoly(plane, [points.astype(int)], 1)
    return torch.from_numpy(planes).bool().to(device)


def authors_boundary_patches(masks: Tensor, size: int = 64, iou_thr: float = 0.25) -> int:
    """As the authors do: a score for every pixel, a box for each boundary pixel, NMS."""
    return sum(len(boxes_along_boundary(mask, size, iou_thr)) for mask in masks)


def boxes_along_boundary(mask: Tensor, size: int = 64, iou_thr: float = 0.25) -> Tensor:
    """(P, 4) float boxes of one mask (H, W), which may leave the image."""
    kernel = torch.ones(1, 1, 3, 3, device=mask.device)
    sums = F.conv2d(mask[None, None].float(), kernel, padding=1)[0, 0]
    scores = torch.minimum((sums - 9).abs(), sums) / 4.5
    ys, xs = scores.nonzero(as_tuple=True)
    boxes = torch.stack([xs - size / 2, ys - size / 2, xs + size / 2, ys + size / 2], 1)
    return boxes[nms(boxes, scores[ys, xs], iou_thr)[1]]


def reassemble_full_size(masks: Tensor, boxes: Tensor, index: Tensor, patches: Tensor) -> Tensor:
    """Float sums as large as the image, for each mask."""
    refined = []
    for n, mask in enumerate(masks):
        total = torch.zeros(mask.shape, device=mask.device)
        count = torch.zeros_like(total)
        for p in (index == n).nonzero()[:, 0].tolist():
            x1, y1, x2, y2 = boxes[p].tolist()
            total[y1:y2, x1:x2] += patches[p]
            count[y1:y2, x1:x2] += 1
        refined.append(torch.where(count > 0, total / count.clamp(min=1) > 0.5, mask))
    return torch.stack(refined)


def patch_cases(device: str) -> Iterator[Case]:
    """20 masks in an image of 1024x2048."""
    masks = blob_masks(20, 1024, 2048, device)
    boxes, index = extract_boundary_patches(masks)
    patches = torch.rand(len(boxes), 64, 64, device=device)
    yield Case(
        f"extract_boundary_patches, 20 masks of 1024x2048, {len(boxes)} patches",
        "float score map, a box for each boundary pixel, mmcv.ops.nms",
        lambda: extract_boundary_patches(masks),
        lambda: authors_boundary_patches(masks),
    )
    yield Case(
        f"reassemble_patches, 20 masks of 1024x2048, {len(boxes)} patches",
        "full-size float sums for each mask",
        lambda: reassemble_patches(masks, boxes, index, patches),
        lambda: reassemble_full_size(masks, boxes, index, patches),
    )
    yield Case(
        "reassemble_patches, the same",
        "a copy of the masks: one read and one write",
        lambda: reassemble_patches(masks, boxes, index, patches),
        lambda: masks.clone(),
    )


# ---- Blending ----


def blending_input(count: int = 500, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Bases of one image of 800x1216, RoIs of which five are equal each, attention."""
    torch.manual_seed(0)
    bases = torch.randn(1, 4, 200, 304, device=device, requires_grad=True)
    rois = random_rois(max(1, count // 5), 800.0, 1216.0, device).repeat(5, 1)[:count]
    attention = torch.randn(len(rois), 4, 14, 14, device=device, requires_grad=True)
    return bases, rois, attention


def blend_unfused(bases: Tensor, rois: Tensor, attention: Tensor, size: int = 56) -> Tensor:
    """The same in five steps, with tensors of (K, B, R, R)."""
    pooled = roi_align(bases, rois, (size, size), 0.25, 1, "avg", True)
    logits = F.interpolate(attention, (size, size), mode="bilinear", align_corners=False)
    return (pooled * logits.softmax(1)).sum(1)


def blending_memory() -> dict[str, float]:
    """How much a process grows while it blends and goes back (Linux), each in a new one.

    Returns:
        ``ours_mb``, ``unfused_mb`` and their ``share``.
    """
    context = multiprocessing.get_context("spawn")
    grown = {}
    for name in ("ours", "unfused"):
        with context.Pool(1) as pool:
            grown[name] = round(pool.apply(_grow, (name,)), 1)
    return {
        "ours_mb": grown["ours"],
        "unfused_mb": grown["unfused"],
        "share": round(grown["ours"] / grown["unfused"], 3),
    }


def _grow(name: str) -> float:
    blend = {"ours": blend_bases, "unfused": blend_unfused}[name]
    # A first call on little data loads what has to be loaded.
    small = blending_input(5)
    torch.autograd.grad(blend(*small).sum(), (small[0], small[2]))
    bases, rois, attention = blending_input()
    grad = torch.randn(len(rois), 56, 56)
    before = forget_peak()
    torch.autograd.grad(blend(bases, rois, attention), (bases, attention), grad)
    return memory_mb("VmHWM") - before


def forget_peak() -> float:
    """Let Linux forget this process's peak of memory, and tell what it holds now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory_mb("VmRSS")


def memory_mb(field: str) -> float:
    """What Linux tells of this process's memory: ``VmRSS`` now, ``VmHWM`` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [line] = [line for line in lines if line.startswith(field)]
    return int(line.split()[1]) / 1024


# ---- Canvases and masks ----


def canvas_input(count: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Masks, RoIs in an image of 800x1216 and labels of eight classes."""
    torch.manual_seed(0)
    masks = torch.rand(count, 28, 28, device=device, requires_grad=True)
    rois = random_rois(count, 800.0, 1216.0, device)
    return masks, rois, torch.arange(count, device=device) % 8


def flatten_unfused(
    masks: Tensor, rois: Tensor, labels: Tensor, num_classes: int, size: tuple[int, int]
) -> Tensor:
    """Every instance on a canvas of its own, then the maximum over those of a class."""
    height, width = size
    boxes = rois[:, 1:] * 0.25
    ys = torch.arange(height, device=masks.device) + 0.5
    xs = torch.arange(width, device=masks.device) + 0.5
    ys = (ys - boxes[:, 1, None]) / (boxes[:, 3] - boxes[:, 1])[:, None] * 2 - 1
    xs = (xs - boxes[:, 0, None]) / (boxes[:, 2] - boxes[:, 0])[:, None] * 2 - 1
    shape = (len(masks), height, width)
    grid = torch.stack([xs[:, None].expand(shape), ys[:, :, None].expand(shape)], 3)
    drawn = F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
    planes = [drawn[labels == label].amax(0) for label in range(num_classes)]
    return torch.stack(planes)[None]


def _sum_backward(output: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(output.sum(), masks)


def box_masks(count: int, height: int, width: int, device: str) -> Tensor:
    """(N, H, W) bool rectangles of all sizes."""
    masks = torch.zeros(count, height, width, dtype=torch.bool, device=device)
    for n, (_, x1, y1, x2, y2) in enumerate(random_rois(count, height, width, "cpu").tolist()):
        masks[n, int(y1) : int(y2) + 1, int(x1) : int(x2) + 1] = True
    return masks


def _product(masks: Tensor) -> Tensor:
    flat = masks.flatten(1).float()
    return flat @ flat.T


def blob_map(height: int, width: int) -> Tensor:
    """(H, W) int64 of smooth regions labelled 0 and 1."""
    noise = np.random.RandomState(0).rand(height, width).astype(np.float32)
    return torch.from_numpy((cv2.GaussianBlur(noise, (0, 0), 6) > 0.5).astype(np.int64))


def segment_maps(count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Two maps (H, W) int32 of ``count`` segments; the second's have their own ids and borders."""
    random = np.random.RandomState(0)
    centres = random.rand(count, 2) * (width, height)
    maps = []
    for places in (centres, centres + random.uniform(-0.01, 0.01, (count, 2)) * width):
        away = np.ones((height, width), np.uint8)
        columns, rows = places.astype(int).T
        away[rows.clip(0, height - 1), columns.clip(0, width - 1)] = 0
        # The number of the nearest centre.
        ids = cv2.distanceTransformWithLabels(away, cv2.DIST_L2, 5)[1]
        maps.append(torch.from_numpy(ids))
    return maps[0], maps[1]


# ---- growth ----


def growth(repeats: int, device: str) -> list[dict[str, Any]]:
    """Times of each operator for 1, 4, 16 and 64 times the work.

    Returns:
        Rows with the operator, what grows, and ``seconds`` by amount of work.
    """
    feature = torch.randn(1, 64, 100, 152, device=device)
    prob = torch.rand(16 * _WORK[-1], 28, 28, device=device)
    bases, rois, attention = blending_input(16 * _WORK[-1], device)
    masks, canvas_rois, labels = canvas_input(4 * _WORK[-1], device)
    blobs = blob_masks(_WORK[-1], 256, 512, device)
    sides = {work: 100 * int(work**0.5) for work in _WORK}
    maps = {work: blob_map(side, side) for work, side in sides.items()}
    calls: dict[str, Callable[[int], object]] = {
        "shape_aware_roi_align: 16 RoIs": lambda work: shape_aware_roi_align(
            feature, random_rois(16 * work, 400.0, 600.0, device), prob[: 16 * work], 7, 0.25, 0
        ),
        "blend_bases: 16 RoIs": lambda work: blend_bases(
            bases, rois[: 16 * work], attention[: 16 * work]
        ),
        "roi_flatten: 4 instances": lambda work: roi_flatten(
            masks[: 4 * work], canvas_rois[: 4 * work], labels[: 4 * work], 8, 1, (200, 304)
        ),
        "extract_boundary_patches: a mask of 256x512": lambda work: extract_boundary_patches(
            blobs[:work]
        ),
        "mask_intersections: 256 x 512 pixels of 64 masks": lambda work: mask_intersections(
            blobs.repeat(1, int(work**0.5), int(work**0.5))
        ),
        "connected_components: 100x100 pixels": lambda work: connected_components(maps[work]),
    }
    if device == "cpu":
        pairs = {work: segment_maps(60, side, side) for work, side in sides.items()}
        calls["pair_areas: 100x100 pixels"] = lambda work: pair_areas(*pairs[work])
    rows = []
    for name, call in calls.items():
        with torch.no_grad():
            times = time_in_turn(
                {str(work): lambda call=call, work=work: call(work) for work in _WORK}, repeats
            )
        seconds = {work: round(entry["median"], 6) for work, entry in times.items()}
        rows.append({"operator": name, "seconds": seconds})
    return rows


def markdown(record: dict[str, Any]) -> str:
    """The record as tables for the documentation."""
    lines = ["| operator | threads | ms | baseline | its ms | times faster |"]
    lines.append("|---|---|---|---|---|---|")
    for row in record["rows"]:
        lines.append(
            f"| {row['name']} | {row['threads']} | {1e3 * row['seconds']:.1f} | "
            f"{row['baseline']} | {1e3 * row['baseline_seconds']:.1f} | {row['times_faster']:.1f} |"
        )
    if record.get("peak_memory"):
        memory = record["peak_memory"]
        lines += [
            "",
            f"Blending 500 RoIs, forward and backward, takes {memory['ours_mb']:.0f} MB more at "
            f"its peak, in five steps {memory['unfused_mb']:.0f} MB.",
        ]
    lines += ["", f"| operator and unit of work | {' | '.join(f'x {w}' for w in _WORK)} |"]
    lines.append("|---|" + "---|" * len(_WORK))
    for row in record["growth"]:
        cells = " | ".join(f"{1e3 * row['seconds'][str(work)]:.2f} ms" for work in _WORK)
        lines.append(f"| {row['operator']} | {cells} |")
    return "\n".join(lines) + "\n"
