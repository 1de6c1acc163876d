"""REFINE on Shapes through the engine that the tools use: train, resume, both stages, test."""

import numpy as np
import pytest
import torch
from mmdet.apis import DetInferencer
from small_training import (
    FEW_BOXES,
    NARROW,
    losses_logged,
    run_training,
    small_options,
    train_in_two_processes,
)

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import UserError, prepare_test_cfg, test
from mmdet_plus.engine.comparison import read_scalars

CONFIG = "configs/shapes/refine_r18_shapes.py"
LOSSES = {f"loss_{part}_{t}" for part in ("mask", "seg") for t in (1, 2, 3)} | {
    "loss_seg",
    "loss_occlusion",
}


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The small config, smaller still, on small pictures for a few iterations."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(root, num_train=8, num_val=2, image_size=(96, 96), progress=False)
    few = {
        "model.occlusion_head.conv_channels": 8,
        "model.occlusion_head.fc_channels": 8,
        "model.occlusion_head.score_thr": 0.0,
        "model.test_cfg.panoptic.score_thr": 0.0,
    }
    return small_options(root, panoptic=True) | NARROW | FEW_BOXES | few


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, repo_root, options):
    """Working folder of a training of three iterations."""
    work_dir = tmp_path_factory.mktemp("unbroken")
    run_training(repo_root / CONFIG, work_dir, options)
    return work_dir


def test_all_parts_are_in_the_log(unbroken):
    for entry in losses_logged(unbroken).values():
        assert entry.keys() >= LOSSES
        parts = [v for k, v in entry.items() if k.startswith("loss_")]
        assert entry["loss"] == pytest.approx(sum(parts), rel=1e-4)


def test_a_resumed_training_has_the_losses_of_an_unbroken_one(
    unbroken, tmp_path, repo_root, options
):
    run_training(repo_root / CONFIG, tmp_path, options, resume=str(unbroken / "iter_1.pth"))
    whole = losses_logged(unbroken)
    assert losses_logged(tmp_path) == {step: whole[step] for step in (2, 3)}


def test_the_trained_model_is_tested_and_used(unbroken, tmp_path, repo_root, options):
    config, checkpoint = str(repo_root / CONFIG), str(unbroken / "iter_3.pth")
    metrics = test(
        prepare_test_cfg(config, checkpoint, work_dir=str(tmp_path), cfg_options=dict(options))
    )
    _, validation = read_scalars(unbroken)
    for name in ("PQ", "PQ_th", "PQ_st"):
        assert metrics[f"coco_panoptic/{name}"] == validation[-1][f"coco_panoptic/{name}"]
    inferencer = DetInferencer(config, checkpoint, device="cpu", show_progress=False)
    image = np.random.default_rng(0).integers(0, 255, (100, 140, 3), dtype=np.uint8)
    (result,) = inferencer(image, return_datasamples=True, no_save_vis=True)["predictions"]
    assert result.pred_panoptic_seg.sem_seg.shape == (1, 100, 140)


def test_the_second_stage_leaves_the_first_as_it_was(unbroken, tmp_path, repo_root, options):
    checkpoint = unbroken / "iter_3.pth"
    second = options | {"model.occlusion_only": True, "load_from": str(checkpoint)}
    run_training(repo_root / CONFIG, tmp_path, second)
    entries = losses_logged(tmp_path)
    assert all(
        {k for k in entry if k.startswith("loss")} == {"loss", "loss_occlusion"}
        for entry in entries.values()
    )
    before, after = (
        torch.load(folder / "iter_3.pth", weights_only=False)["state_dict"]
        for folder in (unbroken, tmp_path)
    )
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all(name.startswith("occlusion_head") for name in changed)


def test_the_second_stage_needs_all_of_the_first(unbroken, tmp_path, repo_root, options):
    second = options | {"model.occlusion_only": True}
    with pytest.raises(UserError, match="name its checkpoint in load_from"):
        run_training(repo_root / CONFIG, tmp_path / "none", second)
    file = torch.load(unbroken / "iter_3.pth", weights_only=False)
    weights = file["state_dict"]
    name = "semantic_head.conv_logits.weight"
    weights[name] = weights[name][:2]
    del weights["roi_head.bbox_head.fc_cls.bias"]
    torch.save(file, tmp_path / "other.pth")
    second["load_from"] = str(tmp_path / "other.pth")
    with pytest.raises(UserError) as caught:
        run_training(repo_root / CONFIG, tmp_path / "other", second)
    for part in ("1 missing (roi_head.bbox_head.fc_cls.bias)", "1 of another shape", name):
        assert part in str(caught.value)
    assert "occlusion_head." not in str(caught.value) and "stay as they are" in str(caught.value)


def test_the_first_stage_is_not_tested_as_the_second(unbroken, tmp_path, repo_root, options):
    file = torch.load(unbroken / "iter_3.pth", weights_only=False)
    for name in [name for name in file["state_dict"] if name.startswith("occlusion_head")]:
        del file["state_dict"][name]
    torch.save(file, tmp_path / "first.pth")
    cfg = prepare_test_cfg(
        str(repo_root / CONFIG),
        str(tmp_path / "first.pth"),
        work_dir=str(tmp_path),
        cfg_options=dict(options),
    )
    with pytest.raises(UserError, match="occlusion_head"):
        test(cfg)


def test_mixed_precision(tmp_path, repo_root, options):
    run_training(repo_root / CONFIG, tmp_path, options, amp=True)
    values = [value for entry in losses_logged(tmp_path).values() for value in entry.values()]
    assert len(losses_logged(tmp_path)) == 3 and np.isfinite(values).all()


def test_two_processes(tmp_path, repo_root, options):
    entries = train_in_two_processes(repo_root / CONFIG, tmp_path, options)
    values = [value for entry in entries.values() for value in entry.values()]
    assert len(entries) == 2 and np.isfinite(values).all()
