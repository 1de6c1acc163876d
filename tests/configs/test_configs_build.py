"""Every config of the zoo is named well, can be read and builds; the small ones also work."""

import re
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import prepare_train_cfg
from mmdet_plus.engine.training import build_runner

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(
    path for path in CONFIGS.rglob("*.py") if "_base_" not in path.relative_to(CONFIGS).parts
)
SHAPES = [path for path in FILES if path.parent.name == "shapes"]
# Fields are joined with underscores and made of words joined with hyphens: mmdet's habit.
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(_[a-z0-9]+(-[a-z0-9]+)*)+")


def identify(path):
    return path.stem


def read(path):
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    forget_pretrained(cfg.model)
    return cfg


def forget_pretrained(node):
    """Take out what would be downloaded."""
    if isinstance(node, dict):
        init = node.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            node["init_cfg"] = None
        for value in node.values():
            forget_pretrained(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            forget_pretrained(value)


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
def test_model_builds(path):
    cfg = read(path)
    model = MODELS.build(cfg.model)
    assert type(model).__name__ == cfg.model.type.rpartition(".")[2]
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) > 0


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


@pytest.mark.parametrize("path", SHAPES, ids=identify)
def test_small_config_trains_and_tests(path, shapes, tmp_path, monkeypatch):
    # As the configs have it: data/shapes below the current folder.
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shapes").symlink_to(shapes)
    monkeypatch.chdir(tmp_path)
    options = {"train_cfg.max_iters": 1, "train_cfg.val_interval": 1, "log_level": "ERROR"}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
        options[f"{loader}.batch_size"] = 2
    cfg = prepare_train_cfg(str(path), work_dir=str(tmp_path / "work"), cfg_options=options)
    # The registry of running experiments keeps names; two configs in one second would share one.
    cfg.experiment_name = path.stem
    runner = build_runner(cfg)
    model = runner.model
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    runner.train()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert any(name.startswith("backbone") for name in moved)
    assert any(name.startswith("roi_head") for name in moved)
    assert all(torch.isfinite(p).all() for p in model.parameters())
    # Validation followed: the metric of the config's kind was computed.
    scalars = runner.message_hub.log_scalars
    kind = "coco_panoptic/PQ" if "panoptic" in path.stem else "coco/segm_mAP"
    assert any(name.endswith(kind) for name in scalars), list(scalars)
