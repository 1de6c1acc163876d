"""Building a store of patches: what is in it, whoever builds it and however often it stops."""

import multiprocessing
import os
import select
import sqlite3
import time

import cv2
import numpy as np
import pytest

from mmseg_plus.bpr.build_patches import PatchSettings, build_patches
from mmseg_plus.bpr.instances import ImageInstances
from mmseg_plus.bpr.patch_store import PatchStore
from mmseg_plus.common.errors import UserError

SIDE = 48
SMALL = dict(patch_size=16, codec="png")


class Memory:
    """A source of what is in memory, that calls something before each image."""

    def __init__(self, images, before=lambda index: None):
        self.images, self.before = images, before

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.before(index)
        return self.images[index]


def disc(y, x, radius=9, shape=(SIDE, SIDE)):
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, (x, y), radius, 1, -1)
    return mask.astype(bool)


def instances(folder, image_id, masks, labels=None, crowd=None, first=0, shape=(SIDE, SIDE)):
    """An image with these masks; its file is drawn unless it is there."""
    path = folder / f"{image_id}.png"
    if not path.exists():
        picture = np.random.default_rng(len(str(image_id))).integers(0, 256, (*shape, 3), np.uint8)
        cv2.imwrite(str(path), picture)
    return ImageInstances(
        image_id=image_id,
        image_path=str(path),
        height=shape[0],
        width=shape[1],
        masks=np.array(masks, bool).reshape(-1, *shape),
        labels=np.array([1] * len(masks) if labels is None else labels, np.int64),
        scores=np.ones(len(masks)),
        crowd=np.array([False] * len(masks) if crowd is None else crowd, bool),
        records=list(range(first, first + len(masks))),
    )


@pytest.fixture
def truth(tmp_path):
    """Eight images of 0, 1, 2, 3, 0, ... discs."""
    rng = np.random.default_rng(0)
    images, first = [], 0
    for number in range(8):
        masks = [disc(*rng.integers(5, SIDE - 5, 2)) for _ in range(number % 4)]
        images.append(instances(tmp_path, 10 + number, masks, first=first))
        first += len(masks)
    return Memory(images)


def build(coarse, truth, out, *, workers=0, resume=False, skip_bad=False, inputs=None, **settings):
    settings = PatchSettings(**{**SMALL, **settings})
    return build_patches(
        coarse,
        truth,
        out,
        settings,
        inputs=inputs,
        workers=workers,
        resume=resume,
        skip_bad=skip_bad,
    )


def everything(path):
    store = PatchStore(path)
    return [store[i] for i in range(len(store))]


def rows(path):
    """All that is in the file; SQLite's own header counts how often it was opened."""
    with sqlite3.connect(path) as database:
        found = list(database.iterdump())
    database.close()
    return found


def by_instance(patches):
    found = {}
    for p in patches:
        found.setdefault(p["instance"], []).append(p)
    return found


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])


def window(plane, box):
    x1, y1, x2, y2 = box
    return plane[y1:y2, x1:x2]


def test_a_segmenters_results(tmp_path):
    good, other, wide = disc(20, 20), disc(20, 30), disc(20, 22)
    masks = [good, other, disc(40, 40, 5), disc(20, 20, 8), disc(8, 40, 5)]
    results = instances(tmp_path, "a", masks, labels=[1, 2, 1, 1, 1], first=7)
    annotations = instances(
        tmp_path,
        "a",
        [wide, disc(21, 20), other, disc(40, 40, 5), disc(8, 44, 5)],
        labels=[1, 1, 1, 1, 1],
        crowd=[False, False, False, True, False],
    )
    out = tmp_path / "x" / "train.sqlite"
    report = build(Memory([results]), Memory([annotations]), out)
    found = by_instance(everything(out))
    # 1 is of another class, 2 covers a crowd, 4 covers too little; 0 and 3 share a ground truth.
    assert set(found) == {7, 10}
    picture = cv2.imread(str(tmp_path / "a.png"))
    for record, patches in found.items():
        assert len(patches) >= 3
        for p in patches:
            assert p["image_id"] == "a" and p["label"] == 1
            np.testing.assert_array_equal(p["image"], window(picture, p["box"]))
            np.testing.assert_array_equal(p["coarse"], window(masks[record - 7], p["box"]))
            np.testing.assert_array_equal(p["target"], window(disc(21, 20), p["box"]))
    assert (report.images, report.instances, report.patches) == (
        1,
        2,
        sum(map(len, found.values())),
    )
    reason = "no ground truth of its class that it overlaps enough"
    assert report.left_out == {reason: 3}
    assert report.bytes == out.stat().st_size and report.path == out


