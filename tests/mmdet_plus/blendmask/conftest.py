"""A tiny BlendMask, and pictures of rectangles for it."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from tiny_mr_rcnn import TWO_IMAGES, make_batch


@pytest.fixture(scope="session")
def model_cfg(repo_root):
    """The small BlendMask of the zoo with three classes."""
    register_all_modules()
    cfg = Config.fromfile(repo_root / "configs/shapes/blendmask_r18_shapes.py").model
    cfg.bbox_head.num_classes = 3
    return cfg


@pytest.fixture(scope="session")
def panoptic_cfg(repo_root):
    """The small panoptic BlendMask of the zoo, of three things and two kinds of stuff."""
    register_all_modules()
    cfg = Config.fromfile(repo_root / "configs/shapes/blendmask-panoptic_r18_shapes.py").model
    cfg.bbox_head.num_classes = 3
    cfg.semantic_head.num_stuff_classes = 2
    return cfg


@pytest.fixture
def build(model_cfg):
    """Build the tiny model with some fields changed, its weights from a seed."""

    def build(seed=0, changes=None, cfg=model_cfg):
        cfg = copy.deepcopy(cfg)
        Config.merge_from_dict(holder := Config(dict(model=cfg)), changes or {})
        torch.manual_seed(seed)
        return MODELS.build(holder.model)

    return build


@pytest.fixture
def batch():
    """Two images of a few overlapping rectangles."""
    return make_batch(TWO_IMAGES)
