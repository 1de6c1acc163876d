"""The streaming refinement of results: whole, killed, resumed, by several processes."""

import io
import json
import multiprocessing
import os
import pickle
import signal
import socket
import threading
import time
import tracemalloc
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_results
import torch
from PIL import Image
from tiny_results import COUNTS, SIZES
from torch import distributed as dist

from mmseg_plus.bpr import refine_journal, refine_results
from mmseg_plus.bpr.refine_journal import JournalWriter, RefineJournal
from mmseg_plus.bpr.sources import CityscapesResults, CocoResults, MMDetResults
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.progress import ProgressLine

fork = multiprocessing.get_context("fork")


@pytest.fixture
def root(tmp_path):
    tiny_results.write_coco(tmp_path)
    return tmp_path


def coco(root, **kwargs):
    return CocoResults(root / "coarse.json", root / "ann.json", root / "images", **kwargs)


def run(root, out="out.json", refine=tiny_results.refine, source=None, **kwargs):
    return refine_results.refine_results(source or coco(root), refine, root / out, **kwargs)


def unbroken(root):
    """The output of a run of its own."""
    run(root, "whole.json")
    return (root / "whole.json").read_bytes()


def leftovers(root):
    return [path.name for path in root.iterdir() if "partial" in path.name]


def test_every_mask_is_refined_with_its_image(root):
    report = run(root)
    records = json.loads((root / "coarse.json").read_text())
    written = json.loads((root / "out.json").read_text())
    assert len(written) == len(records)
    changed = 0
    for old, new in zip(records, written, strict=True):
        name = f"{old['image_id'] - 100:03d}.png"
        image = cv2.imread(str(root / "images" / name))
        coarse = tiny_results.decode(old)
        (expected,) = tiny_results.refine(image, coarse[None])
        assert np.array_equal(tiny_results.decode(new), expected)
        assert {**new, "bbox": 0, "segmentation": 0} == {**old, "bbox": 0, "segmentation": 0}
        changed += not np.array_equal(coarse, expected)
    assert report.changed == changed > 5
    assert (report.images, report.instances) == (len(SIZES), len(records))
    assert report.skipped == [] and report.resumed == 0 and not leftovers(root)


def test_what_the_refiner_sees(root):
    seen = []

    def refine(image, masks):
        seen.append((image.copy(), masks.copy()))
        return masks

    report = run(root, refine=refine)
    # The image without results is not even read.
    assert [len(masks) for _, masks in seen] == [count for count in COUNTS if count]
    for image, masks in seen:
        assert image.dtype == np.uint8 and image.shape == (*masks.shape[1:], 3)
        assert masks.dtype == bool
    source = coco(root)
    assert np.array_equal(seen[0][0], cv2.imread(source[0].image_path))
    assert np.array_equal(seen[0][1], source[0].masks)
    # Nothing has changed, so nothing is written differently.
    assert report.changed == 0
    assert json.loads((root / "out.json").read_text()) == json.loads(
        (root / "coarse.json").read_text()
    )


def test_instances_of_low_scores_keep_their_masks(root):
    shown = []

    def refine(image, masks):
        shown.append(len(masks))
        return tiny_results.refine(image, masks)

    run(root, "all.json")
    run(root, refine=refine, score_thr=0.8)
    scores = [record["score"] for record in json.loads((root / "coarse.json").read_text())]
    assert sum(shown) == sum(score >= 0.8 for score in scores) < len(scores)
    files = [json.loads((root / name).read_text()) for name in ("coarse.json", "all.json")]
    for record, coarse, refined in zip(
        json.loads((root / "out.json").read_text()), *files, strict=True
    ):
        assert record == (refined if record["score"] >= 0.8 else coarse)


