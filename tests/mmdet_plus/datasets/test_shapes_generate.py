import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mmdet_plus.datasets import make_shapes
from mmdet_plus.datasets.shapes import CLASSES, THING_CLASSES, draw_sample, generate
from mmseg_plus.common.errors import UserError

REPO = Path(__file__).resolve().parents[3]
SMALL = dict(num_train=11, num_val=5, image_size=(96, 80), seed=7, progress=False)


def digests(root):
    root = Path(root)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return digests(make_shapes(tmp_path_factory.mktemp("reference") / "set", **SMALL))


@pytest.fixture
def drawn(monkeypatch):
    """The (split, index) pairs that are drawn in this process, in order."""
    calls = []

    def spy(seed, split, index, size):
        calls.append((split, index))
        return draw_sample(seed, split, index, size)

    monkeypatch.setattr(generate, "draw_sample", spy)
    return calls


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_same_bytes_for_any_worker_count(tmp_path, reference, workers):
    assert digests(make_shapes(tmp_path / "set", **SMALL, workers=workers)) == reference


def test_layout(reference):
    train = {f"{i:06d}" for i in range(11)}
    assert {Path(n).stem for n in reference if n.startswith("train/")} == train
    assert {Path(n).stem for n in reference if n.startswith("panoptic_train/")} == train
    assert {Path(n).stem for n in reference if n.startswith("stuff_train/")} == train
    assert len(reference) == 1 + 4 + 3 * (11 + 5), "something is left over or missing"


def test_seed_split_and_index_all_matter():
    size = (96, 80)
    pictures = [
        draw_sample(seed, split, index, size).image.tobytes()
        for seed in (0, 1)
        for split in ("train", "val")
        for index in (0, 1)
    ]
    assert len(set(pictures)) == 8


def test_size_is_width_height(tmp_path):
    root = make_shapes(tmp_path / "a", 2, 0, (128, 72), progress=False)
    assert cv2.imread(str(root / "train/000000.jpg")).shape == (72, 128, 3)
    image = json.loads((root / "annotations/instances_train.json").read_text())["images"][0]
    assert (image["width"], image["height"]) == (128, 72)
    empty = json.loads((root / "annotations/panoptic_val.json").read_text())
    assert empty["images"] == [] and len(empty["categories"]) == len(CLASSES)


def test_finished_root_returns_at_once(tmp_path, drawn):
    make_shapes(tmp_path, **SMALL)
    assert len(drawn) == 16
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    make_shapes(tmp_path, **SMALL, workers=2)
    assert len(drawn) == 16
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_failure_midway_leaves_no_json_and_resumes(tmp_path, reference, monkeypatch, drawn):
    spy = generate.draw_sample

    def failing(seed, split, index, size):
        if (split, index) == ("train", 6):
            raise KeyboardInterrupt
        return spy(seed, split, index, size)

    monkeypatch.setattr(generate, "draw_sample", failing)
    with pytest.raises(KeyboardInterrupt):
        make_shapes(tmp_path, **SMALL)
    assert not list((tmp_path / "annotations").iterdir())
    assert not list(tmp_path.rglob("*.part"))
    assert len(drawn) == 6

    monkeypatch.setattr(generate, "draw_sample", spy)
    make_shapes(tmp_path, **SMALL)
    assert sorted(drawn) == sorted(
        [("train", i) for i in range(11)] + [("val", i) for i in range(5)]
    ), "an image was drawn twice or never"
    assert digests(tmp_path) == reference


def test_failed_write_leaves_no_torn_file(tmp_path, reference, monkeypatch):
    replace, calls = os.replace, []

    def full_disk(source, target):
        calls.append(target)
        if len(calls) == 10:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space"):
        make_shapes(tmp_path, **SMALL)
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    assert digests(make_shapes(tmp_path, **SMALL)) == reference


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs forked workers")
def test_killed_worker_is_told_and_resumed(tmp_path, reference, monkeypatch):
    def dying(seed, split, index, size):
        if (split, index) == ("train", 9):
            os._exit(9)
        return draw_sample(seed, split, index, size)

    monkeypatch.setattr(generate, "draw_sample", dying)
    with pytest.raises(RuntimeError, match="worker process died.*same command again"):
        make_shapes(tmp_path, **SMALL, workers=1)
    assert (tmp_path / "train/000003.jpg").is_file()
    monkeypatch.undo()
    assert digests(make_shapes(tmp_path, **SMALL, workers=2)) == reference


def test_lost_files_are_made_again(tmp_path, reference, drawn):
    make_shapes(tmp_path, **SMALL)
    drawn.clear()
    (tmp_path / "train/000004.jpg").unlink()
    (tmp_path / "stuff_val/000002.png").unlink()
    make_shapes(tmp_path, **SMALL)
    assert drawn == [("train", 4), ("val", 2)]
    (tmp_path / "annotations/panoptic_val.json").unlink()
    make_shapes(tmp_path, **SMALL)
    assert digests(tmp_path) == reference


@pytest.mark.parametrize(
    "change", [dict(seed=8), dict(num_train=12), dict(num_val=4), dict(image_size=(80, 96))]
)
def test_other_arguments_in_the_same_root(tmp_path, reference, change):
    make_shapes(tmp_path, **SMALL)
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.*choose another folder"):
        make_shapes(tmp_path, **{**SMALL, **change})
    assert digests(tmp_path) == reference


