"""The tiny models of ``tiny_maskplus`` and two pictures for them."""

import pytest
from mmengine.registry import DefaultScope
from tiny_maskplus import cascade_cfg, mask_rcnn_cfg, two_images


@pytest.fixture(autouse=True)
def mmdet_scope():
    """Build from mmdet's registries, whatever the tests before left, and leave nothing."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.fixture(scope="session")
def mask_rcnn():
    """Config of mmdet's Mask R-CNN."""
    return mask_rcnn_cfg()


@pytest.fixture(scope="session")
def cascade():
    """Config of mmdet's Cascade Mask R-CNN."""
    return cascade_cfg()


@pytest.fixture
def batch():
    """Two pictures."""
    return two_images()
