"""``tools/bpr_patches.py``: from files of every format to a store, its options and its errors."""

import json
import sqlite3
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_results
from tiny_results import CATEGORY_IDS, CITY_NAMES, COUNTS, SIZES

from mmseg_plus.bpr.patch_store import PatchStore

GIVEN = ("--ann", "truth.json", "--img-dir", "images", "--out", "out", "--workers", 0)


@pytest.fixture
def tool(run_tool):
    return partial(run_tool, "bpr_patches.py")


def write_truth(root, masks, labels=lambda number: CATEGORY_IDS[number % len(CATEGORY_IDS)]):
    """A COCO instances file of these masks, on the images of ``ann.json``."""
    content = json.loads((root / "ann.json").read_text())
    annotations = []
    for image, planes in zip(content["images"], masks, strict=True):
        for number, mask in enumerate(planes):
            rows, columns = np.nonzero(mask)
            x, y = int(columns.min()), int(rows.min())
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=image["id"],
                    category_id=labels(number),
                    segmentation=tiny_results.rle(mask),
                    bbox=[x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
                    area=int(mask.sum()),
                    iscrowd=0,
                )
            )
    (root / "truth.json").write_text(json.dumps(dict(content, annotations=annotations)))


def everything(path):
    store = PatchStore(path)
    return [store[i] for i in range(len(store))]


def check(patches, masks):
    """Each patch holds what its image and the mask of its place show."""
    assert patches
    for p in patches:
        x1, y1, x2, y2 = p["box"]
        assert any((p["target"] == mask[y1:y2, x1:x2]).all() for mask in masks[p["image_id"]])


@pytest.mark.parametrize("format", ["coco", "mmdet"])
def test_results(tool, tmp_path, format):
    masks = tiny_results.make_images(tmp_path)
    if format == "coco":
        tiny_results.write_coco(tmp_path, masks)
    else:
        tiny_results.write_mmdet(tmp_path, masks)
    write_truth(tmp_path, masks)
    coarse = {"coco": "coarse.json", "mmdet": "coarse.pkl"}[format]
    code, out, err = tool(coarse, *GIVEN, "--patch-size", 16, "--codec", "png")
    assert (code, err) == (0, "")
    patches = everything(tmp_path / "out" / "train.sqlite")
    check(patches, {100 + i: planes for i, planes in enumerate(masks)})
    for p in patches:
        np.testing.assert_array_equal(p["coarse"], p["target"])
    assert f"out/train.sqlite: {len(patches)} patches of {sum(COUNTS)} instances on 5 images" in out
    with sqlite3.connect(tmp_path / "out" / "train.sqlite") as database:
        picture = database.execute("SELECT picture FROM patches").fetchone()[0]
    database.close()
    assert picture.startswith(b"\x89PNG")


def test_degraded_ground_truth(tool, tmp_path):
    masks = tiny_results.make_images(tmp_path)
    write_truth(tmp_path, masks)
    code, out, _ = tool(*GIVEN, "--degrade", "polygon", "morphology", "--split", "val")
    assert code == 0
    patches = everything(tmp_path / "out" / "val.sqlite")
    check(patches, {100 + i: planes for i, planes in enumerate(masks)})
    assert any((p["coarse"] != p["target"]).any() for p in patches)
    assert not (tmp_path / "out" / "train.sqlite").exists()
    meta = PatchStore(tmp_path / "out" / "val.sqlite").meta
    assert (meta["degrade"], meta["min_iou"]) == (["polygon", "morphology"], 0.5)


def test_cityscapes(tool, tmp_path):
    # Labels of the results are 24, 25, ...
    masks = tiny_results.write_cityscapes(tmp_path)
    last = {}
    for name, planes, size in zip(CITY_NAMES, masks, SIZES, strict=True):
        plane = np.zeros(size, np.uint16)
        for number, mask in enumerate(planes):
            plane[mask] = (24 + number) * 1000
        stem = name.removesuffix("_leftImg8bit.png")
        path = tmp_path / "gtFine" / f"{stem}_gtFine_instanceIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), plane)
        last[Path(stem).name] = [plane == 1000 * (24 + n) for n in range(len(planes))]
    arguments = ("--ann", "gtFine", "--img-dir", "images", "--out", "out", "--workers", 0)
    code, out, err = tool("coarse", *arguments)
    assert (code, err) == (0, "")
    check(everything(tmp_path / "out" / "train.sqlite"), last)
    assert len(PatchStore(tmp_path / "out" / "train.sqlite").meta["inputs"]) == 2
    # The maps themselves count: others are other ground truth.
    plane[...] = 0
    cv2.imwrite(str(path), plane)
    code, _, err = tool("coarse", *arguments, "--resume")
    assert code == 2 and "built from something else (inputs" in err


