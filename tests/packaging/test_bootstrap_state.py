"""Stamps, the order of steps, the library of the ops, and the wheel cache."""

from __future__ import annotations

import shutil
import sys
import threading
import zipfile
from pathlib import Path

import pytest
import torch
from _bootstrap import machine, wheels
from _bootstrap.cli import bring_up_to_date
from _bootstrap.runner import StepError
from _bootstrap.stamps import Stamps, digest, only_one
from _bootstrap.steps import STACKS, Setup, Step
from packaging.requirements import Requirement

KEY = {
    "python": "cp311",
    "torch": "2.13.0+cpu",
    "cuda": None,
    "architectures": "",
    "platform": "linux-x86_64",
}


def test_digest_follows_contents_names_and_values(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("a")
    two.write_text("b")
    start = digest([one, two], "x", root=tmp_path)
    assert digest([two, one], "x", root=tmp_path) == start
    assert digest([one, two], "y", root=tmp_path) != start
    assert digest([one], "x", root=tmp_path) != start
    one.write_text("b")
    two.write_text("a")
    assert digest([one, two], "x", root=tmp_path) != start
    two.unlink()
    assert digest([one, two], root=tmp_path) != digest([one], root=tmp_path)


def test_digest_names_files_relative_to_the_root(tmp_path):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("same")
    here, there = tmp_path / "here", tmp_path / "there"
    assert digest([here / "file"], root=here) == digest([there / "file"], root=there)


def test_stamp_holds_for_its_inputs_only(tmp_path):
    stamps = Stamps(tmp_path / "deep" / "folder")
    assert not stamps.is_done("step", "key")
    stamps.set_done("step", "key")
    assert stamps.is_done("step", "key")
    assert not stamps.is_done("step", "other")
    assert not stamps.is_done("another", "key")
    stamps.forget("step")
    stamps.forget("step")
    assert not stamps.is_done("step", "key")
    assert list((tmp_path / "deep" / "folder").iterdir()) == []


class FakeSetup:
    """Stands for Setup: steps that only count."""

    stack = STACKS["mmlab"]

    def __init__(self, folder: Path) -> None:
        self.stamps = Stamps(folder)
        self.done: list[str] = []
        self.failing: BaseException | None = None
        self.plan_fault: Exception | None = None
        self.lost: set[str] = set()
        self.keys = {"first": "1", "second": "1"}

    def plan(self, docs: bool = False) -> list[Step]:
        if self.plan_fault:
            raise self.plan_fault
        return [
            Step(n, n, self.keys[n], lambda n=n: self._work(n), lambda n=n: n not in self.lost)
            for n in ("first", "second")
        ]

    def _work(self, name: str) -> None:
        if name == "second" and self.failing:
            raise self.failing
        self.done.append(name)


def test_nothing_is_done_twice(tmp_path, capsys):
    setup = FakeSetup(tmp_path)
    assert bring_up_to_date(setup) == 0
    assert setup.done == ["first", "second"]
    capsys.readouterr()
    assert bring_up_to_date(setup) == 0
    assert setup.done == ["first", "second"]
    assert capsys.readouterr().out == ""
    setup.keys["second"] = "2"
    assert bring_up_to_date(setup) == 0
    assert setup.done == ["first", "second", "second"]


def test_failed_step_says_what_to_do_and_is_redone(tmp_path, capsys):
    setup = FakeSetup(tmp_path)
    setup.failing = StepError("it broke", "mend it")
    assert bring_up_to_date(setup) == 1
    shown = capsys.readouterr().out
    assert "step 'second' failed: it broke" in shown
    assert "what to do: mend it" in shown
    setup.failing = None
    assert bring_up_to_date(setup) == 0
    assert setup.done == ["first", "second"]


@pytest.mark.parametrize(
    "fault",
    [
        StepError("constraints-mmlab.txt pins no mmcv", "Add a line to it."),
        FileNotFoundError(2, "No such file", "constraints-mmlab.txt"),
    ],
)
def test_fault_of_the_plan_is_a_message(tmp_path, capsys, fault):
    setup = FakeSetup(tmp_path)
    setup.plan_fault = fault
    assert bring_up_to_date(setup) == 1
    shown = capsys.readouterr().out
    assert "step 'plan' failed: " in shown
    assert "constraints-mmlab.txt" in shown
    assert "what to do: " in shown
    assert setup.done == []


def test_interrupted_step_is_redone(tmp_path):
    setup = FakeSetup(tmp_path)
    assert bring_up_to_date(setup) == 0
    setup.keys["second"] = "2"
    setup.failing = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        bring_up_to_date(setup)
    setup.failing = None
    setup.keys["second"] = "1"
    assert bring_up_to_date(setup) == 0
    assert setup.done == ["first", "second", "second"]


def test_step_whose_result_vanished_is_redone(tmp_path):
    setup = FakeSetup(tmp_path)
    assert bring_up_to_date(setup) == 0
    setup.lost.add("first")
    assert bring_up_to_date(setup) == 0
    assert setup.done == ["first", "second", "first"]


@pytest.fixture
def clone(tmp_path, repo_root) -> Path:
    """The files that the plan reads, in a folder of their own."""
    for name in ("requirements", "ops/csrc"):
        shutil.copytree(repo_root / name, tmp_path / name)
    for name in ("setup.py", "pyproject.toml"):
        shutil.copy(repo_root / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "redone"),
    [
        ("requirements/runtime.txt", {"packages", "package", "check"}),
        ("requirements/mmlab.txt", {"packages", "package", "check"}),
        ("requirements/tests.txt", {"packages", "check"}),
        ("requirements/tests-mmlab.txt", {"packages", "check"}),
        ("requirements/tests-onedl.txt", set()),
        ("requirements/docs.txt", {"docs"}),
        ("requirements/build.txt", {"build-tools", "mmcv", "check"}),
        ("ops/csrc/library.cpp", {"package", "check"}),
        ("ops/csrc/cpu/new_kernel.cpp", {"package", "check"}),
        ("setup.py", {"package", "check"}),
        ("pyproject.toml", {"package", "check"}),
        ("mmnew_plus/__init__.py", {"package", "check"}),
        (
            "requirements/constraints-mmlab.txt",
            {"torch", "build-tools", "mmcv", "packages", "package", "check", "docs"},
        ),
        ("requirements/constraints-onedl.txt", set()),
        # An extra of the installed package.
        ("requirements/onedl.txt", {"package", "check"}),
    ],
)
def test_a_change_redoes_what_depends_on_it(clone, changed, redone):
    before = keys(clone)
    path = clone / changed
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as target:
        target.write("\n# changed\n")
    after = keys(clone)
    assert {name for name in before if before[name] != after[name]} == redone


