"""Every config of the zoo is named well, can be read and builds; the small ones also work."""

import logging
import re
import socket
import sys
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import CheckpointLoader

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import prepare_train_cfg
from mmdet_plus.engine.training import build_runner

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(
    path for path in CONFIGS.rglob("*.py") if "_base_" not in path.relative_to(CONFIGS).parts
)
# Detectors; test_bpr_configs.py trains the refiners.
SHAPES = [
    path for path in FILES if path.parent.name == "shapes" and not path.stem.startswith("bpr_")
]
# Fields are joined with underscores and made of words joined with hyphens: mmdet's habit.
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(_[a-z0-9]+(-[a-z0-9]+)*)+")


def identify(path):
    return path.stem


def read(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    return cfg


def pretrained(node):
    """List the weights of single parts that a config would fetch."""
    found = []
    for value in node.values() if isinstance(node, dict) else node:
        if isinstance(value, (dict, list, tuple)):
            found += pretrained(value)
    if isinstance(node, dict):
        if node.get("type") == "Pretrained":
            found.append(node["checkpoint"])
        # The older way, which mmsegmentation's models still have.
        if node.get("pretrained"):
            found.append(node["pretrained"])
    return found


def fetched(*arguments, **keywords):
    raise AssertionError(f"weights were to be fetched: {arguments} {keywords}")


def test_there_are_configs():
    assert len(FILES) >= 20 and len(SHAPES) >= 3


def test_file_names_are_unique():
    # A bare name must find one config, as `mim train mmplus NAME` and resolve_config do.
    names = [path.stem for path in FILES]
    assert len(set(names)) == len(names), sorted(n for n in names if names.count(n) > 1)


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_names_follow_the_habit(path):
    assert NAME.fullmatch(path.stem), path
    assert re.fullmatch(r"[a-z0-9_]+", path.parent.name), path


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_model_builds_and_initialises(path, monkeypatch):
    cfg = read(path)
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == cfg.model.type.rpartition(".")[2]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    if cfg.load_from:
        # It brings every weight: parts fetched before it would be overwritten.
        assert pretrained(cfg.model) == []
    if not pretrained(cfg.model):
        # As the training does first, on a machine without network and torchvision.
        monkeypatch.setattr(CheckpointLoader, "load_checkpoint", fetched)
        monkeypatch.setattr(socket, "create_connection", fetched)
        monkeypatch.setitem(sys.modules, "torchvision", None)
        logging.getLogger("mmengine").setLevel("ERROR")
        model.init_weights()


@pytest.mark.parametrize("path", FILES, ids=identify)
def test_schedule_and_data_are_complete(path):
    cfg = Config.fromfile(path)
    for key in ("train_dataloader", "val_dataloader", "test_dataloader", "test_evaluator"):
        assert cfg[key], key
    if cfg.train_cfg.type != "IterBasedTrainLoop":
        return
    # Schedulers that end before or after the training are leftovers of another length.
    ends = [s.end for s in cfg.param_scheduler if s.type == "CosineAnnealingLR"]
    assert all(end == cfg.train_cfg.max_iters for end in ends)
    milestones = [m for s in cfg.param_scheduler for m in s.get("milestones", ())]
    assert all(m < cfg.train_cfg.max_iters for m in milestones)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("configs") / "shapes"
    return make_shapes(root, num_train=4, num_val=2, image_size=(128, 128), progress=False)


class Start(Hook):
    """Keeps the parameters as they are when training starts, after their initialisation."""

    def before_train(self, runner):
        self.values = {name: p.detach().clone() for name, p in runner.model.named_parameters()}


@pytest.fixture
def train_small(shapes, tmp_path, monkeypatch):
    """Train a small config for one iteration and validate it: ``train_small(path, amp)``."""
    monkeypatch.chdir(tmp_path)

    def train(path, amp=False):
        # As the configs have it: data/shapes below the current folder, or another set of Shapes.
        folder = Path(read(path).train_dataloader.dataset.data_root)
        assert folder.parts[0] == "data" and folder.name.startswith("shapes")
        folder.parent.mkdir(exist_ok=True)
        folder.symlink_to(shapes)
        options = {"train_cfg.max_iters": 1, "train_cfg.val_interval": 1, "log_level": "ERROR"}
        # From random weights, whatever the config starts from.
        options["load_from"] = None
        if read(path).model.get("occlusion_only"):
            # All but the occlusion head must be there.
            options["load_from"] = str(tmp_path / "first_stage.pth")
            init_default_scope("mmdet")
            model = MODELS.build(read(path).model)
            torch.save(dict(state_dict=model.state_dict()), options["load_from"])
        if path.stem.startswith("blendmask"):
            # Random weights are less sure than that, and what finds nothing has no metrics.
            options["model.test_cfg.score_thr"] = 1e-4
        for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
            options |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
            options[f"{loader}.batch_size"] = 2
        cfg = prepare_train_cfg(
            str(path), work_dir=str(tmp_path / "work"), amp=amp, cfg_options=options
        )
        # The registry of running experiments keeps names; two configs in one second would share
        # one.
        cfg.experiment_name = f"{path.stem}_{amp}"
        runner = build_runner(cfg)
        start = Start()
        runner.register_hook(start)
        runner.train()
        assert all(torch.isfinite(p).all() for p in runner.model.parameters())
        # Validation followed: the metric of the config's kind was computed.
        scalars = runner.message_hub.log_scalars
        panoptic = cfg.test_evaluator.type == "PanopticMetric"
        kind = "coco_panoptic/PQ" if panoptic else "coco/segm_mAP"
        assert any(name.endswith(kind) for name in scalars), list(scalars)
        return [
            name
            for name, p in runner.model.named_parameters()
            if not torch.equal(p, start.values[name])
        ]

    return train


@pytest.mark.parametrize("path", SHAPES, ids=identify)
def test_small_config_trains_and_tests(path, train_small):
    moved = train_small(path)
    if read(path).model.get("occlusion_only"):
        assert moved and all(name.startswith("occlusion_head") for name in moved)
    else:
        assert any(name.startswith("backbone") for name in moved)
        assert any(name.startswith(("roi_head", "mask_head")) for name in moved)


@pytest.mark.cuda
@pytest.mark.parametrize("path", SHAPES, ids=identify)
def test_small_config_trains_and_tests_in_mixed_precision_on_a_gpu(path, train_small):
    # What moves is left open: the first step of float16 may well be skipped.
    train_small(path, amp=True)
