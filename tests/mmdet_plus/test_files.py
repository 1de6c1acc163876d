import json

import pytest

from mmdet_plus.files import write_file, write_json


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
