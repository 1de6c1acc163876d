"""What the configs of BPR say, and that their parts fit together on patches of drawn Shapes."""

import argparse
import copy
import functools
import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.registry import MODELS

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import UserError, prepare_train_cfg
from mmdet_plus.engine.training import build_runner
from mmseg_plus.bpr.patches_command import build_files
from mmseg_plus.common.progress import ProgressLine

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
SHIPPED, FIRST_PART = "bpr_hrnetv2-w16t_mixed-128x128", "bpr_hrnetv2-w16t_mixed-64x64"
MAIN = "bpr_hrnetv2-w18s_160k_cityscapes-128x128"
CITYSCAPES, COCO = "data/bpr/cityscapes", "data/bpr/coco"
LARGE_FILES = sorted(
    path for path in (CONFIGS / "bpr").glob("bpr_*.py") if "mixed" not in path.stem
)
LARGE = [path.stem for path in LARGE_FILES]
SMALL = {"bpr_hrnetv2-w16t_shapes": "shapes", "bpr_hrnetv2-w16t_nuclei": "nuclei"}


def variant(what, size=128):
    return f"bpr_hrnetv2-w18s_{what}160k_cityscapes-{size}x{size}"


def of_both_splits(folder):
    loaders = ("train_dataloader", "val_dataloader", "test_dataloader")
    return {f"{loader}.dataset.data_root": f"{folder}/" for loader in loaders} | {
        "data_root": f"{folder}/"
    }


#: What a config changes of the main one, by its name, and nothing else.
CHANGES = {
    variant("", 32): {"model.data_preprocessor.input_size": 32},
    variant("", 64): {"model.data_preprocessor.input_size": 64},
    variant("", 256): {"model.data_preprocessor.input_size": 256},
    variant("no-mask_"): {
        "model.data_preprocessor.use_coarse_mask": False,
        "model.backbone.type": "HRNet",
    },
    variant("pointrend_"): {"train_dataloader.dataset.data_root": f"{CITYSCAPES}-pointrend/"},
    variant("segfix_"): {"train_dataloader.dataset.data_root": f"{CITYSCAPES}-segfix/"},
    **{
        variant(f"{what}_"): of_both_splits(f"{CITYSCAPES}-{what}")
        for what in ("patch-32", "patch-96", "padding-5", "grid", "instance")
    },
    "bpr_hrnetv2-w18s_160k_coco-128x128": of_both_splits(COCO),
}
NETWORKS = {
    "bpr_hrnetv2-w48_160k_cityscapes-256x256",
    "bpr_hrnetv2-w48_160k_coco-256x256",
    "bpr_mobilenet-v2_160k_cityscapes-128x128",
}
#: How the patches of a store are cut, where that is not the tool's default.
CUTTING = {
    f"{CITYSCAPES}-patch-32": {"patch_size": 32},
    f"{CITYSCAPES}-patch-96": {"patch_size": 96},
    f"{CITYSCAPES}-padding-5": {"padding": 5},
    f"{CITYSCAPES}-grid": {"scheme": "grid"},
    f"{CITYSCAPES}-instance": {"scheme": "instance"},
    COCO: {"iou_thr": 0.15},
}

every_large = pytest.mark.parametrize("name", LARGE)


@functools.cache
def read(name):
    """The config, which no test changes."""
    (path,) = CONFIGS.glob(f"*/{name}.py")
    return Config.fromfile(path)


def leaves(node, prefix=""):
    """Values of a config by their dotted keys."""
    if isinstance(node, dict) and node:
        found = {}
        for key, value in node.items():
            found |= leaves(value, f"{prefix}.{key}" if prefix else key)
        return found
    return {prefix: node}


def settings(name):
    found = leaves(read(name)._cfg_dict.to_dict())
    # Variables of the files of the base, already used there.
    return {key: value for key, value in found.items() if not key.startswith("data_preprocessor.")}


def test_the_rows_are_all_there():
    assert set(LARGE) == {MAIN, *CHANGES, *NETWORKS}


@pytest.mark.parametrize("name", CHANGES)
def test_a_variant_differs_in_what_it_is_named_for(name):
    ours, plain = settings(name), settings(MAIN)
    assert {key: value for key, value in ours.items() if plain.get(key, ...) != value} == (
        CHANGES[name]
    )
    assert set(plain) <= set(ours)


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_other_networks_change_the_model_and_the_data_alone(name):
    ours, plain = settings(name), settings(MAIN)
    folder = f"{COCO if '_coco-' in name else CITYSCAPES}/"
    for key in ours.keys() | plain.keys():
        if key.endswith("data_root"):
            assert ours[key] == folder
        elif not key.startswith("model.") and key != "channels":
            assert ours[key] == plain[key], key