def test_the_validation_is_not_filtered(tool, tmp_path):
    masks = tiny_results.make_images(tmp_path)
    tiny_results.write_coco(tmp_path, masks)
    # Of each coarse mask, less than a half.
    halves = [planes & (np.indices(planes.shape)[2] % 5 < 2) for planes in masks]
    write_truth(tmp_path, halves)
    expected = {"": 2, "--min-iou 0.2": 0, "--no-filter": 0, "--split val": 0}
    expected["--split val --min-iou 0.5"] = 2
    for number, (options, code) in enumerate(expected.items()):
        given = (*GIVEN[:5], f"out{number}", *GIVEN[6:])
        found, _, err = tool("coarse.json", *given, *options.split())
        assert found == code, options
        assert code == 0 or "error: out" in err and "not one patch could be taken" in err


def test_going_on(tool, tmp_path):
    masks = tiny_results.make_images(tmp_path)
    write_truth(tmp_path, masks)
    (tmp_path / "images" / "004.png").rename(tmp_path / "away.png")
    code, _, err = tool(*GIVEN)
    assert code == 2 and "004.png" in err and len(err.splitlines()) == 1
    (tmp_path / "images" / "004.png").write_bytes(b"no picture")
    code, _, err = tool(*GIVEN)
    assert code == 2 and "cannot be read" in err
    (tmp_path / "away.png").rename(tmp_path / "images" / "004.png")
    code, _, err = tool(*GIVEN)
    assert code == 2 and "--resume" in err and "out/train.sqlite.part" in err
    code, out, _ = tool(*GIVEN, "--resume")
    assert code == 0 and "; 4 images were done before" in out
    tool(*GIVEN[:5], "whole", *GIVEN[6:])
    one, whole = (everything(tmp_path / name / "train.sqlite") for name in ("out", "whole"))
    assert len(one) == len(whole)
    for a, b in zip(one, whole, strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)


def test_a_bad_image_is_left_out(tool, tmp_path):
    masks = tiny_results.make_images(tmp_path)
    write_truth(tmp_path, masks)
    (tmp_path / "images" / "004.png").unlink()
    code, out, _ = tool(*GIVEN, "--skip-bad")
    assert code == 0 and "1 images skipped:\n  image 104: " in out
    assert 104 not in {p["image_id"] for p in everything(tmp_path / "out" / "train.sqlite")}


def test_every_option_arrives(tool, tmp_path):
    masks = tiny_results.make_images(tmp_path)
    write_truth(tmp_path, masks)
    options = ("--iou-thr", 0.4, "--scheme", "grid", "--padding", 2, "--max-instances", 4)
    code, out, _ = tool(*GIVEN, *options, "--seed", 3, "--patch-size", 20, "--min-iou", 0.6)
    assert code == 0 and "of 4 instances" in out and "instances left out:" in out
    meta = PatchStore(tmp_path / "out" / "train.sqlite").meta
    assert meta.pop("inputs").keys() == {"truth"}
    assert meta == dict(
        patch_size=20,
        iou_thr=0.4,
        scheme="grid",
        padding=2,
        min_iou=0.6,
        degrade=["mask_head", "polygon", "morphology"],
        codec="webp",
        max_instances=4,
        seed=3,
    )


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("coarse.json", "--degrade", "polygon"), "leave COARSE out"),
        (("--degrade", "blur"), "invalid choice: 'blur'"),
        (("--iou-thr", "1.5"), "--iou-thr: invalid"),
        (("--patch-size", "0"), "--patch-size: invalid"),
        (("--padding", "-1"), "--padding: invalid"),
        (("--split", "test"), "invalid choice: 'test'"),
        (("--min-iou", "0.3", "--no-filter"), "not allowed with"),
    ],
)
def test_wrong_arguments(tool, arguments, text):
    code, _, err = tool(*GIVEN, *arguments)
    assert code == 2 and text in err


def test_missing_files(tool, tmp_path):
    code, _, err = tool(*GIVEN)
    assert code == 2 and "truth.json: there is no such annotation file" in err
    masks = tiny_results.make_images(tmp_path)
    write_truth(tmp_path, masks)
    code, _, err = tool("none.json", *GIVEN)
    assert code == 2 and "none.json" in err and len(err.splitlines()) == 1


def test_interrupted(tool, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("mmseg_plus.bpr.patches_command.build_files", interrupted)
    code, _, err = tool(*GIVEN)
    assert code == 130 and "go on with --resume" in err
