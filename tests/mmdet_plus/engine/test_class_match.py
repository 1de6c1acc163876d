"""A panoptic model and data that count other classes are told before anything runs."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import tiny_refine
import torch
from mmdet.datasets import CocoPanopticDataset
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmengine.config import Config
from torch import nn

from mmdet_plus.datasets import CheckedCocoPanopticDataset
from mmdet_plus.engine import prepare_test_cfg, prepare_train_cfg, train
from mmdet_plus.engine import test as run_test
from mmdet_plus.engine.class_match import check_model_classes
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.fuser_comparison import compare_fusers
from mmdet_plus.evaluation.id_maps import encode_id_map

KINDS = dict(cat=(1, 1), dog=(2, 1), sky=(3, 0), grass=(4, 0))
CLASSES = tuple(KINDS)


def data_set(**metainfo):
    return SimpleNamespace(metainfo=metainfo, ann_file="own/panoptic.json")


def things_and_stuff(things, stuff):
    names = [f"{number}" for number in range(things + stuff)]
    return data_set(classes=names, thing_classes=names[:things], stuff_classes=names[things:])


def model_with(things, stuff, **heads):
    model = nn.Module()
    model.panoptic_fusion_head = MaskFormerFusionHead(things, stuff)
    for name, numbers in heads.items():
        setattr(model, name, MaskFormerFusionHead(*numbers))
    return model


@pytest.mark.parametrize("numbers", [(2, 1), (1, 3), (3, 1), (2, 3), (0, 4)])
def test_numbers_that_differ(numbers):
    words = (
        rf"own/panoptic\.json: the data set \(here\) has 2 thing and 2 stuff classes, but the "
        rf"model's panoptic_fusion_head has {numbers[0]} thing and {numbers[1]} stuff classes; "
        r"set model=dict\(panoptic_fusion_head=dict\(num_things_classes=2, num_stuff_classes=2\)\)"
    )
    with pytest.raises(UserError, match=words):
        check_model_classes(model_with(*numbers), things_and_stuff(2, 2), "here")


@pytest.mark.parametrize("name", ["panoptic_head", "semantic_head"])
def test_all_heads_are_looked_at(name):
    check_model_classes(model_with(2, 2, **{name: (2, 2)}), things_and_stuff(2, 2), "here")
    words = rf"model's {name} has 1 thing and 3 stuff .*{name}=dict\(num_things_classes=2"
    with pytest.raises(UserError, match=words):
        check_model_classes(model_with(2, 2, **{name: (1, 3)}), things_and_stuff(2, 2), "here")


def test_wrapped_models_and_data_sets_are_opened():
    good, bad = things_and_stuff(2, 2), things_and_stuff(2, 1)
    repeated = SimpleNamespace(dataset=SimpleNamespace(dataset=bad, metainfo={}), metainfo={})
    model = torch.nn.parallel.DataParallel(model_with(2, 2))
    check_model_classes(model, SimpleNamespace(datasets=[good, good]), "here")
    for wrapped in (repeated, SimpleNamespace(datasets=[good, repeated])):
        with pytest.raises(UserError, match="has 2 thing and 1 stuff classes, but"):
            check_model_classes(model_with(2, 2), wrapped, "here")


def test_what_tells_nothing_passes():
    model = model_with(2, 2)
    for dataset in (data_set(), data_set(classes=CLASSES), SimpleNamespace(), object()):
        check_model_classes(model, dataset, "here")
    # No panoptic model, whatever else it may count.
    other = nn.Module()
    other.semantic_head = MaskFormerFusionHead(9, 9)
    for other.panoptic_fusion_head in (None, nn.Module()):
        check_model_classes(other, things_and_stuff(2, 2), "here")


def test_cocos_things_may_stand_beside_classes_of_ones_own():
    """As in mmdet's data set, which keeps them: only the sum is known."""
    files = dict(ann_file="a.json", data_prefix=dict(img="", seg=""), lazy_init=True)
    dataset = CocoPanopticDataset(metainfo=dict(classes=CLASSES), **files)
    assert len(dataset.metainfo["thing_classes"]) == 80
    for right in ((2, 2), (1, 3)):
        check_model_classes(model_with(*right), dataset, "here")
    with pytest.raises(
        UserError, match="a.json: .* has 4 classes in all, but .* 2 thing and 1 stu"
    ):
        check_model_classes(model_with(2, 1), dataset, "here")
    coco = CocoPanopticDataset(**files)
    check_model_classes(model_with(80, 53), coco, "here")
    with pytest.raises(UserError, match="has 80 thing and 53 stuff classes, but"):
        check_model_classes(model_with(79, 54), coco, "here")


