"""The file of patches: what goes in comes out, and no unfinished or foreign file passes for one."""

import json
import multiprocessing
import os
import pickle
import shutil
import sqlite3
import threading
from concurrent.futures import ProcessPoolExecutor
from operator import itemgetter

import cv2
import numpy as np
import pytest

from mmseg_plus.bpr.patch_store import CODECS, PatchStore, PatchStoreWriter, encode_patch
from mmseg_plus.common.errors import UserError

META = dict(patch_size=16, scheme="dense", sources=["a.json"], iou_thr=0.25)


def patch(seed, shape=(16, 16)):
    rng = np.random.default_rng(seed)
    return dict(
        image=rng.integers(0, 256, (*shape, 3), np.uint8),
        coarse=rng.random(shape) < 0.5,
        target=(rng.random(shape) < 0.5).astype(np.uint8),
        instance=seed,
        label=seed % 7,
        box=(seed, 1, seed + shape[1], 1 + shape[0]),
    )


def images(*counts):
    """Image id and its patches, with as many patches as asked for."""
    numbers = iter(range(10_000))
    return [
        (f"image {i}" if i % 2 else i, [patch(next(numbers)) for _ in range(count)])
        for i, count in enumerate(counts)
    ]


def write(path, content, meta=META, resume=False, finish=True):
    with PatchStoreWriter(path, meta, resume) as writer:
        for image_id, patches in content:
            writer.add_image(image_id, [encode_patch(**p) for p in patches], dict(n=len(patches)))
        if finish:
            writer.finish()
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out #1?%20" / "train.sqlite"


@pytest.fixture
def built(path):
    return write(path, images(2, 0, 3, 1))


def check(store, content):
    expected = [(image_id, p) for image_id, patches in content for p in patches]
    assert len(store) == len(expected)
    for index, (image_id, p) in enumerate(expected):
        found = store[index]
        np.testing.assert_array_equal(found.pop("image"), p["image"])
        for key in ("coarse", "target"):
            mask = found.pop(key)
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, p[key])
        rest = {key: p[key] for key in ("instance", "label", "box")}
        assert found == dict(rest, image_id=image_id)


def message(call, *arguments, **settings):
    with pytest.raises(UserError) as error:
        call(*arguments, **settings)
    return str(error.value)


def test_what_goes_in_comes_out(built):
    store = PatchStore(built)
    check(store, images(2, 0, 3, 1))
    assert store.meta == META
    assert store[-1]["instance"] == 5
    assert store[np.int64(4)]["instance"] == 4
    for index in (6, -7):
        with pytest.raises(IndexError):
            store[index]


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("shape", [(16, 16), (1, 1), (5, 13), (74, 74), (200, 3)])
def test_no_pixel_changes(path, shape, codec):
    p = patch(3, shape)
    smooth = cv2.GaussianBlur(p["image"], (0, 0), 2)
    with PatchStoreWriter(path, META) as writer:
        encoded = [encode_patch(**dict(p, image=i), codec=codec) for i in (p["image"], smooth)]
        writer.add_image(1, encoded)
        writer.finish()
    store = PatchStore(path)
    np.testing.assert_array_equal(store[0]["image"], p["image"])
    np.testing.assert_array_equal(store[1]["image"], smooth)
    np.testing.assert_array_equal(store[1]["coarse"], p["coarse"])


def test_parts_of_larger_arrays_are_patches():
    p = patch(0, (40, 40))
    window = (slice(3, 19), slice(7, 23))
    views = dict(p, **{key: p[key][window] for key in ("image", "coarse", "target")})
    copies = {
        key: np.array(value) if hasattr(value, "shape") else value for key, value in p.items()
    }
    copies.update({key: np.array(views[key]) for key in ("image", "coarse", "target")})
    assert encode_patch(**views) == encode_patch(**copies)


