"""Wheels and source archives, and mim on an installed wheel, outside the repository."""

from __future__ import annotations

import functools
import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import pytest
import torch

pytest.importorskip("setuptools")

RESOURCES = ("configs", "tools", "model-index.yml", "dataset-index.yml")
KERNELS = ("ops/csrc/cpu", "ops/csrc/cuda")


def repository_files(root: Path) -> list[Path]:
    """Files that git knows or would take, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("needs a git checkout")
    return [Path(name) for name in listed.stdout.split("\0") if name and (root / name).is_file()]


@pytest.fixture(scope="session")
def copy_source(repo_root, tmp_path_factory):
    """Make copies of the repository to build in."""

    def copy() -> Path:
        target = tmp_path_factory.mktemp("source")
        for relative in repository_files(repo_root):
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(repo_root / relative, target / relative)
        return target

    return copy


def build_wheel(source: Path, output: Path, **env: str) -> tuple[subprocess.CompletedProcess, Path]:
    """Run ``pip wheel`` on ``source``; return what it said and the wheel (absent on failure)."""
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(output), str(source)],
        env=building_environment(**env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done, next(output.glob("mmplus-*.whl"), output / "absent.whl")


def building_environment(**env: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("MMPLUS_WITH_OPS", "FORCE_CUDA")}
    return kept | {"PIP_NO_INDEX": "1", "FORCE_CUDA": "0"} | env


@pytest.fixture(scope="session")
def plain_source(copy_source):
    return copy_source()


@pytest.fixture(scope="session")
def plain_wheel(plain_source, tmp_path_factory) -> Path:
    """A wheel without compiled ops, all resources in it."""
    output = tmp_path_factory.mktemp("plain")
    done, wheel = build_wheel(plain_source, output, MMPLUS_WITH_OPS="0")
    assert done.returncode == 0, done.stdout
    assert "MMPLUS_WITH_OPS=0: built without the compiled ops" in done.stdout
    return wheel


@pytest.fixture(scope="session")
def compiled_wheel(copy_source, tmp_path_factory) -> Path:
    """A wheel with the library, of which only the frame is compiled, to be quick."""
    source = copy_source()
    for folder in KERNELS:
        shutil.rmtree(source / folder, ignore_errors=True)
    done, wheel = build_wheel(source, tmp_path_factory.mktemp("compiled"), MMPLUS_WITH_OPS="1")
    assert done.returncode == 0, done.stdout
    return wheel


def names_in(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def read_metadata(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        member = next(n for n in archive.namelist() if n.endswith(f".dist-info/{name}"))
        return archive.read(member).decode()


def test_wheel_holds_packages_and_resources_and_nothing_else(plain_wheel, plain_source, repo_root):
    names = set(names_in(plain_wheel))
    wanted = set()
    for relative in repository_files(repo_root):
        path = relative.as_posix()
        if relative.parts[0] in RESOURCES:
            wanted.add(f"mmdet_plus/.mim/{path}")
        elif relative.parts[0] in ("mmdet_plus", "mmseg_plus") and relative.suffix == ".py":
            wanted.add(path)
        elif path.startswith("ops/mmplus_ops/") and relative.suffix == ".py":
            wanted.add(path.removeprefix("ops/"))
    assert len(wanted) > 20
    extra = {name for name in names - wanted if ".dist-info/" not in name}
    assert wanted - names == set()
    assert extra == set()


def test_wheel_satisfies_both_ways_of_finding_resources(plain_wheel):
    assert read_metadata(plain_wheel, "RECORD").startswith("mmdet_plus/")
    assert read_metadata(plain_wheel, "top_level.txt").split()[0] == "mmdet_plus"
    assert not any(name.endswith("entry_points.txt") for name in names_in(plain_wheel))


def test_wheel_forces_no_openmmlab_distribution(plain_wheel):
    required = [
        line
        for line in read_metadata(plain_wheel, "METADATA").splitlines()
        if line.startswith("Requires-Dist:") and "extra ==" not in line
    ]
    assert any("torch" in line for line in required)
    assert not [line for line in required if "mm" in line.split(":")[1].split(">")[0]]


def test_bare_config_names_are_unique(plain_wheel):
    names = [n for n in names_in(plain_wheel) if n.startswith("mmdet_plus/") and n.endswith(".py")]
    configs = [n for n in names if "/.mim/configs/" in n and "/_base_/" not in n]
    for config in configs:
        name = Path(config).name
        assert name == name.lower()
        assert [n for n in names if Path(n).name == name] == [config]


def test_plain_wheel_is_for_every_machine(plain_wheel):
    assert plain_wheel.name.endswith("-py3-none-any.whl")


def test_building_leaves_the_source_tree_clean(plain_wheel, plain_source, repo_root):
    known = set(repository_files(repo_root))
    now = {p.relative_to(plain_source) for p in plain_source.rglob("*") if p.is_file()}
    assert {path.parts[0] for path in now - known} <= {"build", "mmplus.egg-info"}
    assert not [path for path in now - known if "configs" in path.parts or ".mim" in path.parts]


def test_source_archive_builds_the_same_wheel(plain_wheel, plain_source, tmp_path):
    script = "import sys; from setuptools import build_meta; build_meta.build_sdist(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=plain_source,
        env=building_environment(MMPLUS_WITH_OPS="0"),
        check=True,
        capture_output=True,
    )
    archive = next(tmp_path.glob("mmplus-*.tar.gz"))
    with tarfile.open(archive) as packed:
        packed.extractall(tmp_path, filter="data")
    unpacked = archive.with_name(archive.name.removesuffix(".tar.gz"))
    assert (unpacked / "ops/csrc/library.cpp").is_file()
    assert (unpacked / "requirements/constraints-mmlab.txt").is_file()
    done, wheel = build_wheel(unpacked, tmp_path / "wheel", MMPLUS_WITH_OPS="0")
    assert done.returncode == 0, done.stdout
    assert sorted(names_in(wheel)) == sorted(names_in(plain_wheel))


def test_compiled_wheel_serves_all_pythons_of_its_platform(compiled_wheel):
    assert "-cp310-abi3-" in compiled_wheel.name
    libraries = [n for n in names_in(compiled_wheel) if Path(n).suffix in (".so", ".pyd")]
    assert len(libraries) == 1
    assert libraries[0].startswith("mmplus_ops/_C.")


@pytest.fixture(scope="session")
def broken_source(copy_source):
    source = copy_source()
    for folder in KERNELS:
        shutil.rmtree(source / folder, ignore_errors=True)
    (source / "ops/csrc/library.cpp").write_text("#error no compiler can compile this\n")
    return source


def test_failed_compilation_gives_a_plain_wheel_and_says_so(broken_source, tmp_path):
    done, wheel = build_wheel(broken_source, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "built without the compiled ops" in done.stdout
    assert not any("_C." in name for name in names_in(wheel))
    assert any(name.startswith("mmdet_plus/.mim/configs/") for name in names_in(wheel))


def test_failed_compilation_is_an_error_where_ops_are_demanded(broken_source, tmp_path):
    done, wheel = build_wheel(broken_source, tmp_path, MMPLUS_WITH_OPS="1")
    assert done.returncode != 0
    assert not wheel.exists()


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is a CUDA build")
def test_forced_cuda_without_cuda_torch(plain_source, tmp_path):
    done, _ = build_wheel(plain_source, tmp_path, FORCE_CUDA="1")
    assert done.returncode != 0
    assert "is a build without CUDA" in done.stdout
    assert "Install a CUDA build of torch" in done.stdout


def install(wheel: Path, site: Path) -> Path:
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(wheel)], check=True)
    return site


class Installed:
    """A wheel installed in a folder of its own, before the editable install on Python's path."""

    def __init__(self, site: Path, home: Path) -> None:
        self.site = site
        self.home = home
        self.resources = site / "mmdet_plus" / ".mim"

    def run(self, *arguments: str, check: bool = True, **env: str) -> str:
        """Run this Python in a folder outside the repository; return all that it prints."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.home,
            env=os.environ
            | {"PYTHONPATH": str(self.site), "OMP_NUM_THREADS": "1", "MMPLUS_WITH_OPS": ""}
            | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    def mim(self, *arguments: str) -> str:
        return self.run("-m", "mim", *arguments, MMPLUS_WITH_OPS="0")


@pytest.fixture(scope="session")
def installed(plain_wheel, tmp_path_factory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    (folder / "home").mkdir()
    return Installed(install(plain_wheel, folder / "site"), folder / "home")


def test_compiled_library_works_from_an_installed_wheel(compiled_wheel, tmp_path):
    (tmp_path / "home").mkdir()
    elsewhere = Installed(install(compiled_wheel, tmp_path / "site"), tmp_path / "home")
    shown = elsewhere.run(
        "-c", "import mmplus_ops as m; i = m.ops_info(); print(i['compiled'], i['library'])"
    )
    assert shown.split() == ["True", str(next((tmp_path / "site/mmplus_ops").glob("_C.*")))]


def test_wheel_without_library_imports_and_warns_once(installed):
    shown = installed.run(
        "-c", "import mmplus_ops as m; print(m.has_compiled_ops(), m.has_compiled_ops())"
    )
    assert "False False" in shown
    assert shown.count("no compiled library is installed") == 1


def test_packages_are_imported_from_the_wheel(installed):
    shown = installed.run(
        "-c",
        "import importlib.metadata as d, mmdet_plus, mmplus_ops, mmseg_plus\n"
        "print(*(m.__file__ for m in (mmdet_plus, mmplus_ops, mmseg_plus)), sep='\\n')\n"
        "print(d.version('mmplus'))",
    )
    *files, version = shown.strip().splitlines()[-4:]
    assert all(Path(file).is_relative_to(installed.site) for file in files)
    assert version == "0.1.0"


needs_mim = pytest.mark.skipif(
    subprocess.run([sys.executable, "-c", "import mim"], capture_output=True).returncode != 0,
    reason="needs openmim or onedl-mim",
)


@needs_mim
def test_mim_search_lists_the_zoo(installed):
    shown = installed.mim("search", "mmplus", "--valid-config")
    assert "mr-rcnn_r50_fpn_9k_coco" in shown


@pytest.fixture
def file_server(tmp_path):
    """A web server on this machine only, of one folder; yields (address, folder)."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", folder
        server.shutdown()
        thread.join()


