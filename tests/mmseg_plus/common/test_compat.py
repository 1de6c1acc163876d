import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner.checkpoint import _load_checkpoint
from mmengine.utils import digit_version

from mmseg_plus.common import compat

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version("2.6.0"),
    reason="this torch does not restrict unpickling",
)


class Runs:
    """Calls something when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.fixture(autouse=True)
def safe_loading():
    compat.use_safe_checkpoint_loading()


def checkpoint():
    history = HistoryBuffer([1.0, 2.0, 3.0], [1, 1, 2])
    return dict(
        meta=dict(epoch=3, iter=70, seed=5, dataset_meta=dict(classes=("a", "b"))),
        state_dict=dict(weight=torch.arange(4.0)),
        message_hub=dict(log_scalars={"train/loss": history}, resumed_keys={"train/loss": True}),
        numbers=[np.float64(0.1), np.float32(0.5), np.int64(7), np.bool_(True)],
        arrays=[np.arange(3, dtype=kind) for kind in ("uint8", "int32", "int64", "float32")],
    )


def rename_in_pickle(source, target, old, new):
    with zipfile.ZipFile(source) as src, zipfile.ZipFile(target, "w") as dst:
        for item in src.namelist():
            data = src.read(item)
            dst.writestr(item, data.replace(old, new) if item.endswith("data.pkl") else data)


def assert_loaded(loaded):
    expected = checkpoint()
    assert loaded["meta"] == expected["meta"]
    assert loaded["numbers"] == expected["numbers"]
    for got, want in zip(loaded["arrays"], expected["arrays"], strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    history = loaded["message_hub"]["log_scalars"]["train/loss"]
    assert history.mean() == pytest.approx(6 / 4)
    assert history.statistics("max") == 3


def test_mmengine_records_load_through_mmengine(tmp_path):
    path = tmp_path / "a.pth"
    torch.save(checkpoint(), path)
    assert_loaded(_load_checkpoint(str(path), map_location="cpu"))


@pytest.mark.parametrize("core", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_records_of_either_numpy_generation_load(tmp_path, core):
    torch.save(checkpoint(), tmp_path / "a.pth")
    current = np.float64(1).__reduce__()[0].__module__.encode()
    rename_in_pickle(tmp_path / "a.pth", tmp_path / "b.pth", current, core)
    assert_loaded(compat.load_from_local(str(tmp_path / "b.pth")))


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = tmp_path / "bad.pth"
    torch.save(dict(state_dict={}, extra=Runs(os.mkdir, str(trace))), path)
    with pytest.raises(pickle.UnpicklingError, match=r"bad\.pth.*TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        _load_checkpoint(str(path), map_location="cpu")
    assert not trace.exists()


@pytest.mark.parametrize("read", [compat.load_from_local, compat.read_checkpoint_records])
def test_restriction_does_not_hang_on_torch_s_default(tmp_path, monkeypatch, read):
    monkeypatch.setattr(torch.serialization, "_default_to_weights_only", lambda _: False)
    trace = tmp_path / "trace"
    path = tmp_path / "bad.pth"
    torch.save(dict(state_dict={}, extra=Runs(os.mkdir, str(trace))), path)
    with pytest.raises(pickle.UnpicklingError, match=r"bad\.pth"):
        read(str(path))
    assert not trace.exists()


@pytest.mark.parametrize("read", [compat.load_from_local, compat.read_checkpoint_records])
def test_a_trusted_file_is_let_through(tmp_path, monkeypatch, read):
    trace = tmp_path / "trace"
    torch.save(dict(meta={}, extra=Runs(os.mkdir, str(trace))), tmp_path / "own.pth")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    read(str(tmp_path / "own.pth"))
    assert trace.is_dir()


@pytest.mark.parametrize("name", ["__init__", "__globals__", "nothing"])
def test_getattr_reaches_nothing_but_statistics(tmp_path, name):
    torch.save(Runs(getattr, HistoryBuffer, name), tmp_path / "bad.pth")
    with pytest.raises(pickle.UnpicklingError, match="getattr"):
        compat.load_from_local(str(tmp_path / "bad.pth"))


def test_damaged_file_is_named(tmp_path):
    path = tmp_path / "half.pth"
    torch.save(checkpoint(), path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(pickle.UnpicklingError, match=r"half\.pth"):
        compat.load_from_local(str(path))
    path.write_bytes(b"")
    with pytest.raises(pickle.UnpicklingError, match=r"half\.pth"):
        compat.read_checkpoint_records(str(path))


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.pth"):
        compat.load_from_local(str(tmp_path / "no.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_records(tmp_path, zipped):
    path = str(tmp_path / "a.pth")
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=zipped)
    assert compat.read_checkpoint_records(path)["iter"] == 70
    torch.save(dict(weight=torch.ones(1)), path, _use_new_zipfile_serialization=zipped)
    assert compat.read_checkpoint_records(path) == {}


def test_stack_is_one_of_two():
    import mmengine

    fork = tuple(int(part) for part in mmengine.__version__.split(".")[:3]) > (0, 10, 9)
    assert compat.stack() == ("onedl" if fork else "openmmlab")
