"""MaskPlus on Shapes through the engine that the tools use: train, resume, test."""

import json

import numpy as np
import pytest
import torch
from mmdet.datasets import CocoDataset
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

CONFIG = "configs/shapes/maskplus_r18_shapes.py"
PLAIN = "configs/shapes/mask-rcnn_r18_shapes.py"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """The small config, smaller still, on small pictures for a few iterations."""
    root = tmp_path_factory.mktemp("shapes") / "set"
    make_shapes(root, num_train=8, num_val=2, image_size=(96, 96), progress=False)
    return small_options(root, iterations=4) | NARROW | FEW_BOXES


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, repo_root, options):
    """Working folder of a training of four iterations."""
    work_dir = tmp_path_factory.mktemp("unbroken")
    run_training(repo_root / CONFIG, work_dir, options)
    return work_dir


def logged(work_dir):
    return losses_logged(work_dir, "biased_weight")


def test_all_techniques_are_in_the_log(unbroken):
    entries = logged(unbroken)
    assert [entries[step]["biased_weight"] for step in (1, 2, 3, 4)] == [1.5, 1.5, 1, 1]
    for entry in entries.values():
        parts = [v for k, v in entry.items() if k.startswith("loss_")]
        assert entry["loss"] == pytest.approx(sum(parts), rel=1e-4)
        assert entry["loss_mask"] > 0 and entry["loss_mask_quasi"] > 0


def test_a_resumed_training_has_the_losses_of_an_unbroken_one(
    unbroken, tmp_path, repo_root, options
):
    """It stops before the switch, and goes over it."""
    checkpoint = str(unbroken / "iter_1.pth")
    run_training(repo_root / CONFIG, tmp_path, options, resume=checkpoint)
    whole = logged(unbroken)
    assert logged(tmp_path) == {step: whole[step] for step in (2, 3, 4)}


def test_weights_are_tested_with_the_scaffold_or_without(unbroken, tmp_path, repo_root, options):
    file = torch.load(unbroken / "iter_4.pth", weights_only=False)
    branch = [name for name in file["state_dict"] if "quasi_branch" in name]
    assert len(branch) > 0
    for name in branch:
        del file["state_dict"][name]
    torch.save(file, tmp_path / "without.pth")
    _, validation = read_scalars(unbroken)
    for checkpoint in (unbroken / "iter_4.pth", tmp_path / "without.pth"):
        metrics = test(
            prepare_test_cfg(
                str(repo_root / CONFIG),
                str(checkpoint),
                work_dir=str(tmp_path / checkpoint.stem),
                cfg_options=dict(options),
            )
        )
        for name in ("coco/bbox_mAP", "coco/segm_mAP"):
            assert metrics[name] == validation[-1][name]


def test_a_mask_rcnn_starts_it_but_is_not_tested_as_it(tmp_path, repo_root, options):
    short = dict(options, **{"train_cfg.max_iters": 1, "train_cfg.val_interval": 1})
    run_training(repo_root / PLAIN, tmp_path / "plain", short)
    checkpoint = str(tmp_path / "plain/iter_1.pth")
    cfg = prepare_test_cfg(
        str(repo_root / CONFIG), checkpoint, work_dir=str(tmp_path / "t"), cfg_options=dict(options)
    )
    with pytest.raises(UserError, match="mask_roi_extractor.fusion") as error:
        test(cfg)
    assert "quasi" not in str(error.value)
    run_training(repo_root / CONFIG, tmp_path / "tuned", {**short, "load_from": checkpoint})
    assert list(logged(tmp_path / "tuned")) == [1]


def test_mixed_precision(tmp_path, repo_root, options):
    given = dict(options, **{"train_cfg.max_iters": 2, "train_cfg.val_interval": 2})
    run_training(repo_root / CONFIG, tmp_path, given, amp=True)
    values = [value for entry in logged(tmp_path).values() for value in entry.values()]
    assert len(logged(tmp_path)) == 2 and np.isfinite(values).all()


