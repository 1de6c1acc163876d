"""A tiny MR R-CNN and pictures of squares for it."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from tiny_mr_rcnn import TWO_IMAGES, make_batch


def smaller(path):
    """A model of the zoo, smaller still: three classes, 32 RoIs an image."""
    register_all_modules()
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(
        {
            "model.roi_head.bbox_head.num_classes": 3,
            "model.roi_head.mask_head.num_classes": 3,
            "model.train_cfg.rpn_proposal.max_per_img": 60,
            "model.train_cfg.rcnn.sampler.num": 32,
            "model.test_cfg.rpn.max_per_img": 60,
        }
    )
    return cfg.model


@pytest.fixture(scope="session")
def model_cfg(repo_root):
    """The small MR R-CNN of the zoo, smaller still."""
    return smaller(repo_root / "configs/shapes/mr-rcnn_r18_shapes.py")


@pytest.fixture(scope="session")
def plain_cfg(repo_root):
    """mmdet's Mask R-CNN of the same size."""
    return smaller(repo_root / "configs/shapes/mask-rcnn_r18_shapes.py")


@pytest.fixture
def build(model_cfg):
    """Build the tiny model with some fields changed, its weights from a seed."""

    def build(seed=0, **roi_head):
        cfg = copy.deepcopy(model_cfg)
        cfg.roi_head.update(roi_head)
        torch.manual_seed(seed)
        return MODELS.build(cfg)

    return build


@pytest.fixture
def batch():
    """Two images of a few overlapping rectangles."""
    return make_batch(TWO_IMAGES)
