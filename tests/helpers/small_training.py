"""Trainings of a few iterations on small pictures, through the engine that the tools use."""

import os
import subprocess
import sys
from pathlib import Path

from mmdet_plus.engine import prepare_train_cfg, train
from mmdet_plus.engine.comparison import read_scalars

# A ResNet-18 of a quarter of the width.
NARROW = {
    "model.backbone.base_channels": 16,
    "model.backbone.stem_channels": 16,
    "model.neck.in_channels": [16, 32, 64, 128],
}
# Of two-stage models.
FEW_BOXES = {
    "model.train_cfg.rcnn.sampler.num": 16,
    "model.test_cfg.rcnn.score_thr": 0.0,
    "model.test_cfg.rcnn.max_per_img": 10,
}


def small_options(root, iterations=3, panoptic=False):
    """Options for a config on Shapes: the set in ``root``, everything logged and kept."""
    options = {
        "train_dataloader.batch_size": 2,
        "train_cfg.max_iters": iterations,
        "train_cfg.val_interval": iterations,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.checkpoint.max_keep_ckpts": -1,
        "default_hooks.logger.interval": 1,
    }
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.dataset.data_root"] = str(root)
        options[f"{part}_dataloader.num_workers"] = 0
        options[f"{part}_dataloader.persistent_workers"] = False
    kind = "panoptic" if panoptic else "instances"
    for part in ("val", "test"):
        options[f"{part}_evaluator.ann_file"] = f"{root}/annotations/{kind}_val.json"
        if panoptic:
            options[f"{part}_evaluator.seg_prefix"] = f"{root}/panoptic_val/"
    return options


def run_training(config, work_dir, options, **arguments):
    """Train in this process; with a visualizer of its own, or mmengine logs to the first run's."""
    options = options | {"visualizer.name": str(work_dir), "log_processor.window_size": 1}
    train(prepare_train_cfg(str(config), work_dir=str(work_dir), cfg_options=options, **arguments))


def losses_logged(work_dir, *further):
    """By iteration, the losses, the gradient's norm and further entries of the log."""
    training, _ = read_scalars(work_dir)
    wanted = ("grad_norm", *further)
    return {
        entry["step"]: {k: v for k, v in entry.items() if "loss" in k or k in wanted}
        for entry in training
    }


def train_in_two_processes(config, work_dir, options):
    """Do two iterations by ``tools/dist_train.sh``; returns their losses.

    Distributed training hangs or fails where a parameter gets no gradient.
    """
    options = options | {"train_cfg.max_iters": 2, "train_cfg.val_interval": 2}
    tool = Path(__file__).resolve().parents[2] / "tools/dist_train.sh"
    pairs = [f"{key}={value}" for key, value in options.items()]
    subprocess.run(
        ["bash", tool, config, "2", "--work-dir", str(work_dir), "--cfg-options", *pairs],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        cwd=work_dir,
        check=True,
        timeout=300,
    )
    return losses_logged(work_dir)