def test_without_a_filter_any_overlap_will_do(tmp_path):
    results = instances(tmp_path, 1, [disc(20, 20), disc(40, 40, 5)])
    annotations = instances(tmp_path, 1, [disc(20, 34), disc(36, 20, 9)])
    with pytest.raises(UserError, match="not one patch could be taken"):
        build(Memory([results]), Memory([annotations]), tmp_path / "a.sqlite")
    build(Memory([results]), Memory([annotations]), tmp_path / "b.sqlite", min_iou=0.0)
    found = by_instance(everything(tmp_path / "b.sqlite"))
    assert set(found) == {0}
    # Not the first one, the one of the larger IoU.
    share = [(disc(20, 20) & mask).sum() for mask in annotations.masks]
    target = annotations.masks[int(np.argmax(share))]
    for p in found[0]:
        np.testing.assert_array_equal(p["target"], window(target, p["box"]))


def test_images_are_found_by_their_ids(tmp_path, truth):
    order = [6, 2, 7, 3]
    results = [truth.images[place] for place in order]
    strange = instances(tmp_path, "strange", [disc(20, 20)])
    report = build(Memory([strange, *results]), truth, tmp_path / "a.sqlite")
    found = everything(tmp_path / "a.sqlite")
    assert list(dict.fromkeys(p["image_id"] for p in found)) == [10 + place for place in order]
    for p in found:
        np.testing.assert_array_equal(p["target"], p["coarse"])
    assert report.left_out == {"an image without ground truth": 1}
    assert report.instances == 2 + 2 + 3 + 3


def test_coarse_masks_from_the_ground_truth(tmp_path):
    masks = [disc(24, 24, 14), np.zeros((SIDE, SIDE)), disc(10, 10), disc(30, 12)]
    source = Memory([instances(tmp_path, 1, masks, labels=[5, 6, 7, 8], crowd=[0, 0, 1, 0])])
    report = build(None, source, tmp_path / "a.sqlite")
    found = by_instance(everything(tmp_path / "a.sqlite"))
    assert set(found) == {0, 3} and report.left_out == {"a crowd": 1, "no pixels": 1}
    assert {p["label"] for p in found[3]} == {8}
    assert any((p["coarse"] != p["target"]).any() for p in found[0])
    for p in found[0]:
        np.testing.assert_array_equal(p["target"], window(masks[0], p["box"]))
    build(None, source, tmp_path / "b.sqlite")
    same(everything(tmp_path / "a.sqlite"), everything(tmp_path / "b.sqlite"))
    build(None, source, tmp_path / "c.sqlite", seed=1)
    other = by_instance(everything(tmp_path / "c.sqlite"))
    assert any(
        a["box"] != b["box"] or (a["coarse"] != b["coarse"]).any()
        for a, b in zip(found[0], other[0], strict=False)
    )


def test_each_instance_has_errors_of_its_own(tmp_path):
    twice = Memory([instances(tmp_path, 1, [disc(24, 24, 14)] * 2)])
    build(None, twice, tmp_path / "a.sqlite")
    first, second = by_instance(everything(tmp_path / "a.sqlite")).values()
    assert [p["box"] for p in first] != [p["box"] for p in second]


def test_the_kinds_of_errors_are_those_asked_for(tmp_path):
    square = np.zeros((SIDE, SIDE))
    square[10:38, 10:38] = 1
    source = Memory([instances(tmp_path, 1, [square])])
    differences = {}
    for kind in ("polygon", "morphology"):
        wrong = []
        for seed in range(4):
            path = tmp_path / f"{kind}{seed}.sqlite"
            build(None, source, path, degrade=(kind,), seed=seed)
            wrong += [(p["coarse"] != p["target"]).mean() for p in everything(path)]
        differences[kind] = np.mean(wrong)
    # A square is a polygon of four vertices already.
    assert differences["polygon"] < 0.5 * differences["morphology"]


@pytest.mark.parametrize("scheme", ["dense", "grid", "instance"])
def test_schemes_padding_and_small_images(tmp_path, scheme):
    mask = disc(6, 9, 4, (12, 20))
    source = Memory([instances(tmp_path, 1, [mask], shape=(12, 20))])
    build(source, source, tmp_path / "a.sqlite", scheme=scheme, padding=3)
    for p in everything(tmp_path / "a.sqlite"):
        x1, y1, x2, y2 = p["box"]
        assert p["coarse"].shape == (y2 - y1 + 6, x2 - x1 + 6)
        np.testing.assert_array_equal(p["coarse"][3:-3, 3:-3], window(mask, p["box"]))
        assert 0 <= y1 < y2 <= 12 and 0 <= x1 < x2 <= 20
        assert (p["box"] == (5, 2, 14, 11)) == (scheme == "instance")


