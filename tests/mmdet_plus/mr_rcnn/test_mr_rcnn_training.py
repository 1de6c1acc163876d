"""MR R-CNN on Shapes through the engine that the tools use: train, resume, test, two processes."""

import numpy as np
import pytest
from mmdet.apis import DetInferencer
from small_training import (
    FEW_BOXES,
    losses_logged,
    run_training,
    small_options,
    train_in_two_processes,
)

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import UserError, prepare_test_cfg, test
from mmdet_plus.engine.comparison import read_scalars

CONFIG = "configs/shapes/mr-rcnn_r18_shapes.py"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(root, num_train=8, num_val=2, image_size=(128, 128), progress=False)
    return root


@pytest.fixture(scope="module")
def options(shapes):
    """The small config, on small pictures for a few iterations."""
    return small_options(shapes) | FEW_BOXES


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, repo_root, options):
    """Working folder of a training of three iterations."""
    work_dir = tmp_path_factory.mktemp("unbroken")
    run_training(repo_root / CONFIG, work_dir, options)
    return work_dir


def test_a_resumed_training_has_the_losses_of_an_unbroken_one(
    unbroken, tmp_path, repo_root, options
):
    checkpoint = str(unbroken / "iter_1.pth")
    run_training(repo_root / CONFIG, tmp_path, options, resume=checkpoint)
    whole, resumed = losses_logged(unbroken), losses_logged(tmp_path)
    assert list(resumed) == [2, 3]
    assert {name for name in resumed[3] if name.startswith("refining.")} == {
        "refining.loss_cls",
        "refining.loss_bbox",
        "refining.loss_mask",
    }
    assert resumed == {step: whole[step] for step in (2, 3)}


def test_the_trained_model_is_tested_and_used(unbroken, tmp_path, repo_root, options):
    checkpoint = str(unbroken / "iter_3.pth")
    config = str(repo_root / CONFIG)
    metrics = test(
        prepare_test_cfg(config, checkpoint, work_dir=str(tmp_path), cfg_options=dict(options))
    )
    _, validation = read_scalars(unbroken)
    for name in ("coco/bbox_mAP", "coco/segm_mAP"):
        assert metrics[name] == validation[-1][name]
    inferencer = DetInferencer(config, checkpoint, device="cpu", show_progress=False)
    image = np.random.default_rng(0).integers(0, 255, (100, 140, 3), dtype=np.uint8)
    result = inferencer(image, return_datasamples=True)["predictions"][0].pred_instances
    assert result.masks.shape == (len(result), 100, 140)


def test_a_checkpoint_of_mask_rcnn_is_not_tested_as_mr_rcnn(tmp_path, repo_root, options, unbroken):
    """It would load, its heads copied, and give figures of a module that was never trained."""
    plain = str(repo_root / "configs/shapes/mask-rcnn_r18_shapes.py")
    work_dir = tmp_path / "plain"
    short = dict(options, **{"train_cfg.max_iters": 1, "train_cfg.val_interval": 1})
    run_training(plain, work_dir, short)
    cfg = prepare_test_cfg(
        str(repo_root / CONFIG),
        str(work_dir / "iter_1.pth"),
        work_dir=str(tmp_path / "test"),
        cfg_options=dict(options),
    )
    with pytest.raises(UserError, match="refining"):
        test(cfg)
    with pytest.raises(UserError, match="refining"):
        test(
            prepare_test_cfg(
                plain,
                str(unbroken / "iter_3.pth"),
                work_dir=str(tmp_path / "test2"),
                cfg_options=dict(options),
            )
        )
    # As the start of a training it is welcome.
    start = {"load_from": str(work_dir / "iter_1.pth")}
    run_training(repo_root / CONFIG, tmp_path / "tuned", {**short, **start})
    assert len(losses_logged(tmp_path / "tuned")) == 1


def test_mixed_precision(tmp_path, repo_root, options):
    run_training(repo_root / CONFIG, tmp_path, options, amp=True)
    values = [value for entry in losses_logged(tmp_path).values() for value in entry.values()]
    assert len(losses_logged(tmp_path)) == 3 and np.isfinite(values).all()


def test_two_processes(tmp_path, repo_root, options):
    entries = train_in_two_processes(repo_root / CONFIG, tmp_path, options)
    values = [value for entry in entries.values() for value in entry.values()]
    assert len(entries) == 2 and np.isfinite(values).all()


def test_a_misspelt_field_is_named(tmp_path, repo_root, options):
    wrong = dict(options, **{"model.roi_head.detach_gradient": True})
    with pytest.raises(UserError, match=r"RoIHead has no field 'detach_gradient'"):
        run_training(repo_root / CONFIG, tmp_path, wrong)
