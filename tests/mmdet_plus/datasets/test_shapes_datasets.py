"""Shapes through mmdet's own pipelines and metrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.evaluation import INSTANCE_OFFSET
from mmdet.registry import DATASETS, METRICS
from mmengine import Config
from mmengine.registry import init_default_scope

import mmdet_plus.datasets  # noqa: F401 (registers)
from mmdet_plus.datasets.shapes import CLASSES, STUFF_CLASSES, THING_CLASSES
from mmdet_plus.evaluation import BoundaryMetric

BASE = Path(__file__).resolve().parents[3] / "configs/_base_/datasets"
SHARED = Path(__file__).resolve().parents[4] / "shared"


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmdet")


def loaders(name, root=None):
    """The data sets and the evaluator of a base config, with its data at ``root``."""
    config = Config.fromfile(BASE / f"{name}.py")
    if root is not None:
        for loader in (config.train_dataloader, config.val_dataloader):
            loader.dataset.data_root = str(root)
        for key in ("ann_file", "seg_prefix"):
            if key in config.val_evaluator:
                path = config.val_evaluator[key]
                config.val_evaluator[key] = path.replace(config.data_root, f"{root}/")
    return config


def plain(config):
    """The same data set without flips and resizing."""
    config = config.copy()
    config.pipeline = [t for t in config.pipeline if t.type not in ("RandomFlip", "Resize")]
    for transform in config.pipeline:
        if transform.type == "PackDetInputs":
            transform.pop("meta_keys", None)
            transform.meta_keys = ("img_id", "img_path", "ori_shape", "img_shape")
    return DATASETS.build(config)


def test_meta(shapes_root):
    config = loaders("shapes_panoptic", shapes_root)
    meta = DATASETS.build(config.val_dataloader.dataset).metainfo
    assert meta["classes"] == CLASSES == meta["thing_classes"] + meta["stuff_classes"]
    assert (meta["thing_classes"], meta["stuff_classes"]) == (THING_CLASSES, STUFF_CLASSES)
    assert len(meta["palette"]) == len(set(meta["palette"])) == len(CLASSES)
    config = loaders("shapes_instance", shapes_root)
    meta = DATASETS.build(config.val_dataloader.dataset).metainfo
    assert meta["classes"] == THING_CLASSES and len(meta["palette"]) == len(THING_CLASSES)


def test_instance_pipeline(shapes_root):
    config = loaders("shapes_instance", shapes_root)
    train = DATASETS.build(config.train_dataloader.dataset)
    assert len(train) == 10
    item = train[0]
    gt = item["data_samples"].gt_instances
    assert item["inputs"].shape == (3, 256, 256)
    assert gt.masks.masks.shape == (len(gt), 256, 256) and len(gt) >= 3
    assert gt.labels.min() >= 0 and gt.labels.max() < 8
    for mask, box in zip(gt.masks.masks, gt.bboxes.tensor.tolist(), strict=True):
        rows, columns = np.nonzero(mask)
        extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        assert box == extent


def test_perfect_instances_score_one(shapes_root):
    config = loaders("shapes_instance", shapes_root)
    dataset = plain(config.val_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        gt = sample.gt_instances
        predictions = dict(
            bboxes=gt.bboxes.tensor,
            labels=gt.labels,
            scores=torch.ones(len(gt)),
            masks=torch.from_numpy(gt.masks.masks.astype(bool)),
        )
        metric.process({}, [dict(sample.metainfo, pred_instances=predictions)])
    scores = metric.evaluate(len(dataset))
    for kind in ("bbox", "segm"):
        assert scores[f"coco/{kind}_mAP"] == 1.0


def test_perfect_segments_score_hundred(shapes_root):
    config = loaders("shapes_panoptic", shapes_root)
    dataset = plain(config.val_dataloader.dataset)
    config.val_evaluator.nproc = 1
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        sample = dataset[index]["data_samples"]
        segments = sample.gt_sem_seg.sem_seg.clone().long()
        segments[segments == 255] = len(CLASSES)
        gt = sample.gt_instances
        for number, (label, mask) in enumerate(zip(gt.labels, gt.masks.masks, strict=True), 1):
            segments[0][torch.from_numpy(mask.astype(bool))] = label + number * INSTANCE_OFFSET
        metric.process({}, [dict(sample.metainfo, pred_panoptic_seg=dict(sem_seg=segments))])
    scores = metric.evaluate(len(dataset))
    for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st"):
        assert scores[f"coco_panoptic/{key}"] == pytest.approx(100)


def test_label_maps_are_those_of_the_panoptic_loader(shapes_root):
    panoptic = plain(loaders("shapes_panoptic", shapes_root).val_dataloader.dataset)
    config = loaders("shapes_instance", shapes_root).val_dataloader.dataset
    config.data_prefix.seg = "stuff_val/"
    for transform in config.pipeline:
        if transform.type == "LoadAnnotations":
            transform.with_seg = True
    instance = plain(config)
    voids = 0
    for index in range(len(panoptic)):
        ours = instance[index]["data_samples"].gt_sem_seg.sem_seg
        theirs = panoptic[index]["data_samples"].gt_sem_seg.sem_seg
        assert torch.equal(ours.long(), theirs.long())
        voids += int((ours == 255).any())
    assert voids > 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [("coco_instance", "CheckedCocoDataset"), ("coco_panoptic", "CheckedCocoPanopticDataset")],
)
def test_coco_bases(name, kind):
    config = loaders(name)
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.type == kind
        # lazy_init stands in for the files: the pipelines and arguments are built all the same.
        assert len(DATASETS.build({**loader.dataset, "lazy_init": True}).pipeline.transforms) >= 4


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
def test_nuclei_base():
    config = loaders("nuclei_instance", SHARED / "data/nuclei")
    train = DATASETS.build(config.train_dataloader.dataset)
    val = DATASETS.build(config.val_dataloader.dataset)
    assert (len(train), len(val)) == (220, 70)
    assert train.metainfo["classes"] == ("nucleus",)
    assert len(train[0]["data_samples"].gt_instances) > 0
    metric = METRICS.build(config.val_evaluator)
    assert isinstance(metric, BoundaryMetric) and "bbox" in metric.metrics
