import json
import multiprocessing
import subprocess
import sys
import threading
import time

import pytest

from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import only_one, write_file, write_json


def test_folders_are_made_and_nothing_else_is_left(tmp_path):
    path = write_json(tmp_path / "a" / "b.json", {"x": [1, 2]}, indent=None)
    assert path.read_bytes() == b'{"x":[1,2]}\n'
    assert json.loads(write_json(path, {"y": 1}).read_text()) == {"y": 1}
    assert [item.name for item in path.parent.iterdir()] == ["b.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_file(tmp_path / "x.bin", b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["x.bin"]


def test_a_folder_is_for_one(tmp_path):
    folder = tmp_path / "new" / "work"
    refused = pytest.raises(UserError, match=r"work: taken, try --root")
    with only_one(folder), refused, only_one(folder, patience=0.3, busy="taken, try --root"):
        pass
    with only_one(folder):
        pass
    assert (folder / ".lock").is_file()


def test_a_child_left_behind_keeps_the_folder(tmp_path):
    with only_one(tmp_path) as lock:
        child = subprocess.Popen(
            [sys.executable, "-c", "import sys; sys.stdin.read()"],
            stdin=subprocess.PIPE,
            pass_fds=(lock,),
        )
    try:
        with pytest.raises(UserError), only_one(tmp_path, patience=0.3):
            pass
        threading.Timer(1, child.stdin.close).start()
        with only_one(tmp_path):  # waits
            assert child.wait(5) == 0
    finally:
        child.kill()
        child.wait()


def work_alone(folder, count):
    """Make and remove one file under the lock, which fails where another process does the same."""
    for _ in range(count):
        with only_one(folder, patience=60, remove=True):
            with open(folder / "mine", "x"):
                time.sleep(0.001)
            (folder / "mine").unlink()


def test_a_lock_that_is_removed_still_admits_one_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr("mmseg_plus.common.files._POLL_SECONDS", 0.0)
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=work_alone, args=(tmp_path, 150)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert not list(tmp_path.iterdir())
