import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import METRICS, init_default_scope
from pycocotools import mask as mask_utils

import mmdet_plus.evaluation  # noqa: F401
import mmseg_plus.bpr.refinement_metric as module
from mmseg_plus.common.errors import UserError


class Shifts:
    """Stands in for the refiner: moves masks back by what the test has moved them."""

    made_with: dict = {}

    def __init__(self, **kwargs):
        Shifts.made_with = kwargs

    def refine(self, image, masks):
        assert image.shape[:2] == masks.shape[1:] and image.dtype == np.uint8
        assert masks.dtype == bool
        return np.roll(masks, -3, axis=2)


@pytest.fixture
def world(tmp_path, monkeypatch):
    """Two images, whose predictions are three columns off."""
    monkeypatch.setattr(module, "BoundaryRefiner", Shifts)
    init_default_scope("mmdet")
    images, annotations, samples = [], [], []
    for i in range(2):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.zeros((60, 80, 3), np.uint8))
        mask = np.zeros((60, 80), np.uint8)
        mask[10:40, 20:50] = 1
        rle = mask_utils.encode(np.asfortranarray(mask))
        rle["counts"] = rle["counts"].decode()
        images.append(dict(id=i, file_name=path.name, height=60, width=80))
        annotations.append(
            dict(
                id=i + 1,
                image_id=i,
                category_id=1,
                bbox=[20, 10, 30, 30],
                area=900,
                iscrowd=0,
                segmentation=rle,
            )
        )
        count = 1 if i == 0 else 0
        moved = torch.from_numpy(np.roll(mask, 3, axis=1)[None].astype(bool))[:count]
        predictions = dict(
            bboxes=torch.tensor([[20.0, 10, 50, 40]])[:count],
            scores=torch.ones(count),
            labels=torch.zeros(count, dtype=torch.long),
            masks=moved,
        )
        samples.append(
            dict(img_id=i, img_path=str(path), ori_shape=(60, 80), pred_instances=predictions)
        )
    content = dict(
        images=images, annotations=annotations, categories=[dict(id=1, name="a", isthing=1)]
    )
    (tmp_path / "gt.json").write_text(json.dumps(content))
    return tmp_path, samples


def build(folder, **kwargs):
    inner = dict(type="BoundaryMetric", ann_file=str(folder / "gt.json"))
    inner.update(kwargs.pop("metric", {}))
    metric = METRICS.build(dict(type="BoundaryRefinementMetric", metric=inner, **kwargs))
    metric.dataset_meta = dict(classes=("a",))
    return metric


def test_figures_before_and_after(world):
    folder, samples = world
    metric = build(folder, refiner=dict(iou_thr=0.4))
    metric.process({}, samples[:1])
    metric.process({}, samples[1:])
    figures = metric.evaluate(2)
    # Of two objects one is found; its IoU is 27 columns of 33, or all.
    assert figures["coarse/segm_mAP_75"] == pytest.approx(figures["refined/segm_mAP_75"])
    assert 0 < figures["coarse/segm_mAP"] < figures["refined/segm_mAP"]
    assert figures["coarse/boundary_mAP"] == 0 < figures["refined/boundary_mAP"]
    assert figures["refined/AF"] == 1 > figures["coarse/AF"]
    assert Shifts.made_with["iou_thr"] == 0.4 and "device" in Shifts.made_with


def test_samples_stay_as_they_are(world):
    folder, samples = world
    before = samples[0]["pred_instances"]["masks"].clone()
    build(folder).process({}, samples)
    assert torch.equal(samples[0]["pred_instances"]["masks"], before)


def test_files_of_both(world):
    folder, samples = world
    metric = build(folder, metric=dict(outfile_prefix=str(folder / "out")))
    metric.process({}, samples)
    metric.evaluate(2)
    coarse, refined = (
        json.loads((folder / name).read_text())
        for name in ("out.segm.json", "out_refined.segm.json")
    )
    assert coarse[0]["segmentation"] != refined[0]["segmentation"]


def test_model_without_masks(world):
    folder, samples = world
    del samples[0]["pred_instances"]["masks"]
    metric = build(folder, metric=dict(type="CocoMetric", metric="bbox"))
    with pytest.raises(UserError, match="predicts no masks"):
        metric.process({}, samples)