def test_the_networks():
    small, large, light = (
        read(name).model
        for name in (
            MAIN,
            "bpr_hrnetv2-w48_160k_cityscapes-256x256",
            "bpr_mobilenet-v2_160k_cityscapes-128x128",
        )
    )
    assert (small.pretrained, small.data_preprocessor.input_size) == (
        "open-mmlab://msra/hrnetv2_w18_small",
        128,
    )
    assert (large.pretrained, large.data_preprocessor.input_size) == (
        "open-mmlab://msra/hrnetv2_w48",
        256,
    )
    assert small.decode_head.in_channels == [18, 36, 72, 144]
    assert large.decode_head.in_channels == [48, 96, 192, 384]
    assert small.backbone.type == large.backbone.type == "RefineHRNet"
    assert light.backbone == dict(type="RefineMobileNetV2", norm_cfg=dict(type="SyncBN"))
    assert large == read("bpr_hrnetv2-w48_160k_coco-256x256").model


@every_large
def test_schedule_of_the_supplement_s_section_a(name):
    cfg = read(name)
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", 160_000)
    sgd = dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0005)
    assert leaves(cfg.optim_wrapper.optimizer).items() >= sgd.items()
    poly = dict(type="PolyLR", eta_min=1e-4, power=0.9, begin=0, end=160_000, by_epoch=False)
    (scheduler,) = cfg.param_scheduler
    assert leaves(scheduler).items() >= poly.items()
    assert cfg.auto_scale_lr.base_batch_size == 4 * cfg.train_dataloader.batch_size == 32
    assert cfg.train_dataloader.sampler.type == "InfiniteSampler"
    steps = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert steps == ["RandomFlip", "PhotoMetricDistortion", "PackPatchInputs"]
    flip = cfg.train_dataloader.dataset.pipeline[0]
    assert flip.prob == 0.5 and flip.get("direction", "horizontal") == "horizontal"
    for loader in (cfg.val_dataloader, cfg.test_dataloader):
        assert [step.type for step in loader.dataset.pipeline] == ["PackPatchInputs"]
        assert loader.sampler == dict(type="DefaultSampler", shuffle=False)
        assert loader.dataset.test_mode
    assert cfg.val_evaluator.type == cfg.test_evaluator.type == "BoundaryPatchMetric"


@every_large
def test_patches_come_from_stores(name):
    cfg = read(name)
    for split in ("train", "val", "test"):
        dataset = cfg[f"{split}_dataloader"].dataset
        assert dataset.type == "BoundaryPatchDataset"
        assert dataset.store == ("train.sqlite" if split == "train" else "val.sqlite")
        assert dataset.data_root.startswith("data/bpr/") and dataset.data_root.endswith("/")
        assert not {"ann_file", "coarse", "degrade"} & set(dataset)


