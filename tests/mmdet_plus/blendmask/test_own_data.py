"""A user's data set with classes of its own, by the config that the documentation shows."""

import json
import re

import cv2
import numpy as np
import pytest
import torch
from adelaidet_names import theirs_of
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import load_checkpoint

from mmdet_plus.engine import prepare_train_cfg, train
from mmdet_plus.engine.comparison import read_scalars


@pytest.fixture
def own(tmp_path, repo_root):
    """The documented config on drawn pictures of two classes, whose ids have gaps."""
    generator = np.random.default_rng(0)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        images, annotations = [], []
        for number in range(2):
            picture = generator.integers(0, 90, (64, 80, 3), np.uint8)
            cv2.rectangle(picture, (10, 12), (50, 52), (200, 60, 220), -1)
            cv2.imwrite(str(tmp_path / split / f"{number}.png"), picture)
            images.append(dict(id=number, file_name=f"{number}.png", height=64, width=80))
            polygon = [10, 12, 50, 12, 50, 52, 10, 52]
            annotations.append(
                dict(id=number + 1, image_id=number, category_id=9, bbox=[10, 12, 40, 40])
                | dict(area=1600, iscrowd=0, segmentation=[polygon])
            )
        categories = [dict(id=4, name="cat"), dict(id=9, name="dog")]
        content = dict(images=images, annotations=annotations, categories=categories)
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    text = (repo_root / "docs/blendmask.md").read_text()
    (code,) = re.findall(r"```python\n(_base_.*?)```", text, re.DOTALL)
    base = repo_root / "configs/blendmask/blendmask_r50-caffe_fpn_1x_coco.py"
    assert f'"./{base.name}"' in code
    code = code.replace(f"./{base.name}", base.as_posix()).replace("path/to", tmp_path.as_posix())
    (tmp_path / "own.py").write_text(code)
    return tmp_path


def test_the_documented_config_trains(own):
    small = dict(
        depth=18, base_channels=8, init_cfg=None, frozen_stages=-1, norm_eval=False, style="pytorch"
    )
    options = {f"model.backbone.{key}": value for key, value in small.items()}
    options |= {
        "load_from": None,
        "model.neck.in_channels": [8, 16, 32, 64],
        "model.backbone.norm_cfg.requires_grad": True,
        "model.bbox_head.stacked_convs": 1,
        "model.test_cfg.score_thr": 1e-4,
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "default_hooks.logger.interval": 1,
        "visualizer.name": str(own),
    }
    for part in ("train", "val", "test"):
        options[f"{part}_dataloader.num_workers"] = 0
        options[f"{part}_dataloader.persistent_workers"] = False
    options["train_dataloader.dataset.pipeline.2.scales"] = [(128, 96)]
    options["val_dataloader.dataset.pipeline.1.scale"] = (128, 96)
    train(prepare_train_cfg(str(own / "own.py"), work_dir=str(own / "w"), cfg_options=options))
    training, validation = read_scalars(own / "w")
    assert len(training) == 2 and np.isfinite(training[-1]["loss"])
    assert "coco/segm_mAP" in validation[-1]


def test_classes_reach_every_head(own):
    cfg = Config.fromfile(str(own / "own.py"))
    cfg.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    model = MODELS.build(cfg.model)
    assert model.bbox_head.num_classes == 2
    assert model.bbox_head.conv_cls.out_channels == 2
    assert model.mask_head.bases.conv_sem.out_channels == 3
    assert cfg.test_evaluator.ann_file == f"{own}/val.json"


def test_fine_tuning_from_the_authors_with_other_classes(own, tmp_path):
    cfg = Config.fromfile(str(own / "own.py"))
    cfg.model.backbone.init_cfg = None
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    cfg.model.bbox_head.num_classes = 80
    source = MODELS.build(cfg.model)
    theirs = theirs_of(source, blocks=(3, (3, 4, 6, 3)))
    torch.save(dict(model=theirs), tmp_path / cfg.load_from)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    load_checkpoint(model, str(tmp_path / cfg.load_from), map_location="cpu")
    kept = {"bbox_head.conv_cls", "mask_head.bases.conv_sem"}
    for name, value in model.state_dict().items():
        expected = before if name.rpartition(".")[0] in kept else source.state_dict()
        assert torch.equal(value, expected[name]), name