@pytest.mark.parametrize("from_results", [True, False])
def test_any_number_of_processes_gives_the_same_file(tmp_path, truth, from_results):
    files = []
    for workers in (0, 1, 3):
        out = tmp_path / f"{workers}.sqlite"
        results = Memory(truth.images) if from_results else None
        build(results, truth, out, workers=workers, max_instances=9)
        files.append(rows(out))
    assert files[0] == files[1] == files[2]


def test_sampling(tmp_path, truth):
    total = sum(len(image.masks) for image in truth.images)
    build(None, truth, tmp_path / "all.sqlite")
    full = by_instance(everything(tmp_path / "all.sqlite"))
    assert len(full) == total
    seen = set()
    for seed in range(6):
        out = tmp_path / f"{seed}.sqlite"
        report = build(None, truth, out, max_instances=5, seed=seed)
        found = by_instance(everything(out))
        assert len(found) == report.instances == 5
        if seed == 0:
            # An instance is treated alike, whichever others are chosen.
            for record, patches in found.items():
                same(patches, full[record])
        images = {p["image_id"] for patches in found.values() for p in patches}
        of_images = sum(len(image.masks) for image in truth.images if image.image_id in images)
        assert report.left_out == ({"not sampled": of_images - 5} if of_images > 5 else {})
        seen.add(frozenset(found))
    assert len(seen) > 2 and len(frozenset().union(*seen)) > 8
    report = build(None, truth, tmp_path / "more.sqlite", max_instances=1000)
    assert report.instances == total
    same(everything(tmp_path / "more.sqlite"), everything(tmp_path / "all.sqlite"))


def test_only_usable_instances_are_sampled(tmp_path):
    """The number asked for is the number of instances that patches are taken of."""
    good = [disc(10, 10), disc(30, 30)]
    results = instances(tmp_path, 1, [*good, *[disc(10, 38, 3)] * 30])
    report = build(
        Memory([results]),
        Memory([instances(tmp_path, 1, good)]),
        tmp_path / "a.sqlite",
        max_instances=2,
    )
    assert report.instances == 2


def fails_at(place, error):
    def before(index):
        if index == place:
            raise error

    return before


@pytest.mark.parametrize("workers", [0, 2])
def test_going_on_after_an_error(tmp_path, truth, workers):
    out = tmp_path / "broken.sqlite"
    broken = Memory(truth.images, fails_at(5, UserError("record 5 is torn")))
    with pytest.raises(UserError, match="record 5 is torn"):
        build(None, broken, out, workers=workers)
    with pytest.raises(UserError, match="--resume"):
        build(None, truth, out, workers=workers)
    looked_at = []
    report = build(None, Memory(truth.images, looked_at.append), out, resume=True)
    assert looked_at == [5, 6, 7] and report.resumed == 5
    whole = build(None, truth, tmp_path / "whole.sqlite")
    assert rows(out) == rows(tmp_path / "whole.sqlite")
    assert (report.images, report.instances) == (whole.images, whole.instances) == (6, 12)
    assert (report.patches, report.left_out) == (whole.patches, whole.left_out)
    assert report.patches == len(PatchStore(out))
    # A finished one is left alone.
    before = out.read_bytes()
    again = build(None, Memory(truth.images, fails_at(0, AssertionError)), out, resume=True)
    assert again.patches == report.patches and out.read_bytes() == before


def test_an_unfinished_store_is_not_gone_on_with_for_something_else(tmp_path, truth):
    out = tmp_path / "a.sqlite"
    broken = Memory(truth.images, fails_at(5, UserError("torn")))
    with pytest.raises(UserError, match="torn"):
        build(None, broken, out, inputs=dict(truth="abc"))
    for change, reason in (
        (dict(inputs=dict(truth="abd")), "inputs"),
        (dict(iou_thr=0.5), "iou_thr 0.25 there, 0.5 now"),
        (dict(degrade=("polygon",)), "degrade"),
    ):
        with pytest.raises(UserError, match=reason):
            build(None, truth, out, resume=True, **dict(dict(inputs=dict(truth="abc")), **change))
    build(None, truth, out, resume=True, inputs=dict(truth="abc"))
    assert PatchStore(out).meta["inputs"] == dict(truth="abc")