def test_wrong_patches():
    good = patch(0)
    with pytest.raises(ValueError, match="codec must be one of webp, png, got 'jpg'"):
        encode_patch(**good, codec="jpg")
    for key, value in (
        ("coarse", good["coarse"][:5]),
        ("target", good["target"][:, :5]),
        ("image", good["image"][..., 0]),
    ):
        with pytest.raises(ValueError, match="a patch must be"):
            encode_patch(**dict(good, **{key: value}))
    with pytest.raises(ValueError, match="a patch must be"):
        encode_patch(**patch(0, (0, 5)))


def test_a_store_without_patches(path):
    assert len(PatchStore(write(path, images(0, 0)))) == 0
    assert len(PatchStore(write(path.with_name("none"), []))) == 0
    with pytest.raises(IndexError):
        PatchStore(path)[0]


def test_gaps_between_ids(built):
    """Somebody took an image out: the patches of the others keep an order without gaps."""
    with sqlite3.connect(built) as database:
        database.execute("DELETE FROM patches WHERE image = 1")
        database.execute("DELETE FROM images WHERE id = 1")
        database.execute("UPDATE patches SET id = id + 1000 WHERE image = 4")
        database.execute("UPDATE images SET first_patch = first_patch + 1000 WHERE id = 4")
    database.close()
    store = PatchStore(built)
    assert [store[i]["instance"] for i in range(len(store))] == [2, 3, 4, 5]


def test_an_image_is_added_once(path):
    with PatchStoreWriter(path, META) as writer:
        writer.add_image(1, [])
        writer.add_image("1", [])
        with pytest.raises(ValueError, match="image 1 is in the store already"):
            writer.add_image(1, [])
        assert writer.done == {1: {}, "1": {}}


def test_an_image_is_added_whole_or_not_at_all(path):
    with PatchStoreWriter(path, META) as writer:
        good = encode_patch(**patch(0))
        with pytest.raises(sqlite3.Error):
            writer.add_image(1, [good, good._replace(target=None)])
        assert not writer.done
        writer.add_image(1, [good])
        writer.finish()
    assert len(PatchStore(path)) == 1


def test_going_on(path):
    content = images(2, 0, 3, 1)
    write(path, content[:2], finish=False)
    assert not path.exists()
    with PatchStoreWriter(path, META, resume=True) as writer:
        assert writer.done == {0: dict(n=2), "image 1": dict(n=0)} and not writer.finished
    write(path, content[2:], resume=True)
    check(PatchStore(path), content)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    with PatchStoreWriter(path, META, resume=True) as writer:
        assert writer.finished and len(writer.done) == 4
        assert writer.finish() == path
        with pytest.raises(ValueError, match="already"):
            writer.add_image(9, [])
    check(PatchStore(path), content)


def test_resume_with_nothing_there_starts(path):
    check(PatchStore(write(path, images(1), resume=True)), images(1))


@pytest.mark.parametrize("finish", [True, False])
def test_nothing_is_overwritten_or_mixed(path, finish):
    write(path, images(1), finish=finish)
    there = path if finish else path.with_name("train.sqlite.part")
    text = message(PatchStoreWriter, path, META)
    assert text.startswith(f"{there}: ") and "--resume" in text
    other = dict(META, iou_thr=0.55, padding=5)
    text = message(PatchStoreWriter, path, other, resume=True)
    assert text.startswith(f"{there}: built from something else ")
    assert "iou_thr 0.25 there, 0.55 now; padding None there, 5 now" in text
    # Still as it was.
    with PatchStoreWriter(path, META, resume=True) as writer:
        assert writer.done == {0: dict(n=1)}


def test_one_writer_at_a_time(path):
    with PatchStoreWriter(path, META):
        text = message(PatchStoreWriter, path, META, resume=True)
        assert "another process is writing it" in text and str(path) in text
    PatchStoreWriter(path, META, resume=True).close()