def test_results_of_all_formats(tmp_path):
    masks = tiny_results.write_cityscapes(tmp_path)
    tiny_results.write_mmdet(tmp_path, masks)
    expected = [
        tiny_results.refine(cv2.imread(str(tmp_path / "images" / name)), planes)
        for name, planes in zip(tiny_results.CITY_NAMES, masks, strict=True)
    ]
    # The annotation file of write_cityscapes names the images.
    sources = {
        "city": CityscapesResults(tmp_path / "coarse", tmp_path / "images"),
        "mmdet.pkl": MMDetResults(
            tmp_path / "coarse.pkl", tmp_path / "ann.json", tmp_path / "images"
        ),
    }
    for out, source in sources.items():
        report = run(tmp_path, out, source=source)
        assert report.changed > 5
    again = {
        "city": CityscapesResults(tmp_path / "city", tmp_path / "images"),
        "mmdet.pkl": MMDetResults(
            tmp_path / "mmdet.pkl", tmp_path / "ann.json", tmp_path / "images"
        ),
    }
    for source in again.values():
        for item, masks_of_image in zip(source, expected, strict=True):
            assert np.array_equal(item.masks, masks_of_image)
    # Predictions as COCO results.
    run(tmp_path, "mmdet.json", source=sources["mmdet.pkl"])
    records = json.loads((tmp_path / "mmdet.json").read_text())
    flat = [mask for planes in expected for mask in planes]
    for record, mask in zip(records, flat, strict=True):
        assert np.array_equal(tiny_results.decode(record), mask)
    assert not leftovers(tmp_path)


def test_no_results_at_all(root):
    (root / "coarse.json").write_text("[]")
    report = run(root, refine=None)
    assert (root / "out.json").read_text() == "[]\n" and report.instances == 0


def in_child(job):
    """Run a job in a process of its own; return its exit code (minus the signal it died of)."""

    def work():
        try:
            job()
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(3)
        os._exit(0)

    child = fork.Process(target=work)
    child.start()
    child.join(120)
    assert child.exitcode is not None
    return child.exitcode


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


class DiesAt:
    """A refiner that is killed when it is called for that time, and counts its calls in a file."""

    def __init__(self, root, call=None):
        self.path, self.call = root / "calls", call

    def __call__(self, image, masks):
        calls = len(self.path.read_text()) if self.path.exists() else 0
        if calls == self.call:
            die()
        with open(self.path, "a") as file:
            file.write(".")
        return tiny_results.refine(image, masks)


@pytest.mark.parametrize("call", [0, 1, 3])
def test_a_kill_costs_the_image_in_hand(root, call):
    expected = unbroken(root)
    assert in_child(lambda: run(root, refine=DiesAt(root, call))) == -signal.SIGKILL
    assert leftovers(root) == ["out.json.partial"] and not (root / "out.json").exists()
    refine = DiesAt(root)
    report = run(root, refine=refine, resume=True)
    assert report.resumed == call
    # Each image once, in both runs together.
    assert len(refine.path.read_text()) == sum(count > 0 for count in COUNTS)
    assert (root / "out.json").read_bytes() == expected and not leftovers(root)


def test_a_kill_at_any_other_point(root, monkeypatch):
    """Before the first image, within a line of the journal, while the output is made and moved."""
    expected = unbroken(root)
    add = JournalWriter.add

    def torn(self, entry):
        if self._file.tell() == 0:
            return add(self, entry)
        self._file.write(json.dumps(entry).encode()[:-5])
        self._file.flush()
        die()

    def half(self, path, refined):
        path.write_text("[")
        die()

    points = [
        (refine_results, "_Ahead", die),
        (JournalWriter, "add", torn),
        (CocoResults, "write", half),
        (RefineJournal, "publish", die),
        (RefineJournal, "_clear", die),
    ]
    for owner, name, function in points:
        (root / "out.json").unlink(missing_ok=True)
        if name == "_clear":
            # It is called at the start too.
            original = RefineJournal._clear

            def function(self, original=original):
                return die() if self.out.exists() else original(self)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, function)
            assert in_child(lambda: run(root)) == -signal.SIGKILL, name
        assert leftovers(root), name
        run(root, resume=True)
        assert (root / "out.json").read_bytes() == expected, name
        assert not leftovers(root), name


def test_a_torn_line_does_not_spoil_the_next_one(root):
    expected = unbroken(root)
    in_child(lambda: run(root, refine=DiesAt(root, 3)))
    journal = root / "out.json.partial" / "rank0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3
    journal.write_bytes(lines[0] + lines[1] + lines[2][:-7])
    # A run that is killed in turn leaves nothing that the third cannot read.
    (root / "calls").unlink()
    in_child(lambda: run(root, refine=DiesAt(root, 1), resume=True))
    assert [json.loads(line)["index"] for line in journal.read_bytes().splitlines()] == [0, 1, 3]
    report = run(root, resume=True)
    assert report.resumed == 3 and (root / "out.json").read_bytes() == expected