# ---- through the tools' own functions ----


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Data of 2 things and 2 kinds of stuff."""
    root = tmp_path_factory.mktemp("own")
    ids = np.zeros((64, 64), np.int64)
    ids[32:], ids[:32], ids[8:40, 8:40] = 7, 8, 70000
    (root / "pan").mkdir()
    (root / "pan/a.png").write_bytes(encode_id_map(ids))
    cv2.imwrite(str(root / "a.jpg"), np.zeros((64, 64, 3), np.uint8))
    segments = [
        dict(id=ident, category_id=category, area=int((ids == ident).sum()), bbox=box)
        for ident, category, box in (
            (7, 4, [0, 32, 64, 32]),
            (8, 3, [0, 0, 64, 32]),
            (70000, 2, [8, 8, 32, 32]),
        )
    ]
    content = dict(
        images=[dict(id=1, file_name="a.jpg", height=64, width=64)],
        annotations=[dict(image_id=1, file_name="a.png", segments_info=segments)],
        categories=[dict(id=i, name=name, isthing=kind) for name, (i, kind) in KINDS.items()],
    )
    (root / "gt.json").write_text(json.dumps(content))
    return root


def write_config(own, path, things, stuff):
    cfg = tiny_refine.read_config("panoptic-fpn_r18_shapes")
    model = tiny_refine.model_cfg()
    model.type, model.roi_head.type = "PanopticFPN", "StandardRoIHead"
    for field in ("num_iterations", "num_stuff_classes", "semantic_norm_cfg"):
        del model.roi_head[field]
    for part in ("bbox_head", "mask_head"):
        model.roi_head[part].num_classes = things
    model.semantic_head.type = "PanopticFPNHead"
    for part in ("semantic_head", "panoptic_fusion_head"):
        model[part].update(num_things_classes=things, num_stuff_classes=stuff)
    dataset = dict(
        type="CheckedCocoPanopticDataset",
        data_root=str(own),
        ann_file="gt.json",
        data_prefix=dict(img="", seg="pan/"),
        metainfo=dict(classes=CLASSES),
    )
    for kind in ("train", "val", "test"):
        loader = cfg[f"{kind}_dataloader"]
        pipeline = loader.dataset.pipeline
        loader.dataset = dict(dataset, pipeline=pipeline, test_mode=kind != "train")
        loader.update(batch_size=1, num_workers=0, persistent_workers=False)
        loader.pop("batch_sampler", None)
    cfg.val_evaluator = cfg.test_evaluator = dict(
        type="PanopticMetric", ann_file=str(own / "gt.json"), seg_prefix=str(own / "pan")
    )
    cfg.model = model
    cfg.train_cfg.update(max_iters=1, val_interval=9)
    cfg.visualizer.name = str(path)
    Config(cfg._cfg_dict.to_dict()).dump(path)
    return str(path)


def test_a_training_and_a_test_stop_at_once(own, tmp_path):
    config = write_config(own, tmp_path / "wrong.py", 1, 3)
    words = (
        r"gt\.json: the data set \({}_dataloader of .*wrong\.py\) has 2 thing and 2 stuff .* has "
        r"1 thing and 3 stuff .*and num_classes=2 of its box and mask heads"
    )
    with pytest.raises(UserError, match=words.format("train")):
        train(prepare_train_cfg(config, work_dir=str(tmp_path / "w")))
    # Nothing of the checkpoint is looked at.
    torch.save({}, tmp_path / "c.pth")
    options = {"visualizer.name": "wrong"}
    cfg = prepare_test_cfg(config, str(tmp_path / "c.pth"), str(tmp_path), cfg_options=options)
    with pytest.raises(UserError, match=words.format("test")):
        run_test(cfg)
    options = {"visualizer.name": "compared"}
    with pytest.raises(UserError, match=words.format("test")):
        compare_fusers(config, str(tmp_path / "c.pth"), str(tmp_path / "f"), cfg_options=options)


def test_what_fits_trains_and_is_tested(own, tmp_path):
    config = write_config(own, tmp_path / "right.py", 2, 2)
    work_dir = str(tmp_path / "w")
    train(prepare_train_cfg(config, work_dir=work_dir))
    options = {"visualizer.name": "right"}
    cfg = prepare_test_cfg(config, f"{work_dir}/iter_1.pth", work_dir, cfg_options=options)
    assert run_test(cfg)["coco_panoptic/PQ"] >= 0


def test_a_validation_set_of_its_own_is_compared(own, tmp_path):
    config = write_config(own, tmp_path / "val.py", 2, 2)
    content = json.loads((own / "gt.json").read_text())
    content["categories"].append(dict(id=9, name="road", isthing=0))
    (own / "val.json").write_text(json.dumps(content))
    options = {
        "val_dataloader.dataset.ann_file": "val.json",
        "val_dataloader.dataset.metainfo.classes": (*CLASSES, "road"),
        "val_evaluator.ann_file": str(own / "val.json"),
    }
    with pytest.raises(
        UserError, match=r"val\.json: the data set \(val_dataloader .* 2 thing and 3"
    ):
        train(prepare_train_cfg(config, work_dir=str(tmp_path / "w"), cfg_options=options))


def test_only_panoptic_configs_get_the_hook(own, tmp_path):
    config = write_config(own, tmp_path / "c.py", 2, 2)
    hooks = prepare_train_cfg(config, work_dir=str(tmp_path / "w")).custom_hooks
    assert [hook["type"] for hook in hooks].count("mmengine.ClassMatchHook") == 1
    options = {"model.panoptic_fusion_head": None, "model.semantic_head": None}
    cfg = prepare_train_cfg(config, work_dir=str(tmp_path / "w"), cfg_options=options)
    assert "ClassMatch" not in str(cfg.get("custom_hooks"))


def test_our_data_set_tells_its_kinds(own):
    dataset = CheckedCocoPanopticDataset(
        ann_file=str(own / "gt.json"),
        data_prefix=dict(img=str(own), seg=str(own / "pan")),
        metainfo=dict(classes=CLASSES),
    )
    check_model_classes(model_with(2, 2), dataset, "here")
    with pytest.raises(UserError, match="gt.json: "):
        check_model_classes(model_with(1, 3), dataset, "here")
