"""Finding and loading the compiled library, and what happens where it does not fit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

import mmplus_ops
from mmplus_ops import _library


@pytest.fixture(autouse=True)
def fresh_load():
    """Forget what other tests loaded, before and after."""
    _library.load_library.cache_clear()
    yield
    _library.load_library.cache_clear()


def library_file(folder, torch_version, name="_C.abi3.so"):
    path = folder / name
    path.write_bytes(b"\x7fELF junk mmplus-built-for-torch=" + torch_version.encode() + b"; junk")
    return path


@pytest.mark.parametrize("value", ["0", "false", "OFF", " no "])
def test_switched_off_at_run_time(monkeypatch, value):
    monkeypatch.setenv("MMPLUS_WITH_OPS", value)
    monkeypatch.setattr(_library, "load_library", lambda: pytest.fail("must not be loaded"))
    assert mmplus_ops.has_compiled_ops() is False
    info = mmplus_ops.ops_info()
    assert info["compiled"] is False
    assert "MMPLUS_WITH_OPS=0" in info["reason"]


def test_info_agrees_with_has_compiled_ops(monkeypatch):
    monkeypatch.delenv("MMPLUS_WITH_OPS", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled, info = mmplus_ops.has_compiled_ops(), mmplus_ops.ops_info()
    assert info["compiled"] is compiled
    assert info["torch"] == torch.__version__
    assert (info["reason"] is None) is compiled


def test_info_of_a_compiled_library(monkeypatch):
    monkeypatch.delenv("MMPLUS_WITH_OPS", raising=False)
    if _library.find_library(_library._HOME) is None:
        pytest.skip("mmplus is installed without compiled ops")
    info = mmplus_ops.ops_info()
    assert info["compiled"] is True, info["reason"]
    assert info["built_for_torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert info["compiler"]
    assert int(info["cxx_standard"]) >= 201703
    assert info["parallel_backend"] in ("OpenMP", "native")
    if info["cuda"]:
        assert torch.version.cuda is not None


@pytest.mark.skipif(not mmplus_ops.has_compiled_ops(), reason="about the compiled library")
def test_the_library_brings_every_operator(monkeypatch):
    assert not _library.LACKING
    assert mmplus_ops.has_compiled_ops("pair_areas")
    # One that was built before there was this operator.
    monkeypatch.setattr(_library, "LACKING", {"pair_areas"})
    assert mmplus_ops.has_compiled_ops() and not mmplus_ops.has_compiled_ops("pair_areas")


def test_absent_library_warns_once(tmp_path, monkeypatch):
    monkeypatch.delenv("MMPLUS_WITH_OPS", raising=False)
    monkeypatch.setattr(_library, "_HOME", tmp_path)
    with pytest.warns(RuntimeWarning, match="no compiled library is installed"):
        assert mmplus_ops.has_compiled_ops() is False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert mmplus_ops.has_compiled_ops() is False
        assert mmplus_ops.ops_info()["library"] is None


def test_library_of_another_torch_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.delenv("MMPLUS_WITH_OPS", raising=False)
    monkeypatch.setattr(_library, "_HOME", tmp_path)
    monkeypatch.setattr(torch.ops, "load_library", lambda path: pytest.fail("must not be loaded"))
    library_file(tmp_path, "1.13.1+cu117")
    with pytest.warns(RuntimeWarning, match=r"was built for torch 1\.13\.1\+cu117, this is"):
        assert mmplus_ops.has_compiled_ops() is False
    assert "1.13.1" in mmplus_ops.ops_info()["reason"]


def test_patch_release_and_local_part_of_torch_may_differ(tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    major_minor = ".".join(torch.__version__.split(".")[:2])
    path = library_file(tmp_path, f"{major_minor}.99+cu999")
    assert _library.try_load(path) == (path, None)
    assert loaded == [str(path)]


def test_damaged_library(tmp_path):
    path = library_file(tmp_path, torch.__version__)
    result = _library.try_load(path)
    assert result.path == path
    assert "cannot be loaded" in result.error
    path.write_bytes(b"")
    assert "damaged" in _library.try_load(path).error


def test_newest_library_is_taken(tmp_path):
    old = library_file(tmp_path, "1.0", "_C.cpython-310-x86_64-linux-gnu.so")
    new = library_file(tmp_path, "2.0", "_C.abi3.so")
    (tmp_path / "_C.txt").write_text("no library")
    os.utime(old, (1, 1))
    assert _library.find_library(tmp_path) == new
    assert _library.find_library(tmp_path / "absent") is None


def test_only_use_warns_and_only_once(tmp_path):
    package = shutil.copytree(
        _library._HOME, tmp_path / "mmplus_ops", ignore=shutil.ignore_patterns("_C*", "__pycache__")
    )
    script = (
        "import warnings; warnings.simplefilter('error', RuntimeWarning)\n"
        "import mmplus_ops, torch\n"
        f"assert mmplus_ops.__file__.startswith({str(package)!r})\n"
        "masks = torch.ones(1, 2, 3, dtype=torch.bool)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n"
        "        assert int(mmplus_ops.mask_intersections(masks)) == 6\n"
        "[warning] = [w for w in caught if 'mmplus_ops uses its plain' in str(w.message)]\n"
        "assert 'no compiled library is installed' in str(warning.message)\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "MMPLUS_WITH_OPS"}
    environment["PYTHONPATH"] = str(tmp_path)
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)