def test_a_damaged_line_is_done_again(root):
    expected = unbroken(root)
    in_child(lambda: run(root, refine=DiesAt(root, 3)))
    journal = root / "out.json.partial" / "rank0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\0" * 20 + b"\n" + lines[2])
    assert run(root, resume=True).resumed == 2
    assert (root / "out.json").read_bytes() == expected


def test_an_unfinished_run_is_not_lost_by_accident(root):
    in_child(lambda: run(root, refine=DiesAt(root, 2)))
    with pytest.raises(UserError, match=r"out\.json: an unfinished run .*--resume.*--overwrite"):
        run(root)
    report = run(root, overwrite=True)
    assert report.resumed == 0 and not leftovers(root)
    with pytest.raises(UserError, match=r"out\.json: is there already.*--overwrite"):
        run(root)
    assert not leftovers(root)


def test_an_output_is_replaced_on_request_alone(root):
    expected = unbroken(root)
    (root / "out.json").write_text("old")
    report = run(root, resume=True)
    assert report.nothing_to_do and (root / "out.json").read_text() == "old"
    # Until the new one is there, the old one stays.
    assert in_child(lambda: run(root, refine=DiesAt(root, 2), overwrite=True)) < 0
    assert (root / "out.json").read_text() == "old"
    run(root, resume=True)
    assert (root / "out.json").read_bytes() == expected
    with pytest.raises(ValueError, match="exclude each other"):
        run(root, resume=True, overwrite=True)


def test_a_folder_is_replaced_on_request_alone(tmp_path, monkeypatch):
    masks = tiny_results.write_cityscapes(tmp_path)
    source = CityscapesResults(tmp_path / "coarse", tmp_path / "images")
    (tmp_path / "out").mkdir()
    run(tmp_path, "out", source=source)  # into an empty folder
    (tmp_path / "out" / "old").write_text("")
    with pytest.raises(UserError, match="out: is there already"):
        run(tmp_path, "out", source=source)
    with monkeypatch.context() as patch:
        # Killed between moving the old folder away and the new one in.
        replace = os.replace
        patch.setattr(os, "replace", lambda a, b: replace(a, b) if Path(b).name != "out" else die())
        assert in_child(lambda: run(tmp_path, "out", source=source, overwrite=True)) < 0
    assert not (tmp_path / "out").exists()
    run(tmp_path, "out", source=source, resume=True)
    assert not (tmp_path / "out" / "old").exists() and not leftovers(tmp_path)
    assert len(CityscapesResults(tmp_path / "out", tmp_path / "images")) == len(masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(settings={"patch_size": 96}), "patch_size was 64, is 96"),
        (dict(settings={}), "patch_size was 64, is null"),
        (dict(score_thr=0.5), "score_thr was null, is 0.5"),
        ("coarse.json", r"other inputs or settings \(results\)"),
        ("ann.json", r"other inputs or settings \(annotations\)"),
    ],
)
def test_a_run_is_not_resumed_with_something_else(root, change, message):
    settings = {"patch_size": 64, "scheme": "dense"}
    in_child(lambda: run(root, refine=DiesAt(root, 2), settings=settings))
    kwargs = dict(settings=settings)
    if isinstance(change, dict):
        kwargs.update(change)
    else:
        path = root / change
        path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match=r"partial: the unfinished run was .*" + message):
        run(root, resume=True, **kwargs)
    assert leftovers(root)


def test_resuming_without_anything_starts(root):
    expected = unbroken(root)
    run(root, resume=True)
    assert (root / "out.json").read_bytes() == expected


def test_foreign_files_beside_the_journal_stay(root):
    (root / "out.json.partial").mkdir()
    (root / "out.json.partial" / "notes.txt").write_text("mine")
    run(root)
    assert os.listdir(root / "out.json.partial") == ["notes.txt"]


def test_outputs_that_cannot_be(root, tmp_path):
    with pytest.raises(UserError, match=r"out\.txt: the name must end in \.json"):
        run(root, "out.txt")
    with pytest.raises(UserError, match=r"would overwrite .*coarse\.json"):
        run(root, "coarse.json", overwrite=True)
    with pytest.raises(UserError, match=r"would overwrite .*ann\.json"):
        run(root, "ann.json", overwrite=True)
    os.symlink(root / "coarse.json", root / "link.json")
    with pytest.raises(UserError, match=r"would overwrite .*coarse\.json"):
        run(root, "link.json", overwrite=True)
    (root / "folder.json").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        run(root, "folder.json")
    assert not leftovers(root)


