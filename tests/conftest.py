"""What all tests share: the shared data, the GPU marker, the plain ops."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Processes of pytest-xdist share the cores. Read by torch when it is imported, and by what tests
# start; a test that is about threads sets their number itself.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, share)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is marked ``cuda`` where there is no GPU."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="module", autouse=True)
def no_default_scope_is_left() -> Iterator[None]:
    """Take back the default scope that a file's runners and models set: without one, a part is
    looked up in the registry that builds it, and that must not depend on the files before."""
    yield
    if "mmengine" in sys.modules:
        from mmengine.registry import DefaultScope

        DefaultScope._instance_dict.clear()


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The repository's root."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The real data beside the repository; the test skips on a machine without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs ../shared/data beside the repository")
    return folder


@pytest.fixture
def plain_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use the plain PyTorch versions of all ops, whatever is compiled."""
    monkeypatch.setenv("MMPLUS_WITH_OPS", "0")


@pytest.fixture
def run_tool(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command of ``tools`` in this process, in ``tmp_path``: its exit code, out and err."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> tuple[int, str, str]:
        tool = str(ROOT / "tools" / name)
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(tool, run_name="__main__")
        return ended.value.code, *capsys.readouterr()

    return run