def keys(clone: Path) -> dict[str, str]:
    return {step.name: step.key for step in Setup(clone, STACKS["mmlab"]).plan(docs=True)}


def test_moved_clone_installs_its_own_modules(clone, tmp_path_factory):
    before = keys(clone)
    after = keys(clone.rename(tmp_path_factory.mktemp("elsewhere") / "clone"))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"package", "check"}


@pytest.mark.parametrize(
    ("variable", "value", "redone"),
    [
        ("TORCH_CUDA_ARCH_LIST", "9.0", {"mmcv", "package", "check"}),
        ("FORCE_CUDA", "0", {"mmcv", "package", "check"}),
        ("MMPLUS_WITH_OPS", "0", {"package", "check"}),
        ("MMPLUS_WITH_OPS", "Off", {"package", "check"}),
        ("MMPLUS_WITH_OPS", "1", set()),
        ("MMPLUS_WITH_OPS", "yes", set()),
    ],
)
def test_settings_redo_what_they_change(clone, monkeypatch, variable, value, redone):
    for name in ("TORCH_CUDA_ARCH_LIST", "FORCE_CUDA", "MMPLUS_WITH_OPS"):
        monkeypatch.delenv(name, raising=False)
    before = keys(clone)
    monkeypatch.setenv(variable, value)
    after = keys(clone)
    assert {name for name in before if before[name] != after[name]} == redone