def test_outputs_that_cannot_be_folders(tmp_path):
    tiny_results.write_cityscapes(tmp_path)
    source = CityscapesResults(tmp_path / "coarse", tmp_path / "images")
    (tmp_path / "file").write_text("")
    for out, message in {
        "out.json": "are a folder",
        "file": "is a file",
        "coarse": "would overwrite",
        "coarse/masks/new": "would overwrite",
        ".": "would overwrite",
    }.items():
        with pytest.raises(UserError, match=message):
            run(tmp_path, out, source=source, overwrite=True)


def be_impatient(monkeypatch):
    hold = RefineJournal.hold
    monkeypatch.setattr(RefineJournal, "hold", lambda self: hold(self, patience=0.3))


def test_one_job_at_a_time(root, monkeypatch):
    blocked = []

    def refine(image, masks):
        if not blocked:
            be_impatient(monkeypatch)
            for kwargs in ({}, {"resume": True}, {"overwrite": True}):
                with pytest.raises(UserError, match=r"another process is writing .*out\.json"):
                    run(root, **kwargs)
            blocked.append(True)
        return tiny_results.refine(image, masks)

    expected = unbroken(root)
    run(root, refine=refine)
    assert blocked and (root / "out.json").read_bytes() == expected


def test_a_process_left_behind_is_waited_for(root, monkeypatch):
    in_child(lambda: run(root, refine=DiesAt(root, 2)))
    orphan = JournalWriter(root / "out.json.partial" / "rank1.jsonl")
    be_impatient(monkeypatch)
    with pytest.raises(UserError, match=r"rank1\.jsonl: another process is writing"):
        run(root, resume=True)
    with pytest.raises(UserError, match=r"rank1\.jsonl: another process is writing to it"):
        JournalWriter(root / "out.json.partial" / "rank1.jsonl")
    orphan.close()
    run(root, resume=True)
    assert not leftovers(root)


def spoil(root, how):
    path = root / "images" / "003.png"
    if how == "missing":
        path.unlink()
    elif how == "unreadable":
        path.write_bytes(b"no picture")
    elif how == "size":
        cv2.imwrite(str(path), np.zeros((9, 12, 3), np.uint8))


BAD_IMAGES = {
    "missing": r"image 103: image file .*003\.png does not exist",
    "unreadable": r"image 103: image file .*003\.png cannot be read as a picture",
    "size": r"image 103: image file .*003\.png is \[9, 12\] .* but its record says \[48, 40\]",
}


@pytest.mark.parametrize("how", BAD_IMAGES)
def test_a_bad_image_is_named_or_skipped(root, how):
    expected = json.loads(unbroken(root))
    coarse = json.loads((root / "coarse.json").read_text())
    source = coco(root)
    good = (root / "images" / "003.png").read_bytes()
    spoil(root, how)
    with pytest.raises(UserError, match=BAD_IMAGES[how]):
        run(root, source=source)
    report = run(root, source=coco(root, check_files=False), skip_bad=True, resume=True)
    assert len(report.skipped) == 1
    with pytest.raises(AssertionError, match=BAD_IMAGES[how]):
        raise AssertionError(report.skipped[0])
    records = json.loads((root / "out.json").read_text())
    for record, old, new in zip(records, coarse, expected, strict=True):
        assert record == (old if record["image_id"] == 103 else new)
    # Mended before the run is resumed, the image is refined after all.
    (root / "images" / "003.png").write_bytes(good)
    in_child(lambda: skip_and_die(root, how))
    (root / "images" / "003.png").write_bytes(good)
    report = run(root, "again.json", resume=True)
    assert report.skipped == [] and report.resumed == 4
    assert json.loads((root / "again.json").read_text()) == expected


def skip_and_die(root, how):
    spoil(root, how)
    RefineJournal.publish = die
    run(root, "again.json", source=coco(root, check_files=False), skip_bad=True)


def test_an_unreadable_coarse_mask_is_skipped_as_it_is(tmp_path):
    tiny_results.write_cityscapes(tmp_path)
    source = CityscapesResults(tmp_path / "coarse", tmp_path / "images")
    name = "masks/ulm_000003_000019_leftImg8bit_1.png"
    (tmp_path / "coarse" / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match="leftImg8bit_1.png: cannot be read as a mask"):
        run(tmp_path, "out", source=source)
    report = run(tmp_path, "out", source=source, skip_bad=True, resume=True)
    assert len(report.skipped) == 1 and (tmp_path / "out" / name).read_bytes() == b"no picture"