def _add_until_killed(path, pipe):
    black = np.zeros((16, 16), np.uint8)
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    writer = PatchStoreWriter(path, {}, resume=True)
    while True:
        pipe.send(len(writer.done))
        patch = encode_patch(picture, black, black, 0, 1, (0, 0, 16, 16))
        writer.add_image(len(writer.done), [patch] * 3)


def test_a_kill_leaves_whole_images(path):
    context = multiprocessing.get_context("fork")
    said = 0
    for number in range(6):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_add_until_killed, args=(path, theirs))
        process.start()
        assert ours.recv() >= said, "an image that was told of is gone"
        for _ in range(7 + number):
            said = ours.recv()
        process.kill()
        process.join()
        assert "not finished" in message(PatchStore, path)
    with PatchStoreWriter(path, {}, resume=True) as writer:
        assert list(writer.done) == list(range(len(writer.done)))
        assert said <= len(writer.done)
        writer.finish()
    store = PatchStore(path)
    assert len(store) == 3 * len(writer.done)
    assert [store[i]["image_id"] for i in range(len(store))] == [i // 3 for i in range(len(store))]


def test_a_kill_between_the_end_and_the_move(path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("mmseg_plus.bpr.patch_store.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write(path, images(2))
    part = path.with_name("train.sqlite.part")
    # A process of its own holds no lock any more.
    assert part.exists() and not path.exists()
    with PatchStoreWriter(path, META, resume=True) as writer:
        assert writer.done == {0: dict(n=2)}
        writer.finish()
    check(PatchStore(path), images(2))


def test_a_full_disk(path):
    with PatchStoreWriter(path, META) as writer:
        pages = writer._database.execute("PRAGMA page_count").fetchone()[0]
        writer._database.execute(f"PRAGMA max_page_count = {pages}")
        many = [encode_patch(**patch(i, (64, 64))) for i in range(20)]
        text = message(writer.add_image, 1, many)
        assert "disk is full" in text and "--resume" in text and text.startswith(str(writer.part))
        writer._database.execute("PRAGMA max_page_count = 1000000")
        writer.add_image(1, many)
        writer.finish()
    assert len(PatchStore(path)) == 20


def test_a_store_that_cannot_be_begun(path, monkeypatch):
    # As on a full disk.
    monkeypatch.setattr("mmseg_plus.bpr.patch_store._SCHEMA", "CREATE TABLE x;")
    text = message(PatchStoreWriter, path, META)
    assert text.startswith(f"{path}.part: cannot be written (") and "--resume" in text
    monkeypatch.undo()
    PatchStoreWriter(path, META, resume=True).close()


def test_files_that_are_no_store(path, built):
    folder = path.parent
    assert "there is no such file; tools/bpr_patches.py builds" in message(
        PatchStore, folder / "none"
    )
    write(folder / "half.sqlite", images(1), finish=False)
    assert message(PatchStore, folder / "half.sqlite").startswith(f"{folder}/half.sqlite: not fini")
    text = message(PatchStore, folder / "half.sqlite.part")
    assert "no" in text and "half.sqlite.part" in text
    for name, content in (("empty", b""), ("text", b"{}" * 500), ("short", b"SQLite format 3\0")):
        (folder / name).write_bytes(content)
        assert message(PatchStore, folder / name).startswith(f"{folder}/{name}: no patch store")
    with sqlite3.connect(folder / "foreign") as database:
        database.execute("CREATE TABLE meta (key, value)")
    database.close()
    assert "no patch store" in message(PatchStore, folder / "foreign")
    shutil.copy(folder / "foreign", folder / "b.sqlite.part")
    assert "b.sqlite.part: no patch store" in message(
        PatchStoreWriter, folder / "b.sqlite", META, resume=True
    )
    (folder / "c.sqlite.part").write_bytes(b"{}" * 500)
    assert "c.sqlite.part: damaged" in message(
        PatchStoreWriter, folder / "c.sqlite", META, resume=True
    )
    (folder / "d.sqlite.part").mkdir()
    assert "d.sqlite.part: cannot be written (unable to open" in message(
        PatchStoreWriter, folder / "d.sqlite", META, resume=True
    )
    (folder / "file").touch()
    assert "no folder can be made" in message(PatchStoreWriter, folder / "file" / "x" / "y", META)


def test_a_store_of_a_later_version(built):
    with sqlite3.connect(built) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    assert "a patch store of version 2, this release reads 1" in message(PatchStore, built)


def test_a_store_that_says_it_is_not_finished(built):
    with sqlite3.connect(built) as database:
        database.execute("UPDATE meta SET value = 'false' WHERE key = 'finished'")
    database.close()
    assert "not finished; go on building it with --resume" in message(PatchStore, built)


def test_damaged_stores(built):
    content = built.read_bytes()
    built.write_bytes(content[:-100])
    text = message(PatchStore, built)
    assert text.startswith(f"{built}: damaged") and "remove it and rebuild" in text
    built.write_bytes(content[:65536] + bytes(len(content) - 65536))
    assert "damaged" in message(PatchStore, built)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("picture = x'00'", "cannot be decoded"),
        ("coarse = x'00'", "incorrect header check|decompress"),
        ("target = (SELECT coarse FROM patches WHERE id = 4)", "a mask of another size"),
        ("id = 77", "it is missing"),
    ],
)
def test_a_damaged_patch(path, change, reason):
    large = [patch(4, (30, 30))]
    write(path, [*images(3), ("large", large)])
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE patches SET {change} WHERE id = 2")
    database.close()
    store = PatchStore(path)
    assert store[0]["instance"] == 0
    with pytest.raises(UserError, match=rf"train\.sqlite: patch 1: damaged \(.*({reason})"):
        store[1]


def test_many_processes_read_one_store(built):
    store = PatchStore(built)
    assert store[0]["instance"] == 0
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(2, context) as pool:
        for found in pool.map(itemgetter(*range(6)), [store] * 3, timeout=120):
            assert [p["instance"] for p in found] == list(range(6))
    assert store[5]["instance"] == 5


def test_threads_and_pickles_open_the_file_themselves(built):
    store = PatchStore(built)
    found = []
    thread = threading.Thread(target=lambda: found.append(store[3]["instance"]))
    thread.start()
    thread.join()
    assert found == [3] and len(store._connections) == 2
    content = pickle.dumps(store)
    assert len(content) < 3000
    assert pickle.loads(content)[3]["instance"] == 3
    store.close()
    assert store[3]["instance"] == 3


def test_a_connection_is_not_shared_across_a_fork(built):
    store = PatchStore(built)
    own = id(store._database())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, b"shared" if id(store._database()) == own else b"its own")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"its own"


def test_readers_ask_for_no_lock(built):
    with sqlite3.connect(built, isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        assert len(PatchStore(built)) == 6
        database.execute("ROLLBACK")
    database.close()


def test_reading_does_not_look_at_other_patches(built):
    """By the key, not by counting: SQLite's own account of how it gets there."""
    store = PatchStore(built)
    seen = []
    store._database().set_trace_callback(seen.append)
    store[4]
    assert len(seen) == 1
    plan = store._database().execute(f"EXPLAIN QUERY PLAN {seen[0]}").fetchall()
    assert plan and all("INTEGER PRIMARY KEY (rowid=?)" in row[-1] for row in plan)


def test_any_sqlite_tool_can_look_inside(built):
    with sqlite3.connect(built) as database:
        rows = database.execute("SELECT image_id, patches FROM images").fetchall()
        assert rows == [("0", 2), ('"image 1"', 0), ("2", 3), ('"image 3"', 1)]
        assert json.loads(database.execute("SELECT value FROM meta").fetchone()[0]) == META
        assert database.execute("PRAGMA page_size").fetchone() == (65536,)
        # No journal that a reader would have to find beside the file, or to lock.
        assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
