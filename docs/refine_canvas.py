"""Look into a trained IBPP: what its canvas holds, and what the semantics make of it.

    python docs/refine_canvas.py CONFIG CHECKPOINT --out RECORD.json

On pictures of the training, with the RoIs that a training samples there: which things have none,
and are missing on the canvas, and how many pixels the semantics of each iteration name rightly,
with the canvas and with an empty one. On the test set: what the semantics of each iteration are
worth.

Shape letters: N images, C classes of things, then of stuff, h x w a quarter of the input.
"""

import argparse
import itertools
import shlex
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from mmengine.runner import Runner, set_random_seed
from mmseg.evaluation import IoUMetric
from torch import Tensor, nn

from mmdet_plus.engine.errors import UserError, run_command
from mmdet_plus.engine.fuser_comparison import portable
from mmdet_plus.engine.testing import begin_test, prepare_test_cfg
from mmdet_plus.engine.training import build_runner
from mmdet_plus.refine import IterativeProjectionRoIHead
from mmseg_plus.common.compat import versions
from mmseg_plus.common.files import write_json

GROUPS = ("things", "stuff")


def training_canvas(model: nn.Module, batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Count what pictures of the training show of the canvas.

    Args:
        model: A ``REFINE`` with iterations on the boxes of Faster R-CNN, in evaluation mode.
        batches: Of a training's loader.

    Returns:
        ``images``; ``things`` and ``things_without_roi``; and as ``share_named_rightly``, for each
        t from 1 to T, that of the pixels of things and of stuff, ``with_canvas`` and
        ``with_empty_canvas``.
    """
    projection = model.roi_head.projection
    counts = dict(images=0, things=0, things_without_roi=0)
    pixels = torch.zeros(len(GROUPS), dtype=torch.long)
    right = [
        {kind: torch.zeros_like(pixels) for kind in ("with_canvas", "with_empty_canvas")}
        for _ in range(projection.num_iterations)
    ]
    sampled, calls = [], []
    mask_loss = model.roi_head.mask_loss

    def note(state, sampling_results, *others):
        sampled.extend(sampling_results)
        return mask_loss(state, sampling_results, *others)

    hooks = [
        head.register_forward_pre_hook(lambda *call: calls.append(call))
        for head in projection.semantic_heads
    ]
    model.roi_head.mask_loss = note
    try:
        for batch in batches:
            sampled.clear()
            calls.clear()
            data = model.data_preprocessor(batch, True)
            samples = data["data_samples"]
            model.loss(data["inputs"], samples)
            counts["images"] += len(samples)
            for sample, result in zip(samples, sampled, strict=True):
                things = len(sample.gt_instances)
                counts["things"] += things
                found = result.pos_assigned_gt_inds.unique()
                counts["things_without_roi"] += things - len(found)
            labels = model.semantic_head.targets(samples, calls[0][1][0].shape[-2:])
            groups = _groups(labels, model.semantic_head)
            pixels += torch.stack([group.sum() for group in groups]).cpu()
            for row, (head, (canvas, sem_feats)) in zip(right, calls, strict=True):
                for kind, given in zip(row, (canvas, torch.zeros_like(canvas)), strict=True):
                    # Past the hook, which would note this, too.
                    named = head.forward(given, sem_feats).argmax(1) == labels
                    row[kind] += torch.stack([(named & group).sum() for group in groups]).cpu()
    finally:
        for hook in hooks:
            hook.remove()
        del model.roi_head.mask_loss
    rows = [
        dict(t=t, **{kind: _by_group(number / pixels) for kind, number in row.items()})
        for t, row in enumerate(right, 1)
    ]
    return {**counts, "share_named_rightly": rows}


def semantics_by_iteration(model: nn.Module, batches: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Compute what the semantics of each iteration are worth.

    Args:
        model: A ``REFINE`` with iterations, in evaluation mode.
        batches: Of a test's loader, whose pipeline loads the ground truth.

    Returns:
        ``images``, and ``mean_iou`` with, for each t from 0 to T, that of things and of stuff.
    """
    head, projection = model.semantic_head, model.roi_head.projection
    seen: list[Tensor] = []
    hooks = [head.register_forward_hook(lambda *call: seen.append(call[-1]["seg_preds"]))]
    hooks += [
        part.register_forward_hook(lambda *call: seen.append(call[-1]))
        for part in projection.semantic_heads
    ]
    # Intersection and union of each class, of each iteration.
    areas = torch.zeros(projection.num_iterations + 1, 2, head.num_classes, dtype=torch.double)
    ignored = head.loss_seg.ignore_index
    images = 0
    try:
        for batch in batches:
            seen.clear()
            samples = model.test_step(batch)
            images += len(samples)
            metas = [sample.metainfo for sample in samples]
            for area, seg_preds in zip(areas, seen, strict=True):
                enlarged = head.predict_by_feat(seg_preds, metas, rescale=True)
                for sample, logits in zip(samples, enlarged, strict=True):
                    labels = sample.gt_sem_seg.sem_seg[0].to(logits.device)
                    labels = labels.masked_fill(labels >= head.num_classes, ignored)
                    both, union, *_ = IoUMetric.intersect_and_union(
                        logits.argmax(0), labels, head.num_classes, ignored
                    )
                    area += torch.stack([both, union])
    finally:
        for hook in hooks:
            hook.remove()
    rows = []
    for t, (both, union) in enumerate(areas):
        iou = both / union
        values = [
            values.nanmean()
            for values in iou.split([head.num_things_classes, head.num_stuff_classes])
        ]
        rows.append(dict(t=t, **_by_group(torch.stack(values))))
    return dict(images=images, mean_iou=rows)


def _groups(labels: Tensor, semantic_head: nn.Module) -> list[Tensor]:
    """Where things are, and where stuff is; neither where there is void."""
    things = semantic_head.num_things_classes
    stuff = (labels >= things) & (labels < semantic_head.num_classes)
    return [labels < things, stuff]


def _by_group(values: Tensor) -> dict[str, float]:
    return {name: round(value, 4) for name, value in zip(GROUPS, values.tolist(), strict=True)}


@torch.no_grad()
def look(runner: Runner, images: int, seed: int) -> dict[str, Any]:
    """All that the record tells of a model.

    Args:
        runner: Built from a config that is prepared for a test.
        images: Of the training, rounded up to whole batches.
        seed: Of their order, their augmentation and the RoIs.

    Raises:
        UserError: The model has no iterations on the boxes of Faster R-CNN.
    """
    model = runner.model
    head = getattr(model, "roi_head", None)
    if not isinstance(head, IterativeProjectionRoIHead) or not head.num_iterations:
        raise UserError("the model's roi_head is no IterativeProjectionRoIHead with iterations")
    begin_test(runner)
    # In this process, whose state the seed decides.
    loader = runner.cfg.train_dataloader | dict(num_workers=0, persistent_workers=False)
    loader = runner.build_dataloader(loader, seed=seed)
    set_random_seed(seed)
    batches = itertools.islice(loader, -(-images // runner.cfg.train_dataloader.batch_size))
    return dict(
        training=training_canvas(model, batches),
        test=semantics_by_iteration(model, runner.test_dataloader),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config")
    parser.add_argument("checkpoint")
    parser.add_argument("--images", type=int, default=48, help="of the training (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures (default: 0)")
    parser.add_argument("--out", required=True, metavar="JSON", help="the record")
    args = parser.parse_args()

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            cfg = prepare_test_cfg(args.config, args.checkpoint, work_dir=folder)
            cfg.log_level = "WARNING"
            record = {
                "command": shlex.join(["python", *map(portable, sys.argv)]),
                "config": Path(cfg.filename).stem,
                **look(build_runner(cfg), args.images, args.seed),
                "versions": versions(),
            }
        write_json(Path(args.out), record)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