def test_two_processes(tmp_path, repo_root, options):
    entries = train_in_two_processes(repo_root / CONFIG, tmp_path, options)
    values = [value for entry in entries.values() for value in entry.values()]
    assert len(entries) == 2 and np.isfinite(values).all()
    assert all(entry["loss_mask_quasi"] > 0 for entry in entries.values())


@pytest.fixture(scope="module")
def coco_names(tmp_path_factory):
    """Shapes under the names of COCO's first classes, for the configs of COCO as they are."""
    root = tmp_path_factory.mktemp("coco") / "set"
    make_shapes(root, num_train=2, num_val=1, image_size=(96, 96), progress=False)
    for path in (root / "annotations").glob("instances_*.json"):
        content = json.loads(path.read_text())
        ids = [category["id"] for category in content["categories"]]
        ids += range(max(ids) + 1, max(ids) + 81 - len(ids))
        names = CocoDataset.METAINFO["classes"]
        content["categories"] = [dict(id=i, name=n) for i, n in zip(ids, names, strict=True)]
        path.write_text(json.dumps(content))
    return root


@pytest.mark.parametrize(
    "name", ["maskplus-mr-rcnn_r50_fpn_9k_coco", "maskplus_swin-t-p4-w7_fpn_1x_coco"]
)
def test_configs_that_stack_on_other_models(name, coco_names, tmp_path):
    """Two iterations and a validation of the whole models, of few RoIs on a small picture."""
    epochs = name.endswith("1x_coco")
    options = {
        "load_from": None,
        "model.backbone.init_cfg": None,
        "model.train_cfg.rpn_proposal.max_per_img": 20,
        "model.train_cfg.rcnn.sampler.num": 8,
        "model.test_cfg.rpn.max_per_img": 20,
        "model.test_cfg.rcnn.score_thr": 0.0,
        "model.test_cfg.rcnn.max_per_img": 3,
        "train_dataloader.batch_size": 1,
        **({"train_cfg.max_epochs": 1} if epochs else {"train_cfg.max_iters": 2}),
        "train_cfg.val_interval": 1 if epochs else 2,
        "default_hooks.checkpoint": None,
        "default_hooks.logger.interval": 1,
    }
    if "mr-rcnn" in name:
        # What finds nothing has no metrics.
        options["model.test_cfg.rcnn.candidates"] = dict(score_thr=0.0, max_per_img=3)
    for part in ("train", "val", "test"):
        split = "train" if part == "train" else "val"
        options |= {
            f"{part}_dataloader.num_workers": 0,
            f"{part}_dataloader.persistent_workers": False,
            f"{part}_dataloader.dataset.data_root": f"{coco_names}/",
            f"{part}_dataloader.dataset.ann_file": f"annotations/instances_{split}.json",
            f"{part}_dataloader.dataset.data_prefix.img": split,
            f"{part}_dataloader.dataset.pipeline": [
                dict(type="LoadImageFromFile"),
                dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
                dict(type="Resize", scale=(96, 96), keep_ratio=True),
                dict(
                    type="PackDetInputs",
                    meta_keys=("img_id", "ori_shape", "img_shape", "scale_factor"),
                ),
            ],
        }
        if part != "train":
            options[f"{part}_evaluator.ann_file"] = f"{coco_names}/annotations/instances_val.json"
    run_training(name, tmp_path, options)
    entries = logged(tmp_path)
    assert list(entries) == [1, 2]
    for entry in entries.values():
        assert np.isfinite(list(entry.values())).all() and entry["loss_mask_quasi"] > 0
    _, validation = read_scalars(tmp_path)
    assert "coco/segm_mAP" in validation[-1]


def test_a_misspelt_field_is_named(tmp_path, repo_root, options):
    wrong = {**options, "model.roi_head.mask_head.quasi_loss": 2}
    with pytest.raises(UserError, match="MaskHead has no field 'quasi_loss'"):
        run_training(repo_root / CONFIG, tmp_path, wrong)