class TreeSetup(Setup):
    """A Setup whose compilation only writes down what it was asked for."""

    def __init__(self, clone: Path, stack: str, torch_version: str) -> None:
        super().__init__(clone, STACKS[stack], say=lambda text: None)
        self.installs: list[str] = []
        folder = self.venv / "lib/python3.11/site-packages" / f"torch-{torch_version}.dist-info"
        folder.mkdir(parents=True)

    @property
    def library(self) -> Path:
        return self.root / "ops/mmplus_ops/_C.abi3.so"

    def _probe(self):
        return {"torch": "2.13.0+cpu", "cuda": None, "codes": []}

    def _install_editable(self, env):
        self.installs.append(env["MMPLUS_WITH_OPS"])
        if env["MMPLUS_WITH_OPS"] == "1":
            assert not self.library.exists()
            self.library.parent.mkdir(parents=True, exist_ok=True)
            self.library.write_text(f"built for {self.stack.name}")


@pytest.fixture
def with_compiler(monkeypatch):
    monkeypatch.setattr(machine, "require_compiler", lambda environment: "c++")
    for name in ("TORCH_CUDA_ARCH_LIST", "FORCE_CUDA", "MMPLUS_WITH_OPS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("with_compiler")
def test_library_is_compiled_once_for_both_stacks(clone):
    first, second = (TreeSetup(clone, stack, "2.13.0+cpu") for stack in ("mmlab", "onedl"))
    assert not first._library_is_as_wanted()
    first.install_package()
    assert first._library_is_as_wanted()
    assert second._library_is_as_wanted()
    second.install_package()
    assert (first.installs, second.installs) == (["1"], ["0"])
    assert first.library.read_text() == "built for mmlab"


@pytest.mark.usefixtures("with_compiler")
def test_library_for_another_torch_is_compiled_anew(clone):
    first, second = TreeSetup(clone, "mmlab", "2.13.0+cpu"), TreeSetup(clone, "onedl", "2.13.0")
    first.install_package()
    assert not second._library_is_as_wanted()
    second.install_package()
    assert second.installs == ["1"]
    assert second._library_is_as_wanted()
    assert not first._library_is_as_wanted()


@pytest.mark.usefixtures("with_compiler")
def test_library_of_other_sources_is_compiled_anew(clone):
    first, second = (TreeSetup(clone, stack, "2.13.0+cpu") for stack in ("mmlab", "onedl"))
    source = clone / "ops/csrc/library.cpp"
    original = source.read_text()
    first.install_package()
    source.write_text("// changed\n")
    second.install_package()
    assert second.installs == ["1"]
    source.write_text(original)
    assert not first._library_is_as_wanted()


@pytest.mark.usefixtures("with_compiler")
@pytest.mark.parametrize("no", ["0", "false", "OFF", "no"])
def test_refused_ops_need_no_compiler_and_leave_no_library(clone, monkeypatch, no):
    setup = TreeSetup(clone, "mmlab", "2.13.0+cpu")
    setup.install_package()
    monkeypatch.setenv("MMPLUS_WITH_OPS", no)
    monkeypatch.setattr(machine, "require_compiler", lambda environment: pytest.fail("asked for"))
    assert not setup._library_is_as_wanted()
    setup.install_package()
    assert setup.installs == ["1", "0"]
    assert not setup.library.exists()
    assert setup._library_is_as_wanted()
    monkeypatch.delenv("MMPLUS_WITH_OPS")
    assert not setup._library_is_as_wanted()


@pytest.mark.usefixtures("with_compiler")
def test_failed_compilation_leaves_no_record(clone, repo_root, monkeypatch):
    setup = TreeSetup(clone, "mmlab", "2.13.0+cpu")
    setup.install_package()
    (clone / "ops/csrc/library.cpp").write_text("// changed\n")

    def fail(env):
        setup.library.write_text("half-written")
        raise StepError("it broke", "mend it")

    monkeypatch.setattr(setup, "_install_editable", fail)
    with pytest.raises(StepError):
        setup.install_package()
    assert not setup._library_is_as_wanted()
    shutil.copy(repo_root / "ops/csrc/library.cpp", clone / "ops/csrc/library.cpp")
    assert not setup._library_is_as_wanted()


@pytest.mark.usefixtures("with_compiler")
def test_stacks_take_turns_in_the_source_tree(clone):
    setup = TreeSetup(clone, "onedl", "2.13.0+cpu")
    said = threading.Event()
    setup.say = lambda text: said.set() if "waiting for another make" in text else None
    other = threading.Thread(target=setup.install_package)
    # What the other stack's set-up holds while it installs.
    with only_one(Setup(clone, STACKS["mmlab"]).shared.folder / "lock", print):
        other.start()
        assert said.wait(20)
        assert setup.installs == []
    other.join(20)
    assert setup.installs == ["1"]


def test_probe_reads_the_installed_torch(clone, monkeypatch):
    setup = Setup(clone, STACKS["mmlab"])
    setup.python = Path(sys.executable)
    answer = setup._probe()
    assert answer["torch"] == torch.__version__
    assert answer["cuda"] == torch.version.cuda
    assert answer["codes"] == torch.cuda.get_arch_list()


def test_cuda_is_compiled_for_all_of_torchs_gpus(clone, monkeypatch):
    for name in ("TORCH_CUDA_ARCH_LIST", "FORCE_CUDA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(machine, "find_nvcc", lambda environment: "/bin/nvcc")
    monkeypatch.setattr(machine, "nvcc_codes", lambda nvcc: ["sm_80", "sm_90"])
    found = {"torch": "2.13.0", "cuda": "13.0", "codes": ["sm_80", "sm_90", "sm_120"]}
    settings = Setup._compile_settings(found)
    assert settings["FORCE_CUDA"] == "1"
    assert settings["TORCH_CUDA_ARCH_LIST"] == "8.0;9.0+PTX"
    assert "CUDA_VISIBLE_DEVICES" not in settings
    settings = Setup._compile_settings(found | {"cuda": None, "codes": []})
    assert settings["FORCE_CUDA"] == "0"
    assert settings["CUDA_VISIBLE_DEVICES"] == ""
    assert "TORCH_CUDA_ARCH_LIST" not in settings


def test_missing_pin_names_the_file(clone):
    (clone / "requirements/constraints-mmlab.txt").write_text("torch==2.13.0\n")
    with pytest.raises(StepError, match=r"constraints-mmlab\.txt pins no mmcv"):
        Setup(clone, STACKS["mmlab"]).plan()


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_every_requirement_is_pinned(repo_root, stack):
    setup = Setup(repo_root, STACKS[stack])
    for name in ("build", "runtime", stack, "tests", f"tests-{stack}", "docs", "no-deps"):
        for line in (repo_root / f"requirements/{name}.txt").read_text().splitlines():
            if line.split("#")[0].strip():
                requirement = Requirement(line)
                assert requirement.specifier.contains(setup.pin(requirement.name)), line


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("python", "cp312"),
        ("torch", "2.14.0+cpu"),
        ("torch", "2.13.0"),
        ("platform", "linux-aarch64"),
    ],
)
def test_cache_key_tells_binary_interfaces_apart(name, value):
    assert wheels.cache_key(**KEY) != wheels.cache_key(**KEY | {name: value})


