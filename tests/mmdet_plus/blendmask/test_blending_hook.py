"""Pictures of bases and attention: what is drawn, and that a test draws it."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import HOOKS, MODELS
from mmengine.registry import DefaultScope

from mmdet_plus.blendmask.blending_hook import Blending, cut_out, draw_blending, find_blender
from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import prepare_test_cfg, test
from mmseg_plus.common.config import read_config

CONFIG = "configs/shapes/blendmask_r18_shapes.py"


def blending(count=3):
    torch.manual_seed(0)
    return Blending(
        bases=torch.randn(4, 12, 16),
        boxes=torch.tensor([[4.0, 4, 30, 30], [-10, -5, 20, 20], [50, 40, 90, 60]])[:count],
        attention=torch.randn(count, 4, 14, 14),
        masks=torch.randn(count, 56, 56),
    )


@pytest.mark.parametrize(("count", "rows"), [(0, 0), (3, 2), (1, 1)])
def test_a_row_for_each_of_the_surest_instances(count, rows):
    image = np.random.default_rng(0).integers(0, 256, (45, 60, 3), np.uint8)
    drawn = draw_blending(image, blending(count), max_instances=2)
    # Title, the image's row, and rows of twice the mask's side, with gaps of 8 pixels.
    assert drawn.shape[0] == 34 + 8 + 45 + 8 + rows * (112 + 8)
    assert (drawn[42:87, 8:68] == image).all()


def test_shares_are_the_softmax_over_bases():
    given = blending(1)
    given.attention[0, 2] = 50  # the third base has it all
    drawn = draw_blending(np.zeros((48, 64, 3), np.uint8), given)
    row = drawn[42 + 48 + 8 + 56]
    first, second, third, fourth = (row[8 + 120 * column + 56].tolist() for column in range(1, 5))
    assert first == second == fourth != third


def test_boxes_that_leave_the_image_are_black_there():
    image = np.full((20, 30, 3), 200, np.uint8)
    cut = cut_out(image, [-5.0, 10, 10, 25])
    assert cut.shape == (15, 15, 3)
    assert (cut[:10, 5:] == 200).all() and not cut[:, :5].any() and not cut[10:].any()
    assert cut_out(image, [40.0, 5, 50, 9]).shape == (1, 1, 3)


def test_a_test_writes_pictures(tmp_path):
    small = dict(image_size=(96, 96), progress=False)
    data = make_shapes(tmp_path / "set", num_train=0, num_val=3, **small)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(read_config(CONFIG).model)
        model.init_weights()
    torch.nn.init.constant_(model.bbox_head.conv_reg.bias, 2.0)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / "weights.pth")
    options = {
        "custom_hooks": [dict(type="BlendingVisualizationHook", max_images=2)],
        "model.test_cfg.score_thr": 1e-4,
        "test_dataloader.batch_size": 1,
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        "test_dataloader.dataset.data_root": str(data),
        "test_evaluator.ann_file": f"{data}/annotations/instances_val.json",
    }
    cfg = prepare_test_cfg(
        CONFIG, str(tmp_path / "weights.pth"), work_dir=str(tmp_path / "work"), cfg_options=options
    )
    test(cfg)
    pictures = sorted((tmp_path / "work").rglob("blending/*.png"))
    assert len(pictures) == 2
    picture = cv2.imread(str(pictures[0]))
    assert picture.shape[1] > 6 * 96 and len(np.unique(picture)) > 50


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="no Blender"):
        find_blender(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="at least 1"):
        HOOKS.build(dict(type="BlendingVisualizationHook", interval=0))