def _build_slowly(truth, out, said):
    def before(index):
        os.write(said, b"+")
        time.sleep(0.02)

    build(None, Memory(truth.images * 1, before), out, workers=2, resume=True)


def test_a_kill_costs_nothing_and_leaves_no_process(tmp_path, truth):
    images = [
        instances(tmp_path, f"{i} {image.image_id}", image.masks, first=100 * i)
        for i in range(12)
        for image in truth.images
    ]
    truth = Memory(images)
    out = tmp_path / "a.sqlite"
    context = multiprocessing.get_context("fork")
    for _ in range(3):
        reading, writing = os.pipe()
        process = context.Process(target=_build_slowly, args=(truth, out, writing))
        process.start()
        os.close(writing)
        for _ in range(15):
            assert os.read(reading, 1) == b"+", "it ended by itself"
        process.kill()
        process.join()
        end = time.monotonic() + 60
        while True:
            # The workers hold the other end: the pipe ends with the last of them.
            assert select.select([reading], [], [], end - time.monotonic())[0], "still at work"
            if not os.read(reading, 1 << 10):
                break
        os.close(reading)
        assert not out.exists()
    report = build(None, truth, out, resume=True)
    assert 0 < report.resumed < len(images)
    build(None, truth, tmp_path / "whole.sqlite")
    same(everything(out), everything(tmp_path / "whole.sqlite"))


def test_a_worker_that_dies(tmp_path, truth):
    dying = Memory(truth.images, lambda index: os._exit(1) if index == 6 else None)
    out = tmp_path / "a.sqlite"
    with pytest.raises(UserError, match="a worker process died .* --resume"):
        build(None, dying, out, workers=2)
    build(None, truth, out, resume=True)
    build(None, truth, tmp_path / "whole.sqlite")
    same(everything(out), everything(tmp_path / "whole.sqlite"))


@pytest.mark.parametrize("workers", [0, 2])
def test_unusable_images(tmp_path, truth, workers):
    (tmp_path / "12.png").unlink()
    (tmp_path / "15.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "17.png"), np.zeros((SIDE, SIDE + 1, 3), np.uint8))
    with pytest.raises(UserError, match=r"image 12: .*12\.png"):
        build(None, truth, tmp_path / "a.sqlite", workers=workers)
    report = build(None, truth, tmp_path / "b.sqlite", workers=workers, skip_bad=True)
    assert [text.split(":")[0] for text in report.skipped] == ["image 12", "image 15", "image 17"]
    assert report.images == 3 and report.instances == 1 + 3 + 2
    assert {p["image_id"] for p in everything(tmp_path / "b.sqlite")} == {11, 13, 16}
    # An image without instances need not be there.
    (tmp_path / "10.png").unlink()
    assert build(None, truth, tmp_path / "c.sqlite", skip_bad=True).patches == report.patches


def test_nothing_to_take(tmp_path):
    results = Memory([instances(tmp_path, 1, [disc(20, 20)] * 3, labels=[4] * 3)])
    annotations = Memory([instances(tmp_path, 1, [disc(20, 20)])])
    with pytest.raises(UserError, match="3 instances: no ground truth of its class .*belong toge"):
        build(results, annotations, tmp_path / "a.sqlite")
    assert not (tmp_path / "a.sqlite").exists()
    with pytest.raises(UserError, match=r"\(no instances\)"):
        build(None, Memory([]), tmp_path / "b.sqlite", max_instances=3)


def test_masks_of_another_size(tmp_path):
    results = instances(tmp_path, 1, [disc(20, 20)])
    annotations = instances(tmp_path, 1, [disc(20, 20, shape=(50, 48))], shape=(50, 48))
    with pytest.raises(UserError, match=r"image 1: the coarse masks are \[48, 48\] .* \[50, 48\]"):
        build(Memory([results]), Memory([annotations]), tmp_path / "a.sqlite")


def test_progress(tmp_path, truth):
    class Line:
        shown: list = []

        def show(self, text):
            self.shown.append(text)

    report = build_patches(
        None,
        truth,
        tmp_path / "a.sqlite",
        PatchSettings(**SMALL, max_instances=5),
        progress=Line(),
    )
    assert "8/8 images looked at" in Line.shown[7]
    last = Line.shown[-1]
    assert f", {report.patches} patches, " in last and "images/s, 0:00 left" in last
    assert len(Line.shown) == 8 + report.images