def test_cache_key_tells_cuda_versions_and_gpus_apart():
    built = [
        wheels.cache_key(**KEY | {"cuda": cuda, "architectures": architectures})
        for cuda, architectures in (
            (None, ""),
            ("12.8", "8.0"),
            ("13.0", "8.0"),
            ("13.0", "9.0"),
            ("13.0", "9.0+PTX"),
            ("13.0", "8.0;9.0+PTX"),
            ("13.0", ""),
        )
    ]
    assert len(set(built)) == len(built)
    assert not [key for key in built if set(key) & set("/; ")]
    assert built[0] == "cp311-torch2.13.0+cpu-cpu-linux_x86_64"


def test_cache_folder_follows_xdg():
    home = Path("/home/someone")
    assert wheels.cache_folder({}, home) == home / ".cache/mmplus/wheels"
    assert wheels.cache_folder({"XDG_CACHE_HOME": "/c"}, home) == Path("/c/mmplus/wheels")
    assert wheels.cache_folder({"XDG_CACHE_HOME": "rel"}, home) == home / ".cache/mmplus/wheels"


def make_wheel(folder: Path, name: str = "mmcv-2.1.0-cp311-cp311-any.whl") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr("mmcv/__init__.py", "value = 1\n" * 500)
        archive.writestr("mmcv-2.1.0.dist-info/RECORD", "")
    return folder / name


