import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mmdet_plus.benchmark import refinement
from mmdet_plus.benchmark.refinement import (
    DegradedTruth,
    markdown,
    parse_variations,
    refinement_figures,
    row_name,
    settings,
)
from mmdet_plus.evaluation import evaluate_results
from mmseg_plus.bpr.refiner import PARTS
from mmseg_plus.bpr.sources import CocoGroundTruth, CocoResults
from mmseg_plus.common.errors import UserError


def encode(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=rle["size"], counts=rle["counts"].decode())


@pytest.fixture
def root(tmp_path):
    """Two images with an object each, a crowd in the first; results four columns off."""
    (tmp_path / "images").mkdir()
    images, annotations, results = [], [], []
    for i in range(2):
        cv2.imwrite(str(tmp_path / "images" / f"{i}.png"), np.zeros((80, 100, 3), np.uint8))
        images.append(dict(id=i, file_name=f"{i}.png", height=80, width=100))
        mask = np.zeros((80, 100), bool)
        mask[10:60, 20:60] = True
        for crowd in range(2 - i):
            plane = np.zeros_like(mask) if crowd else mask
            plane[70:, :10] |= bool(crowd)
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i,
                    category_id=1,
                    bbox=[20, 10, 40, 50],
                    area=int(plane.sum()),
                    iscrowd=crowd,
                    segmentation=encode(plane),
                )
            )
        moved = encode(np.roll(mask, 4, axis=1))
        results.append(dict(image_id=i, category_id=1, score=0.9 - 0.1 * i, segmentation=moved))
    content = dict(images=images, annotations=annotations, categories=[dict(id=1, name="a")])
    (tmp_path / "gt.json").write_text(json.dumps(content))
    (tmp_path / "results.json").write_text(json.dumps(results))
    return tmp_path


class Shifts:
    """Stands in for a refiner."""

    def __init__(self, columns):
        self.columns, self.num_patches = columns, 3
        self.seconds = dict.fromkeys(PARTS, 0.5)

    def refine(self, image, masks):
        return np.roll(masks, self.columns, axis=2)


def test_figures_are_those_of_the_masks(root):
    coarse = CocoResults(root / "results.json", root / "gt.json", root / "images")
    refiners = {"right": Shifts(-4), "none": Shifts(0)}
    record = refinement_figures(coarse, str(root / "gt.json"), refiners)
    before = evaluate_results(str(root / "gt.json"), str(root / "results.json"))
    assert record["coarse"] == {name: round(value, 4) for name, value in before.items()}
    assert record["refined"]["none"]["figures"] == record["coarse"]
    assert set(record["refined"]["none"]["gain"].values()) == {0}
    right = record["refined"]["right"]
    assert right["figures"]["segm_mAP"] == right["figures"]["AF"] == 1
    assert right["gain"]["segm_mAP"] == round(1 - before["segm_mAP"], 4) > 0
    assert right["patches"] == 3 and right["seconds"]["network"] == 0.5
    assert record["images"] == 2 and record["instances"] == 2
    table = markdown(record)
    assert f"| coarse | {100 * before['segm_mAP']:.1f} |" in table
    assert "| right | 100.0 (+" in table and "nan" not in table and "-100" not in table


def test_only_the_first_images(root):
    coarse = CocoResults(root / "results.json", root / "gt.json", root / "images")
    record = refinement_figures(coarse, str(root / "gt.json"), {"a": Shifts(-4)}, images=1)
    # The object of the image left out is not missed.
    assert record["images"] == 1 and record["refined"]["a"]["figures"]["segm_mAP"] == 1


def test_coarse_masks_from_the_truth(root):
    truth = CocoGroundTruth(root / "gt.json", root / "images")
    first, again, other = (DegradedTruth(truth, ("mask_head",), seed)[0] for seed in (0, 0, 1))
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.masks, other.masks)
    assert len(first.masks) == len(first.labels) == len(first.scores) == len(first.crowd) == 1
    target = truth[0].masks[0]
    assert 0.5 < (first.masks[0] & target).sum() / (first.masks[0] | target).sum() < 1


def test_one_option_at_a_time():
    rows = settings(dict(scheme="dense", iou_thr=0.25), dict(iou_thr=[0.25, 0.5], scheme=["grid"]))
    assert rows == [
        dict(scheme="dense", iou_thr=0.25),
        dict(scheme="dense", iou_thr=0.5),
        dict(scheme="grid", iou_thr=0.25),
    ]
    names = [row_name(dict(row, padding=5, max_patches=9)) for row in rows]
    assert row_name(dict(amp=True, caution=0.5)) == "dense 64 iou 0.25 caution 0.5 half precision"
    assert row_name(dict(caution=0.0)) == "dense 64 iou 0.25"
    assert names[0] == "dense 64 iou 0.25 padding 5 at most 9" and len(set(names)) == 3


def test_variations_are_read():
    assert parse_variations(["iou_thr=0.1,0.5", "scheme=grid", "amp=true"]) == dict(
        iou_thr=[0.1, 0.5], scheme=["grid"], amp=[True]
    )
    for text in ("iou=1", "iou_thr", "iou_thr=", "patch_size=big", "amp=yes"):
        with pytest.raises(UserError, match=f"--vary {text}"):
            parse_variations([text])


def test_files_or_degraded_truth(root, monkeypatch):
    class Fake(Shifts):
        caution = 0.0

        def __init__(self, config, checkpoint, device):
            super().__init__(-4)

        def with_options(self, **options):
            if options["scheme"] == "star":
                raise ValueError("no such scheme")
            return self

    monkeypatch.setattr(refinement, "BoundaryRefiner", Fake)
    arguments = str(root / "gt.json"), str(root / "images")
    options = dict(scheme="dense")
    record = refinement.evaluate_file(str(root / "results.json"), *arguments, options=options)
    assert record["refined"]["dense 64 iou 0.25"]["figures"]["segm_mAP"] == 1
    record = refinement.evaluate_file(
        None, *arguments, degrade_kinds=["polygon"], options=options, vary=["scheme=grid"]
    )
    assert list(record["refined"]) == ["dense 64 iou 0.25", "grid 64 iou 0.25"]
    for kwargs, message in (
        (dict(results=None), "either"),
        (dict(results=None, degrade_kinds=["x"]), "choose from mask_head"),
        (dict(results=str(root / "results.json"), vary=["scheme=star"]), "no such scheme"),
    ):
        results = kwargs.pop("results")
        with pytest.raises(UserError, match=message):
            refinement.evaluate_file(results, *arguments, options=options, **kwargs)