def test_root_of_something_else(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train/cat.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="root: .*other files in train"):
        make_shapes(tmp_path, **SMALL)
    assert [p.name for p in tmp_path.rglob("*.*")] == ["cat.jpg"]
    with pytest.raises(ValueError, match="root: .* is a file"):
        make_shapes(tmp_path / "train/cat.jpg", **SMALL)
    other = tmp_path / "other"
    other.mkdir()
    (other / "shapes.json").write_text("{oops")
    with pytest.raises(ValueError, match=r"root: .*shapes\.json cannot be read"):
        make_shapes(other, **SMALL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_train", -1),
        ("num_train", 1.5),
        ("num_train", 1 << 20),
        ("num_val", "3"),
        ("image_size", (63, 256)),
        ("image_size", (256, 10_000)),
        ("image_size", 256),
        ("image_size", (256, 256, 3)),
        ("image_size", (256.0, 256)),
        ("seed", -1),
        ("seed", None),
        ("workers", -2),
        ("workers", True),
    ],
)
def test_bad_argument_is_named(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        make_shapes(tmp_path / "set", **{name: value})
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_pictures_and_records_agree_to_the_pixel(shapes_root, split):
    instances = json.loads((shapes_root / f"annotations/instances_{split}.json").read_text())
    panoptic = json.loads((shapes_root / f"annotations/panoptic_{split}.json").read_text())
    assert instances["images"] == panoptic["images"]
    idents = [s["id"] for ann in panoptic["annotations"] for s in ann["segments_info"]]
    assert len(set(idents)) == len(idents)
    for image, ann in zip(panoptic["images"], panoptic["annotations"], strict=True):
        assert ann["image_id"] == image["id"]
        png = cv2.imread(str(shapes_root / f"panoptic_{split}" / ann["file_name"]))
        ids = png[..., 2] + 256 * png[..., 1].astype(int) + 65536 * png[..., 0].astype(int)
        stuff_name = f"stuff_{split}/{ann['file_name']}"
        labels = cv2.imread(str(shapes_root / stuff_name), cv2.IMREAD_UNCHANGED)
        assert labels.shape == ids.shape == (image["height"], image["width"])
        segments = {segment["id"]: segment for segment in ann["segments_info"]}
        assert set(np.unique(ids)) - {0} == set(segments)
        assert (labels[ids == 0] == 255).all()
        for ident, segment in segments.items():
            mask = ids == ident
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            box = [x, y, columns.max() - x + 1, rows.max() - y + 1]
            assert segment["area"] == mask.sum() and segment["bbox"] == box
            assert (labels[mask] == segment["category_id"] - 1).all()
        things = [a for a in instances["annotations"] if a["image_id"] == image["id"]]
        assert [a["depth"] for a in things] == list(range(len(things)))
        assert {a["id"] for a in things} == {
            s["id"] for s in segments.values() if s["category_id"] <= len(THING_CLASSES)
        }
        for thing in things:
            mask = mask_utils.decode(thing["segmentation"]).astype(bool)
            np.testing.assert_array_equal(mask, ids == thing["id"])
            segment = segments[thing["id"]]
            assert all(thing[key] == value for key, value in segment.items())
            assert thing["visible_ratio"] == pytest.approx(
                thing["area"] / thing["amodal_area"], abs=1e-4
            )
            assert 0.25 <= thing["visible_ratio"] <= 1


def test_categories(shapes_root):
    things = json.loads((shapes_root / "annotations/instances_val.json").read_text())["categories"]
    every = json.loads((shapes_root / "annotations/panoptic_val.json").read_text())["categories"]
    assert [c["name"] for c in things] == list(THING_CLASSES)
    assert [(c["id"], c["name"]) for c in every] == list(enumerate(CLASSES, start=1))
    assert [c["isthing"] for c in every] == [1] * 8 + [0] * 5


def test_command_line(tmp_path):
    command = [sys.executable, str(REPO / "tools/make_shapes.py"), str(tmp_path / "set")]
    options = ["--num-train", "3", "--num-val", "1", "--size", "96", "80", "--workers", "2"]
    done = subprocess.run([*command, *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "3 + 1 images" in done.stdout
    assert digests(tmp_path / "set") == digests(
        make_shapes(tmp_path / "again", 3, 1, (96, 80), progress=False)
    )
    other = subprocess.run(
        [*command, *options, "--seed", "5"], capture_output=True, text=True, cwd=tmp_path
    )
    assert other.returncode == 2
    assert other.stderr.startswith("error: root: ") and "seed=0 (asked for: 5)" in other.stderr
    assert other.stderr.count("\n") == 1


def test_command_line_tells_what_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    command = [sys.executable, str(REPO / "tools/make_shapes.py"), str(tmp_path / "file" / "set")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {tmp_path / 'file'}")
    assert "Not a directory; mend that and run the same command again" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_second_run_does_not_draw_into_the_same_folder(tmp_path, reference, monkeypatch):
    def second(seed, split, index, size):
        monkeypatch.setattr(generate, "draw_sample", draw_sample)
        with pytest.raises(UserError, match=f"{tmp_path}: another process is drawing Shapes"):
            make_shapes(tmp_path, **SMALL)
        return draw_sample(seed, split, index, size)

    monkeypatch.setattr(generate, "draw_sample", second)
    assert digests(make_shapes(tmp_path, **SMALL)) == reference
    assert generate.draw_sample is draw_sample, "the second run was never tried"


def test_a_finished_folder_need_not_be_written_to(tmp_path, monkeypatch):
    make_shapes(tmp_path, **SMALL)

    def read_only(*_, **__):
        raise PermissionError

    monkeypatch.setattr(generate, "only_one", read_only)
    assert make_shapes(tmp_path, **SMALL) == tmp_path
    # What a run that was killed at the very end left behind is still cleared away.
    (tmp_path / ".shapes-unfinished").mkdir()
    with pytest.raises(PermissionError):
        make_shapes(tmp_path, **SMALL)