def test_stored_wheel_is_found_and_sound(tmp_path):
    folder = tmp_path / "cache" / "key"
    assert wheels.find_wheel(folder, "mmcv", "2.1.0") is None
    stored = wheels.store_wheel(make_wheel(tmp_path / "built"), folder)
    assert wheels.find_wheel(folder, "mmcv", "2.1.0") == stored
    assert wheels.find_wheel(folder, "mmcv", "2.1") is None
    assert wheels.wheel_fault(stored) is None
    assert sorted(p.name for p in folder.iterdir()) == [stored.name, stored.name + ".sha256"]


def test_forks_wheel_is_found_by_its_normal_name(tmp_path):
    built = make_wheel(tmp_path / "built", "onedl_mmcv-2.3.6-cp311-cp311-any.whl")
    stored = wheels.store_wheel(built, tmp_path / "cache")
    assert wheels.find_wheel(tmp_path / "cache", "onedl-mmcv", "2.3.6") == stored
    assert wheels.find_wheel(tmp_path / "cache", "mmcv", "2.3.6") is None


def flip_a_byte(wheel: Path) -> None:
    data = bytearray(wheel.read_bytes())
    data[len(data) // 2] ^= 0xFF
    wheel.write_bytes(data)


def cut_short(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes()[:-200])


def lose_checksum(wheel: Path) -> None:
    wheel.with_name(wheel.name + ".sha256").unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, cut_short, lose_checksum])
def test_damaged_wheel_is_noticed_and_built_anew(tmp_path, clone, monkeypatch, damage):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    messages: list[str] = []
    setup = Setup(clone, STACKS["mmlab"], say=messages.append)
    found = {"torch": "2.13.0+cpu", "cuda": None, "codes": []}
    monkeypatch.setattr(setup, "_probe", lambda: found)
    builds: list[str] = []

    def build(name, version, folder, settings):
        builds.append(f"{name} {version} {settings['FORCE_CUDA']}")
        return wheels.store_wheel(make_wheel(tmp_path / "built"), folder)

    monkeypatch.setattr(setup, "_build_mmcv", build)
    wheel = setup._mmcv_wheel()
    assert setup._mmcv_wheel() == wheel
    assert builds == ["mmcv 2.1.0 0"]
    assert "from the cache" in messages[-1]

    damage(wheel)
    assert wheels.wheel_fault(wheel) is not None
    assert setup._mmcv_wheel() == wheel
    assert len(builds) == 2
    assert "is not used" in messages[-1]
    assert wheels.wheel_fault(wheel) is None


def test_a_build_that_is_no_wheel_never_enters_the_cache(tmp_path):
    fake = tmp_path / "mmcv-2.1.0-cp311-cp311-any.whl"
    fake.write_text("no archive")
    with pytest.raises(ValueError, match=r"mmcv-2\.1\.0.*no readable archive"):
        wheels.store_wheel(fake, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_foreign_folder_in_the_environments_place_is_kept(clone):
    (clone / ".venv").mkdir()
    (clone / ".venv" / "precious.txt").write_text("mine")
    with pytest.raises(StepError, match="no virtual environment"):
        Setup(clone, STACKS["mmlab"]).make_venv()
    assert (clone / ".venv" / "precious.txt").read_text() == "mine"