@needs_mim
def test_mim_download_brings_config_and_weights(plain_wheel, tmp_path, file_server):
    import yaml

    address, served = file_server
    weights = served / "mr-rcnn_r50_fpn_9k_coco.pth"
    weights.write_bytes(os.urandom(3000))
    (tmp_path / "home").mkdir()
    elsewhere = Installed(install(plain_wheel, tmp_path / "site"), tmp_path / "home")
    # No checkpoints of the zoo are published: the entry gets an address on this machine.
    metafile = elsewhere.resources / "configs/mr_rcnn/metafile.yml"
    data = yaml.safe_load(metafile.read_text())
    entry = next(m for m in data["Models"] if m["Name"] == weights.stem)
    entry["Weights"] = f"{address}/{weights.name}"
    metafile.write_text(yaml.safe_dump(data))

    elsewhere.mim("download", "mmplus", "--config", weights.stem, "--dest", "zoo")
    assert (elsewhere.home / "zoo" / weights.name).read_bytes() == weights.read_bytes()
    config = (elsewhere.home / "zoo" / f"{weights.stem}.py").read_text()
    assert "MaskRefiningRCNN" in config
    assert "_base_" not in config


@needs_mim
def test_mim_runs_tools_and_trains_outside_the_repository(installed):
    size = ("--num-train", "4", "--num-val", "2", "--size", "96", "96", "--workers", "0")
    installed.mim("run", "mmplus", "make_shapes", "data/shapes", *size)
    assert (installed.home / "data/shapes/annotations/instances_train.json").is_file()

    options = (
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "train_dataloader.num_workers=0",
    )
    loaders = ("train_dataloader.persistent_workers=False", "train_dataloader.batch_size=2")
    log = installed.mim(
        *("train", "mmplus", "mr-rcnn_r18_shapes.py", "--gpus", "0", "--work-dir", "work"),
        *("--cfg-options", *options, *loaders, "default_hooks.logger.interval=1"),
        *("val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"),
    )
    assert "loss" in log
    assert "segm_mAP" in log
    assert "Training finished successfully" in log
    assert list((installed.home / "work").glob("iter_2.pth")), log