@every_large
def test_a_missing_store_is_named(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg = copy.deepcopy(read(name))
    init_default_scope(cfg.default_scope)
    with pytest.raises(UserError, match=cfg.train_dataloader.dataset.data_root + "train.sqlite"):
        Runner.build_dataloader(cfg.train_dataloader)


def commands(path):
    """The commands in a config's comments, each for the split it is of."""
    lines = [line[2:] for line in path.read_text().splitlines() if line.startswith("# ")]
    text = "\n".join(lines).replace("\\\n", " ")
    for line in text.splitlines():
        if line.strip().startswith("python tools/bpr_patches.py "):
            for split in ("train", "val") if "$split" in line else ("",):
                yield shlex.split(line.replace("$split", split))[2:]


def test_stores_are_made_by_the_commands_in_the_comments(monkeypatch):
    tool = runpy.run_path(str(ROOT / "tools/bpr_patches.py"))
    made = {}
    bases = [CONFIGS / f"_base_/datasets/bpr_{data}.py" for data in ("cityscapes", "coco")]
    for path in [*bases, *LARGE_FILES]:
        for words in commands(path):
            monkeypatch.setattr(sys, "argv", ["bpr_patches.py", *words])
            args: argparse.Namespace = tool["parse_args"]()
            store = f"{args.out}/{args.split}.sqlite"
            assert store not in made
            made[store] = args
            # Ground truth, images and results are of the split.
            for given in (args.coarse, args.ann, args.img_dir):
                assert args.split in given
                assert {"train": "val", "val": "train"}[args.split] not in given
            defaults = dict(patch_size=64, padding=0, scheme="dense", iou_thr=0.25)
            wanted = defaults | CUTTING.get(args.out, {})
            assert {key: getattr(args, key) for key in wanted} == wanted, path
            sampled = 70_000 if (args.out, args.split) == (COCO, "train") else None
            assert args.max_instances == sampled and args.min_iou is None
    needed = set()
    for name in LARGE:
        for split in ("train", "val", "test"):
            dataset = read(name)[f"{split}_dataloader"].dataset
            needed.add(dataset.data_root + dataset.store)
    assert set(made) == needed
    assert {Path(store).parent.as_posix() for store in made} >= set(CUTTING)
    assert made[f"{CITYSCAPES}-segfix/train.sqlite"].coarse == "results/segfix_train"
    assert made[f"{CITYSCAPES}-pointrend/train.sqlite"].coarse == "results/pointrend_train"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Drawn Shapes under the names of the other data sets too, and results on them."""
    root = tmp_path_factory.mktemp("bpr") / "shapes"
    make_shapes(root, num_train=4, num_val=2, image_size=(128, 128), progress=False)
    for split in ("train", "val"):
        name = root / f"annotations/instances_{split}.json"
        for other in (f"{split}.json", f"instances_{split}2017.json"):
            (root / "annotations" / other).symlink_to(name)
        (root / f"{split}2017").symlink_to(root / split)
        records = json.loads(name.read_text())["annotations"]
        fields = ("image_id", "category_id", "segmentation")
        results = [{key: record[key] for key in fields} | {"score": 0.9} for record in records]
        (root / f"{split}.segm.json").write_text(json.dumps(results))
    return root


@pytest.fixture(scope="module")
def stores(shapes, tmp_path_factory):
    """Patch stores of Shapes, cut in the way that the data of a config are."""
    made = {}

    def build(folder):
        cutting = CUTTING.get(folder, {})
        key = tuple(cutting.items())
        if key not in made:
            out = tmp_path_factory.mktemp("stores")
            for split in ("train", "val"):
                build_files(
                    None,
                    shapes / f"annotations/instances_{split}.json",
                    shapes / split,
                    out,
                    split,
                    workers=0,
                    codec="png",
                    line=ProgressLine(None),
                    **cutting,
                )
            made[key] = out
        return made[key]

    return build


def plain(model):
    """A model's config for one process, with nothing to download."""
    model = copy.deepcopy(model)
    model.pretrained = None
    for part in (model.backbone, model.decode_head):
        part.norm_cfg = dict(type="BN")
    return model


@every_large
def test_network_and_data_fit_together(name, stores, tmp_path, monkeypatch):
    cfg = copy.deepcopy(read(name))
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        target = tmp_path / loader.dataset.data_root
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(stores(loader.dataset.data_root.rstrip("/")))
        loader.update(num_workers=0, persistent_workers=False, batch_size=2)
    monkeypatch.chdir(tmp_path)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    batch = next(iter(Runner.build_dataloader(cfg.train_dataloader)))
    model = MODELS.build(plain(cfg.model))
    model.init_weights()
    side = cfg.model.data_preprocessor.input_size
    assert f"-{side}x{side}" in name
    data = model.data_preprocessor(batch, training=True)
    channels = 3 if "no-mask" in name else 4
    assert data["inputs"].shape == (2, channels, side, side)
    losses = model(**data, mode="loss")
    assert torch.isfinite(losses["decode.loss_ce"])
    # The mask is seen, or it is not, by the network that stands in the config.
    names = {key for key, _ in model.named_parameters()}
    assert ("backbone.conv_mask.weight" in names) == ("no-mask" not in name)

    batch = next(iter(Runner.build_dataloader(cfg.val_dataloader)))
    shapes_before = [tuple(patch.shape[-2:]) for patch in batch["inputs"]]
    with torch.inference_mode():
        samples = model.eval().test_step(batch)
    # Predictions have the patch's own size.
    assert [tuple(sample.pred_sem_seg.data.shape[-2:]) for sample in samples] == shapes_before
    cutting = CUTTING.get(cfg.val_dataloader.dataset.data_root.rstrip("/"), {})
    if cutting.get("scheme") != "instance":
        grown = cutting.get("patch_size", 64) + 2 * cutting.get("padding", 0)
        assert set(shapes_before) == {(grown, grown)}


def prepare(name, folder, **options):
    """A small config for one iteration and a validation."""
    options |= {"train_cfg.max_iters": 1, "train_cfg.val_interval": 1, "log_level": "ERROR"}
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        options |= {f"{loader}.num_workers": 0, f"{loader}.persistent_workers": False}
        options[f"{loader}.batch_size"] = 2
    # The second part of a training goes on from weights that only the first part makes.
    options["load_from"] = None
    cfg = prepare_train_cfg(name, work_dir=str(folder), cfg_options=options)
    # The registry of running experiments keeps names; two configs in one second would share one.
    cfg.experiment_name = name
    return cfg


@pytest.mark.parametrize("name", [*SMALL, FIRST_PART, SHIPPED])
def test_small_config_trains_and_validates(name, shapes, tmp_path, monkeypatch):
    (tmp_path / "data/coarse").mkdir(parents=True)
    if name in SMALL:
        assert read(name).train_dataloader.dataset.data_root == f"data/{SMALL[name]}/"
        (tmp_path / "data" / SMALL[name]).symlink_to(shapes)
    else:
        # The names that its own data have.
        for folder in ("shapes", "nuclei", "coco_tiny"):
            (tmp_path / "data" / folder).symlink_to(shapes)
        for folder in ("shapes", "nuclei"):
            link = tmp_path / f"data/coarse/{folder}_mask-rcnn_train.segm.json"
            link.symlink_to(shapes / "train.segm.json")
    monkeypatch.chdir(tmp_path)
    runner = build_runner(prepare(name, tmp_path / "work"))
    model = runner.model
    before = {key: p.detach().clone() for key, p in model.named_parameters()}
    runner.train()
    moved = {key for key, p in model.named_parameters() if not torch.equal(p, before[key])}
    assert "backbone.conv_mask.weight" in moved and "decode_head.conv_seg.weight" in moved
    assert all(torch.isfinite(p).all() for p in model.parameters())
    # Validation followed, on the coarse masks too.
    scalars = runner.message_hub.log_scalars
    for figure in ("mIoU", "boundary_F", "coarse_mIoU", "coarse_boundary_F"):
        values = scalars[f"val/patch/{figure}"].data[0]
        assert len(values) == 1 and 0 <= float(values[0]) <= 100


def test_the_small_network_is_the_large_one_s_kind():
    # The authors' structure with fewer channels and blocks: what is learnt of one holds for both.
    for name in SMALL:
        ours, full = read(name).model, read(MAIN).model
        assert ours.type == full.type and ours.pretrained is None
        assert ours.data_preprocessor.input_size == full.data_preprocessor.input_size
        assert ours.backbone.type == full.backbone.type
        assert ours.decode_head.loss_decode == full.decode_head.loss_decode
    assert read("bpr_hrnetv2-w16t_nuclei").model == read("bpr_hrnetv2-w16t_shapes").model
    assert read(SHIPPED).model.backbone == read("bpr_hrnetv2-w16t_shapes").model.backbone


def test_shipped_refiner_goes_on_at_twice_the_side():
    shipped, first = read(SHIPPED), read(FIRST_PART)
    assert shipped.load_from == f"work_dirs/{FIRST_PART}/iter_{first.train_cfg.max_iters}.pth"
    for config, side, scales in ((first, 32, {24, 32, 48}), (shipped, 64, {48, 64, 96})):
        datasets = config.train_dataloader.dataset.datasets
        datasets = [dict(d, **d.get("dataset", {})) for d in datasets]
        assert {d["patch_size"] for d in datasets} == scales
        assert config.val_dataloader.dataset.patch_size == side
        assert config.model.data_preprocessor.input_size == 2 * side
        roots = [d["data_root"] for d in datasets]
        assert roots[:4] == 2 * ["data/shapes/"] + 2 * ["data/nuclei/"]
        assert set(roots[4:]) == {"data/coco_tiny/"}
        # What refinement takes is its most.
        assert [d["patch_size"] for d in datasets][:6] == [side] * 6
    shipped.model.data_preprocessor.input_size = 64
    assert shipped.model == first.model