def test_images_are_turned_as_their_exif_says(tmp_path):
    masks = tiny_results.make_images(tmp_path, [(30, 20)], [1], names=["000.jpg"])
    tiny_results.write_coco(tmp_path, masks)
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (30, 20), "red").save(tmp_path / "images" / "000.jpg", exif=exif)
    shapes = []
    run(tmp_path, refine=lambda image, masks: (shapes.append(image.shape), masks)[1])
    assert shapes == [(30, 20, 3)]


@pytest.mark.parametrize(
    "wrong", [lambda masks: masks[:1], lambda masks: masks.astype(np.uint8), lambda masks: None]
)
def test_a_refiner_that_returns_something_else(root, wrong):
    with pytest.raises(ValueError, match="refine returned"):
        run(root, refine=lambda image, masks: wrong(masks))


def test_progress_and_patches(root):
    class Refiner:
        num_patches = 0

        def refine(self, image, masks):
            self.num_patches = 10 * len(masks)
            return tiny_results.refine(image, masks)

    stream = io.StringIO()
    report = run(root, refine=Refiner().refine, progress=ProgressLine(stream, interval=0))
    assert report.patches == 10 * sum(COUNTS)
    assert "  1/5 images, " in stream.getvalue() and " patches/s, " in stream.getvalue()
    assert "  5/5 images" in stream.getvalue() and "0:00 left" in stream.getvalue()


def test_memory_does_not_follow_the_number_of_images(tmp_path):
    size, number = (300, 400), 40
    masks = tiny_results.make_images(tmp_path, [size] * number, [3] * number)
    tiny_results.write_coco(tmp_path, masks)
    one_image = 2 * masks[0].nbytes  # and its picture of three channels
    del masks
    source = coco(tmp_path)
    tracemalloc.start()
    run(tmp_path, source=source, refine=lambda image, masks: masks[:, ::-1].copy())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The one in hand, two that wait, one that is being decoded, and the refined masks.
    assert peak < 5 * one_image


def test_masks_are_let_go_before_the_next_ones(root):
    last = []

    def refine(image, masks):
        assert all(array() is None for array in last)
        last[:] = weakref.ref(image), weakref.ref(masks)
        return masks.copy()

    run(root, refine=refine)
    assert last


@pytest.mark.parametrize(("limit", "most"), [(1 << 30, 3), (1, 2)])
def test_images_ahead_are_bounded(monkeypatch, limit, most):
    """Beside the one in hand two wait, and only one where it is large."""
    monkeypatch.setattr(refine_results, "_AHEAD_BYTES", limit)
    started, finished, counts = [], [], []

    def load(index):
        started.append(index)
        return refine_results._Loaded(index, image=np.zeros(8, np.uint8))

    with refine_results._Ahead(load, range(9)) as ahead:
        for loaded in ahead:
            deadline = time.monotonic() + 5
            while len(started) < min(9, len(finished) + most) and time.monotonic() < deadline:
                time.sleep(0.001)
            time.sleep(0.01)
            counts.append(len(started) - len(finished))
            finished.append(loaded.index)
    assert finished == list(range(9))
    assert max(counts) == counts[0] == most
    assert ahead._thread not in threading.enumerate()


def test_errors_of_the_refiner_end_the_thread(root):
    before = threading.active_count()

    def refine(image, masks):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        run(root, refine=refine)
    assert threading.active_count() == before
    assert leftovers(root)


# Several processes.


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def together(number, job, timeout=60):
    """Run ``job(rank)`` in so many processes of one gloo group; return their exit codes."""
    port = free_port()

    def work(rank):
        try:
            torch.set_num_threads(1)
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            dist.init_process_group("gloo", rank=rank, world_size=number)
            job(rank)
            code = 0
        except UserError as error:
            print(f"rank {rank}: {error}", flush=True)
            code = 2
        except BaseException as error:
            print(repr(error), flush=True)
            code = 3
        os._exit(code)

    children = [fork.Process(target=work, args=(rank,)) for rank in range(number)]
    for child in children:
        child.start()
    try:
        for child in children:
            child.join(timeout)
        return [child.exitcode for child in children]
    finally:
        for child in children:
            child.kill()
            child.join()


