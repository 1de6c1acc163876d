"""Wheels and source archives, and mim on an installed wheel, outside the repository."""

from __future__ import annotations

import ast
import email
import functools
import http.server
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


STACK = "onedl" if is_installed("onedl-mmengine") else "mmlab"
MIM = {"mmlab": "openmim", "onedl": "onedl-mim"}[STACK]


def requirements_of(wheel: Path, extra: str = "") -> list[Requirement]:
    """What pip would install with the wheel, and what its extra adds where one is named."""
    message = email.message_from_string(read_metadata(wheel, "METADATA"))
    found = [Requirement(line) for line in message.get_all("Requires-Dist")]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": extra})]


def test_wheel_forces_no_openmmlab_distribution(plain_wheel):
    names = {requirement.name for requirement in requirements_of(plain_wheel)}
    assert "torch" in names
    assert not [name for name in names if "mm" in name]


@pytest.mark.parametrize("extra", ["mmlab", "onedl"])
def test_extras_name_a_whole_stack(plain_wheel, extra):
    base = {requirement.name for requirement in requirements_of(plain_wheel)}
    names = {requirement.name for requirement in requirements_of(plain_wheel, extra)} - base
    prefix = {"mmlab": "", "onedl": "onedl-"}[extra]
    detection = {"mmlab": "mmdet", "onedl": "onedl-mmdetection"}[extra]
    stack = {f"{prefix}{name}" for name in ("mmcv", "mmengine", "mmsegmentation")} | {detection}
    assert stack <= names
    assert not [name for name in names - stack if "mm" in name]


def test_extra_keeps_the_pkg_resources_that_mmengine_imports(plain_wheel):
    # torch asks for setuptools as well, and for no upper bound.
    (bound,) = (r for r in requirements_of(plain_wheel, "mmlab") if r.name == "setuptools")
    assert bound.specifier.contains("81.0.0")
    assert not bound.specifier.contains("82.0.0")


def imports_of(sources: dict[str, str]) -> dict[str, str]:
    """Map the top-level modules that sources import to the name of a source that does."""
    found = {}
    for path, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            found |= {name.split(".")[0]: path for name in names}
    return found


def test_wheel_asks_for_what_it_imports_and_for_nothing_else(plain_wheel):
    with zipfile.ZipFile(plain_wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".py")]
        imported = imports_of({name: archive.read(name).decode() for name in names})
    ours = {"mmdet_plus", "mmseg_plus", "mmplus_ops"}
    outside = {k: v for k, v in imported.items() if k not in sys.stdlib_module_names | ours}
    providers = {
        module: {canonicalize_name(name) for name in names}
        for module, names in metadata.packages_distributions().items()
    }
    declared = {canonicalize_name(r.name) for r in requirements_of(plain_wheel, STACK)}
    undeclared = {k: v for k, v in outside.items() if not providers.get(k, set()) & declared}
    assert undeclared == {}
    used = set().union(*(providers[module] for module in outside))
    assert {canonicalize_name(r.name) for r in requirements_of(plain_wheel)} - used == set()


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


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Names of all distributions that pip would install for the requirements.

    Fails where this environment, which has passed the tests, is not one that pip could have made.
    """
    names: set[str] = set()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        installed = metadata.distribution(requirement.name)
        if canonicalize_name(requirement.name) in names:
            continue
        names.add(canonicalize_name(requirement.name))
        found = [Requirement(line) for line in installed.requires or ()]
        extras = requirement.extras or {""}
        waiting += [
            r
            for r in found
            if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in extras)
        ]
    return names


def show(name: str, site: Path) -> None:
    """Link a distribution of this environment into another one's folder of packages."""
    distribution = metadata.distribution(name)
    tops = {path.parts[0] for path in distribution.files} - {"..", "__pycache__"}
    for top in tops:
        if not (site / top).exists():
            (site / top).symlink_to(distribution.locate_file(top))


