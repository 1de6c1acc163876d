"""What the configs of BlendMask say: the authors' settings, schedules and variants."""

import functools
from pathlib import Path

import pytest
from mmengine.config import Config

FOLDER = Path(__file__).resolve().parents[2] / "configs/blendmask"
SCHEDULES = {
    "1x": (90000, [60000, 80000]),
    "3x": (270000, [210000, 250000]),
    "4x": (360000, [300000, 340000]),
    "5x": (400000, [280000, 360000]),
}
NAMES = {
    "blendmask_r50-caffe_fpn_1x_coco",
    "blendmask_r50-caffe_fpn_3x_coco",
    "blendmask_r101-caffe_fpn_3x_coco",
    "blendmask_r101-caffe-dcni3_fpn_5x_coco",
    "blendmask-550_r50-caffe_fpn_3x_coco",
    "blendmask-rt_r50-caffe_fpn_4x_coco",
    "blendmask-rt_r50-caffe_fpn_bn-head_4x_coco",
    "blendmask_r50-caffe_fpn_1x_coco-panoptic",
    "blendmask_r50-caffe_fpn_3x_coco-panoptic",
    "blendmask_r101-caffe_fpn_3x_coco-panoptic",
    "blendmask_r101-caffe-dcni3_fpn_5x_coco-panoptic",
}
every_config = pytest.mark.parametrize("name", sorted(NAMES))


@functools.cache
def read(name):
    """The config, which no test changes."""
    return Config.fromfile(FOLDER / f"{name}.py")


def step(pipeline, *kinds):
    (found,) = (part for part in pipeline if part.type in kinds)
    return found


def test_the_rows_are_all_there():
    assert {path.stem for path in FOLDER.glob("*.py")} == NAMES


@every_config
def test_schedule(name):
    cfg = read(name)
    length, milestones = SCHEDULES[name.split("_")[-2]]
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", length)
    assert length % cfg.train_cfg.val_interval == 0
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.end, steps.milestones) == ("LinearLR", 1000, milestones)
    assert cfg.optim_wrapper.optimizer == dict(
        type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001
    )
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 16
    assert cfg.train_dataloader.sampler == dict(type="InfiniteSampler")


@every_config
def test_sizes(name):
    cfg = read(name)
    train = cfg.train_dataloader.dataset.pipeline
    resize = step(train, "RandomChoiceResize", "RandomResize")
    test = step(cfg.test_dataloader.dataset.pipeline, "Resize").scale
    sides = sorted({scale[1] for scale in resize.get("scales") or resize.scale})
    longest = {scale[0] for scale in resize.get("scales") or resize.scale}
    if "dcni3" in name:
        assert (sides, test) == ([640, 864], (1333, 800))
        assert longest == {1333 if "panoptic" in name else 1440}
        assert step(train, "InstanceCrop").crop_size == (0.9, 0.9)
        assert [part.type for part in train].index("InstanceCrop") == 2
        return
    assert not any(part.type == "InstanceCrop" for part in train)
    expected = {"550": (440, 550, 916, (916, 550)), "rt": (256, 608, 900, (736, 512))}
    kind = name.split("_")[0].partition("-")[2]
    first, last, limit, tested = expected.get(kind, (640, 800, 1333, (1333, 800)))
    assert (sides[0], sides[-1], longest, test) == (first, last, {limit}, tested)


@every_config
def test_model(name):
    model = read(name).model
    rt, small = "-rt_" in name, "-rt_" in name or "-550_" in name
    net, head = model.backbone, model.bbox_head
    assert (net.depth, net.style) == (101 if "r101" in name else 50, "caffe")
    assert net.norm_cfg == dict(type="SyncBN" if rt else "BN", requires_grad=rt)
    assert (net.frozen_stages, net.norm_eval) == ((-1, False) if rt else (1, True))
    assert ("dcn" in net) == (net.type == "IntervalResNet") == ("dcni3" in name)
    assert (head.get("num_shared_convs", 0), head.stacked_convs) == ((3, 0) if small else (0, 4))
    assert model.mask_head.bases.num_convs == (2 if small else 3)
    levels = 3 if rt else 4 if small else 5
    assert head.strides == [8 * 2**i for i in range(levels)]
    assert model.neck.num_outs - (model.neck.start_level == 0) == levels
    ranges = head.get("regress_ranges", [(-1, 64), (64, 128), (128, 256), (256, 512), (512, 1e8)])
    assert [low for low, _ in ranges] == [-1, 64, 128, 256, 512][:levels] and ranges[-1][1] == 1e8
    assert [high for _, high in ranges[:-1]] == [64, 128, 256, 512][: levels - 1]
    bn_head = "bn-head" in name
    assert (head.norm_cfg.type, bool(head.get("norm_per_level"))) == (
        ("SyncBN", True) if bn_head else ("GN", False)
    )
    assert model.data_preprocessor.mean == [103.530, 116.280, 123.675]
    assert model.data_preprocessor.std == [1.0] * 3 and not model.data_preprocessor.bgr_to_rgb


@every_config
def test_panoptic(name):
    cfg = read(name)
    panoptic = name.endswith("panoptic")
    assert ("semantic_head" in cfg.model) == ("panoptic" in cfg.model.test_cfg) == panoptic
    dataset = cfg.train_dataloader.dataset
    assert dataset.type == ("CheckedCocoPanopticDataset" if panoptic else "CheckedCocoDataset")
    if panoptic:
        assert cfg.model.test_cfg.panoptic == dict(
            score_thr=0.45, overlap_thr=0.4, stuff_area_limit=4096
        )
        assert cfg.model.semantic_head.loss_seg.loss_weight == 0.5
        assert cfg.model.semantic_head.num_stuff_classes == 53
        assert cfg.model.data_preprocessor.pad_seg
        assert cfg.model.data_preprocessor.seg_pad_value == 255