def calls_of(root, rank):
    return DiesAt(root / f"rank{rank}")


@pytest.mark.parametrize("number", [2, 3])
def test_several_processes_write_what_one_does(root, number):
    expected = unbroken(root)
    for rank in range(number):
        (root / f"rank{rank}").mkdir()

    def job(rank):
        report = run(root, refine=calls_of(root, rank))
        assert (report is None) == (rank > 0)
        # For all of them the output is there.
        assert (root / "out.json").read_bytes() == expected

    assert together(number, job) == [0] * number
    calls = [len((root / f"rank{rank}" / "calls").read_text()) for rank in range(number)]
    assert sum(calls) == 5 and max(calls) - min(calls) <= 1
    assert not leftovers(root)


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1), (3, 2)])
def test_another_number_of_processes_resumes(root, first, then):
    expected = unbroken(root)

    def die_late(rank):
        folder = root / f"rank{rank}"
        folder.mkdir()
        run(root, refine=DiesAt(folder, 1))

    # Each process does one image and dies with the second, or waits for those that died.
    codes = together(first, die_late)
    assert set(codes) <= {-signal.SIGKILL, 2} and -signal.SIGKILL in codes
    done = len(RefineJournal(root / "out.json").read()[0])
    assert done == first
    counter = root / "resumed"
    counter.mkdir()
    if then == 1:
        report = run(root, refine=DiesAt(counter), resume=True)
        assert report.resumed == done
        assert len((counter / "calls").read_text()) == 5 - done
    else:
        assert together(then, lambda rank: run(root, resume=True)) == [0] * then
    assert (root / "out.json").read_bytes() == expected and not leftovers(root)


@pytest.mark.parametrize("rank_that_dies", [0, 1])
def test_a_process_that_dies_does_not_leave_the_others_waiting(root, rank_that_dies, capfd):
    def job(rank):
        run(root, refine=die if rank == rank_that_dies else tiny_results.refine)

    codes = together(2, job)
    assert codes[rank_that_dies] == -signal.SIGKILL and codes[1 - rank_that_dies] == 2
    said = capfd.readouterr().out
    assert "another process of this job has ended early" in said and "--resume" in said
    run(root, resume=True)
    assert not leftovers(root)


def test_processes_end_with_what_started_them(root):
    """A launcher that is killed cannot end its processes."""
    expected = unbroken(root)

    def launch():
        launcher = os.getpid()

        def refine(image, masks):
            waiting = root / f"waiting{os.getpid()}"
            if waiting.exists():
                deadline = time.monotonic() + 20
                while os.getppid() == launcher and time.monotonic() < deadline:
                    if len(list(root.glob("waiting*"))) == 2 and dist.get_rank() == 0:
                        os.kill(launcher, signal.SIGKILL)
                    time.sleep(0.01)
            waiting.touch()
            return tiny_results.refine(image, masks)

        together(2, lambda rank: run(root, refine=refine))

    assert in_child(launch) == -signal.SIGKILL
    # It waits for them. Each had finished its second image, and one had a third.
    report = run(root, resume=True)
    assert report.resumed == 4 and (root / "out.json").read_bytes() == expected


def test_all_processes_are_told_what_the_first_one_finds(root, capfd):
    (root / "out.json").write_text("old")
    assert together(2, lambda rank: run(root)) == [2, 2]
    said = capfd.readouterr().out
    assert said.count("is there already") == 2
    assert not leftovers(root)


def test_a_wrong_number_of_processes(root):
    with pytest.raises(ValueError, match="rank 0 of 2 processes, but torch.distributed has 1"):
        run(root, world_size=2)


def test_the_journal_is_plain_text(root):
    in_child(lambda: run(root, refine=DiesAt(root, 1)))
    (line,) = (root / "out.json.partial" / "rank0.jsonl").read_text().splitlines()
    entry = json.loads(line)
    assert entry["index"] == 0 and entry["image"] == 100
    source = coco(root)
    assert set(entry["records"]) <= set(source[0].records) and entry["records"]
    assert len(entry["counts"]) == len(entry["records"])
    settings = json.loads((root / "out.json.partial" / "settings.json").read_text())
    assert settings["version"] == refine_journal._VERSION and len(settings["inputs"]) == 2


def test_reports_can_be_kept(root):
    assert pickle.loads(pickle.dumps(run(root))).images == len(SIZES)