class Installed:
    """A virtual environment with a wheel and what it asks for; nothing else can be imported."""

    def __init__(self, folder: Path, wheel: Path, *others: str) -> None:
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        self.bin = venv / ("Scripts" if sys.platform == "win32" else "bin")
        (self.site,) = venv.glob("[Ll]ib/**/site-packages")
        self.resources = self.site / "mmdet_plus" / ".mim"
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"]
        subprocess.run([*command, "--target", str(self.site), str(wheel)], check=True)
        wanted = requirements_of(wheel, STACK) + [Requirement(name) for name in others]
        for requirement in wanted:
            version = metadata.version(requirement.name)
            assert requirement.specifier.contains(version, prereleases=True), (requirement, version)
        for name in closure(wanted):
            show(name, self.site)

    def run(self, *arguments: str, **env: str) -> str:
        """Run Python in a folder outside the repository; return all that it prints."""
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        path = f"{self.bin}{os.pathsep}{kept['PATH']}"
        done = subprocess.run(
            [str(self.bin / "python"), *arguments],
            cwd=self.home,
            env=kept | {"PATH": path, "OMP_NUM_THREADS": "1", "MMPLUS_WITH_OPS": ""} | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def mim(self, *arguments: str) -> str:
        return self.run("-m", "mim", *arguments, MMPLUS_WITH_OPS="0")


@pytest.fixture(scope="session")
def installed(plain_wheel, tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"), plain_wheel)


@pytest.fixture(scope="session")
def with_mim(plain_wheel, tmp_path_factory) -> Installed:
    if not is_installed(MIM):
        pytest.skip(f"needs {MIM}")
    return Installed(tmp_path_factory.mktemp("with_mim"), plain_wheel, MIM)


def test_environment_has_nothing_that_was_not_asked_for(installed):
    modules = ["pytest", "ruff", "hypothesis", "panopticapi", "mim"]
    script = f"import importlib.util as u; print([m for m in {modules} if u.find_spec(m)])"
    assert installed.run("-c", script).strip() == "[]"


def test_every_module_can_be_imported_from_the_wheel(installed):
    shown = installed.run(
        "-c",
        "import importlib, importlib.metadata as d, pkgutil\n"
        "import mmdet.models, mmseg.models\n"
        "for name in ('mmplus_ops', 'mmseg_plus', 'mmdet_plus'):\n"
        "    package = importlib.import_module(name)\n"
        "    for found in pkgutil.walk_packages(package.__path__, name + '.'):\n"
        "        importlib.import_module(found.name)\n"
        "    print('file', package.__file__)\n"
        "print('version', d.version('mmplus'))",
    )
    lines = shown.strip().splitlines()
    files = [line.removeprefix("file ") for line in lines if line.startswith("file ")]
    assert len(files) == 3
    assert all(Path(file).is_relative_to(installed.site) for file in files)
    assert lines[-1] == f"version {metadata.version('mmplus')}"


def test_configs_of_the_wheel_are_found_and_read(installed):
    shown = installed.run(
        "-c",
        "from mmdet_plus.engine.config import load_config\n"
        "print(load_config('mr-rcnn_r50_fpn_9k_coco').model.type)",
    )
    assert shown.split()[-1] == "MaskRefiningRCNN"


def test_compiled_library_works_from_an_installed_wheel(compiled_wheel, tmp_path):
    elsewhere = Installed(tmp_path, compiled_wheel)
    shown = elsewhere.run(
        "-c", "import mmplus_ops as m; i = m.ops_info(); print(i['compiled'], i['library'])"
    )
    assert shown.split() == ["True", str(next((elsewhere.site / "mmplus_ops").glob("_C.*")))]


def test_wheel_without_library_imports_and_warns_once(installed):
    shown = installed.run(
        "-c", "import mmplus_ops as m; print(m.has_compiled_ops(), m.has_compiled_ops())"
    )
    assert "False False" in shown
    assert shown.count("no compiled library is installed") == 1


def test_mim_search_lists_the_zoo(with_mim):
    shown = with_mim.mim("search", "mmplus", "--valid-config")
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


def test_mim_download_brings_config_and_weights(plain_wheel, tmp_path, file_server):
    import yaml

    address, served = file_server
    weights = served / "mr-rcnn_r50_fpn_9k_coco.pth"
    weights.write_bytes(os.urandom(3000))
    if not is_installed(MIM):
        pytest.skip(f"needs {MIM}")
    elsewhere = Installed(tmp_path / "installed", plain_wheel, MIM)
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


def test_mim_runs_tools_and_trains_outside_the_repository(with_mim):
    size = ("--num-train", "4", "--num-val", "2", "--size", "96", "96", "--workers", "0")
    with_mim.mim("run", "mmplus", "make_shapes", "data/shapes", *size)
    assert (with_mim.home / "data/shapes/annotations/instances_train.json").is_file()

    options = (
        "train_cfg.max_iters=2",
        "train_cfg.val_interval=2",
        "train_dataloader.num_workers=0",
    )
    loaders = ("train_dataloader.persistent_workers=False", "train_dataloader.batch_size=2")
    log = with_mim.mim(
        *("train", "mmplus", "mr-rcnn_r18_shapes.py", "--gpus", "0", "--work-dir", "work"),
        *("--cfg-options", *options, *loaders, "default_hooks.logger.interval=1"),
        *("val_dataloader.num_workers=0", "val_dataloader.persistent_workers=False"),
    )
    assert "loss" in log
    assert "segm_mAP" in log
    assert "Training finished successfully" in log
    assert list((with_mim.home / "work").glob("iter_2.pth")), log
