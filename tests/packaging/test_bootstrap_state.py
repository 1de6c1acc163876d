"""Stamps, the order of steps, and the wheel cache."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from _bootstrap import wheels
from _bootstrap.cli import bring_up_to_date
from _bootstrap.runner import StepError
from _bootstrap.stamps import Stamps, digest
from _bootstrap.steps import STACKS, Setup, Step

KEY = {
    "python": "cp311",
    "torch": "2.13.0+cpu",
    "cuda": None,
    "with_cuda": False,
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


def test_digest_survives_a_move(tmp_path):
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
        self.lost: set[str] = set()
        self.keys = {"first": "1", "second": "1"}

    def plan(self, docs: bool = False) -> list[Step]:
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
        ("requirements/tests.txt", {"packages", "check"}),
        ("requirements/docs.txt", {"docs"}),
        ("requirements/build.txt", {"build-tools", "mmcv", "check"}),
        ("ops/csrc/library.cpp", {"package", "check"}),
        ("ops/csrc/cpu/new_kernel.cpp", {"package", "check"}),
        ("setup.py", {"package", "check"}),
        ("mmnew_plus/__init__.py", {"package", "check"}),
        (
            "requirements/constraints-mmlab.txt",
            {"torch", "build-tools", "mmcv", "packages", "package", "check", "docs"},
        ),
        ("requirements/constraints-onedl.txt", set()),
        ("requirements/onedl.txt", set()),
    ],
)
def test_a_change_redoes_what_depends_on_it(clone, changed, redone):
    setup = Setup(clone, STACKS["mmlab"])
    before = {step.name: step.key for step in setup.plan(docs=True)}
    path = clone / changed
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as target:
        target.write("\n# changed\n")
    after = {step.name: step.key for step in setup.plan(docs=True)}
    assert {name for name in before if before[name] != after[name]} == redone


def test_missing_pin_names_the_file(clone):
    (clone / "requirements/constraints-mmlab.txt").write_text("torch==2.13.0\n")
    with pytest.raises(StepError, match=r"constraints-mmlab\.txt pins no mmcv"):
        Setup(clone, STACKS["mmlab"]).plan()


@pytest.mark.parametrize("stack", sorted(STACKS))
def test_every_requirement_is_pinned(repo_root, stack):
    setup = Setup(repo_root, STACKS[stack])
    for name in ("build", "runtime", stack, "tests", "docs", "no-deps"):
        for line in (repo_root / f"requirements/{name}.txt").read_text().splitlines():
            requirement = line.split("#")[0].strip()
            if requirement:
                package = requirement.split(">")[0].split("=")[0]
                assert setup.pin(package), package


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


def test_cache_key_tells_cuda_versions_apart():
    built = [
        wheels.cache_key(**KEY | {"cuda": cuda, "with_cuda": with_cuda})
        for cuda, with_cuda in ((None, False), ("12.8", True), ("13.0", True))
    ]
    assert len(set(built)) == 3
    assert all("/" not in key for key in built)


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
    monkeypatch.setattr(setup, "_probe", lambda: {"torch": "2.13.0+cpu", "cuda": None})
    builds: list[str] = []

    def build(name, version, folder, with_cuda):
        builds.append(f"{name} {version} {with_cuda}")
        return wheels.store_wheel(make_wheel(tmp_path / "built"), folder)

    monkeypatch.setattr(setup, "_build_mmcv", build)
    wheel = setup._mmcv_wheel()
    assert setup._mmcv_wheel() == wheel
    assert builds == ["mmcv 2.1.0 False"]
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
