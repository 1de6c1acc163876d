"""The steps themselves, in order, each with the inputs that its stamp depends on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import machine, wheels
from .runner import StepError, clean_environment, marked_line, ninja_progress, run
from .stamps import Stamps, digest, only_one

# Libraries write warnings before and after an answer, so that it needs a mark to be found.
MARK = "bootstrap-answer: "

PROBE = f"""
import json, torch
about = {{"torch": torch.__version__, "cuda": torch.version.cuda}}
print({MARK!r} + json.dumps(about | {{"codes": torch.cuda.get_arch_list()}}))
"""

CHECK = f"""
import cv2, mmcv, mmcv.ops, mmdet, mmengine, mmseg, torch
import mmdet_plus, mmplus_ops, mmseg_plus
ops = mmplus_ops.ops_info()
found = [(m.__name__, m.__version__) for m in (torch, mmcv, mmengine, mmdet, mmseg)]
print(
    {MARK!r}
    + ", ".join(" ".join(pair) for pair in found) + "; ops "
    + ("compiled" + (" with CUDA" if ops["cuda"] else "") if ops["compiled"] else "plain")
)
"""


@dataclass(frozen=True)
class Stack:
    """One of the two sets of OpenMMLab packages."""

    name: str
    venv: str
    mmcv: str

    @property
    def constraints(self) -> str:
        """Path of the pins, relative to the repository."""
        return f"requirements/constraints-{self.name}.txt"


STACKS = {
    "mmlab": Stack("mmlab", ".venv", "mmcv"),
    "onedl": Stack("onedl", ".venv-onedl", "onedl-mmcv"),
}


@dataclass(frozen=True)
class Step:
    """A named piece of work, the digest of its inputs, and whether its result is still there."""

    name: str
    title: str
    key: str
    work: Callable[[], None]
    intact: Callable[[], bool] = lambda: True


class Setup:
    """The way from a bare clone to a working environment of one stack."""

    def __init__(self, root: Path, stack: Stack, say: Callable[[str], None] = print) -> None:
        self.root = root
        self.stack = stack
        self.venv = root / stack.venv
        self.python = self.venv / "bin" / "python"
        self.state = self.venv / ".mmplus"
        self.stamps = Stamps(self.state)
        # What the environments of both stacks share: the library in the source tree, and its lock.
        self.shared = Stamps(root / ".venv-shared")
        self.say = say
        self.constraints = root / stack.constraints
        self.requirements = root / "requirements"

    def plan(self, docs: bool = False) -> list[Step]:
        """All steps with their keys; nothing is run or imported for it."""
        base = digest([], sys.version_info[:3], os.path.realpath(sys.executable))
        torch = self._key([self.constraints], base)
        tools = self._key([self.requirements / "build.txt"], torch)
        mmcv = self._key([], tools, *self._settings("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST"))
        packages = self._key([*self._lists(), self.requirements / "no-deps.txt"], torch)
        # What the metadata is made of.
        sources = [self.root / "pyproject.toml", self.requirements / "runtime.txt"]
        sources += [self.requirements / f"{stack}.txt" for stack in STACKS]
        # An editable install maps the import packages that were there when it was made, by absolute
        # paths: a copied clone would import what it was copied from.
        found = [*self.root.glob("*/__init__.py"), *self.root.glob("ops/*/__init__.py")]
        imports = sorted(path.parent.name for path in found)
        ops = [machine.wants_ops(os.environ), *self._settings("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST")]
        package = self._key([*sources, *self._op_sources()], torch, imports, str(self.root), *ops)
        steps = [
            Step("venv", f"virtual environment {self.stack.venv}", base, self.make_venv),
            Step("torch", f"torch {self.pin('torch')}", torch, self.install_torch),
            Step("build-tools", "build tools", tools, self.install_build_tools),
            Step("mmcv", self._mmcv_pin(), mmcv, self.install_mmcv),
            Step("packages", "pinned packages", packages, self.install_packages),
            Step(
                "package",
                "mmplus with its ops",
                package,
                self.install_package,
                self._library_is_as_wanted,
            ),
            Step("check", "imports", digest([], mmcv, packages, package), self.check),
        ]
        if docs:
            key = self._key([self.requirements / "docs.txt"], torch)
            steps.append(Step("docs", "documentation tools", key, self.install_docs))
        return steps

    def pin(self, name: str) -> str:
        """The version that the constraints pin ``name`` to."""
        for line in self.constraints.read_text().splitlines():
            if line.split(";")[0].strip().startswith(name + "=="):
                return line.split(";")[0].strip().split("==")[1]
        raise StepError(
            f"{self.stack.constraints} pins no {name}", f"Add a line '{name}==VERSION' to it."
        )

    def make_venv(self) -> None:
        """Create the environment; keep one that already runs this Python."""
        machine.require_venv_module()
        if self.venv.exists():
            if self._venv_runs_this_python():
                return
            if not (self.venv / "pyvenv.cfg").is_file():
                raise StepError(
                    f"{self.stack.venv} exists and is no virtual environment",
                    "Move it away, then run again.",
                )
            self.say(f"    {self.stack.venv} belongs to another Python: made anew")
            shutil.rmtree(self.venv)
        # The log goes beside the environment until there is one.
        log = self.venv.with_name(self.venv.name + ".log")
        run([sys.executable, "-m", "venv", self.venv], what="making the environment", log=log)
        log.unlink()

    def install_torch(self) -> None:
        """Install torch first: it decides what everything compiled is built against."""
        self._pip("torch", "installing torch", ["torch"])

    def install_build_tools(self) -> None:
        """Install setuptools and others, after torch, which brings too new a setuptools."""
        self._pip("build-tools", "installing", ["-r", self.requirements / "build.txt"])

    def install_mmcv(self) -> None:
        """Install mmcv from the user's wheel cache, building the wheel where it is not there."""
        wheel = self._mmcv_wheel()
        run(
            [self.python, "-m", "pip", "install", "--no-deps", "--force-reinstall", wheel],
            what=f"installing {wheel.name}",
            log=self._log("mmcv"),
        )

    def install_packages(self) -> None:
        """Install everything else that is pinned."""
        arguments = [part for path in self._lists() for part in ("-r", path)]
        self._pip("packages", "installing packages", arguments)
        no_deps = ["--no-deps", "-r", self.requirements / "no-deps.txt"]
        self._pip("packages-no-deps", "installing packages", no_deps)

    def install_package(self) -> None:
        """Install this repository as an editable package and compile its ops.

        The library lies in the source tree and serves the environments of both stacks: one process
        at a time works on it, and what another one has built from the same sources is taken.
        """
        with only_one(self.shared.folder / "lock", self.say):
            if not machine.wants_ops(os.environ):
                self._remove_library()
                self._install_editable({"MMPLUS_WITH_OPS": "0"})
            elif self._library_is_as_wanted():
                self._install_editable({"MMPLUS_WITH_OPS": "0"})
            else:
                machine.require_compiler(os.environ)
                settings = self._compile_settings(self._probe())
                # Removed, not overwritten: programs that run from this clone have it mapped.
                self._remove_library()
                self._install_editable({"MMPLUS_WITH_OPS": "1"} | settings)
                self.shared.set_done("library", self._library_key())

    def _install_editable(self, env: dict[str, str]) -> None:
        command = [self.python, "-m", "pip", "install", "-v", "--no-build-isolation", "--no-deps"]
        try:
            run(
                [*command, "-e", self.root],
                what="compiling and installing mmplus",
                log=self._log("package"),
                env=env,
                progress=ninja_progress,
            )
        except StepError as error:
            error.advice += " To go on without compiled ops: MMPLUS_WITH_OPS=0 make ..."
            raise

    def install_docs(self) -> None:
        """Install what builds the documentation."""
        self._pip("docs", "installing", ["-r", self.requirements / "docs.txt"])

    def check(self) -> None:
        """Import everything once, so that a broken library shows here and not in a traceback."""
        log = self._log("check")
        run([self.python, "-c", CHECK], what="importing the packages", log=log, cwd=self.venv)
        self.say(f"    {marked_line(log, MARK)}")

    def _library_files(self) -> list[Path]:
        return sorted((self.root / "ops/mmplus_ops").glob("_C*"))

    def _library_is_as_wanted(self) -> bool:
        """Tell whether the source tree holds the library of its sources, or none if none is wanted.

        A cleaning may have taken it, or the other stack may have built it for another torch.
        """
        if not machine.wants_ops(os.environ):
            return not self._library_files()
        return bool(self._library_files()) and self.shared.is_done("library", self._library_key())

    def _remove_library(self) -> None:
        self.shared.forget("library")
        for path in self._library_files():
            path.unlink()

    def _library_key(self) -> str:
        # The folder's name has the local part of the version, which tells CUDA builds apart.
        torch = [
            path.name for path in self.venv.glob("lib/python*/site-packages/torch-*.dist-info")
        ]
        settings = self._settings("FORCE_CUDA", "TORCH_CUDA_ARCH_LIST")
        return self._key(self._op_sources(), sorted(torch), *settings)

    def _op_sources(self) -> list[Path]:
        sources = [path for path in (self.root / "ops/csrc").rglob("*") if path.is_file()]
        return [self.root / "setup.py", *sources]

    def _lists(self) -> list[Path]:
        names = ("runtime", self.stack.name, "tests", f"tests-{self.stack.name}")
        return [self.requirements / f"{name}.txt" for name in names]

    def _key(self, files: list[Path], *values: object) -> str:
        return digest(files, *values, root=self.root)

    @staticmethod
    def _settings(*names: str) -> list[tuple[str, str]]:
        return [(name, os.environ.get(name, "")) for name in names]

    def _log(self, step: str) -> Path:
        return self.state / "logs" / f"{step}.log"

    def _pip(self, step: str, what: str, arguments: list[str | Path]) -> None:
        command = [self.python, "-m", "pip", "install", "-c", self.constraints, *arguments]
        run(command, what=what, log=self._log(step))

    def _mmcv_pin(self) -> str:
        return f"{self.stack.mmcv} {self.pin(self.stack.mmcv)}"

    def _venv_runs_this_python(self) -> bool:
        query = "import sys, pip; print(*sys.version_info[:2])"
        try:
            answer = subprocess.run(
                [self.python, "-c", query],
                capture_output=True,
                text=True,
                env=clean_environment(os.environ),
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return False
        return answer.stdout.split() == [str(part) for part in sys.version_info[:2]]

    def _probe(self) -> dict[str, Any]:
        """Ask the installed torch for its version, its CUDA version and its GPU architectures."""
        log = self._log("torch-probe")
        run([self.python, "-c", PROBE], what="importing torch", log=log)
        return json.loads(marked_line(log, MARK))

    @staticmethod
    def _compile_settings(torch: dict[str, Any]) -> dict[str, str]:
        """Environment variables for a compilation against the probed torch."""
        jobs = machine.compile_jobs(os.environ, machine.usable_cores(), machine.usable_memory())
        nvcc = machine.find_nvcc(os.environ)
        if not machine.builds_cuda(os.environ, torch["cuda"], nvcc):
            # mmcv builds CUDA kernels wherever it sees a GPU, even without a CUDA compiler.
            return {"MAX_JOBS": str(jobs), "FORCE_CUDA": "0", "CUDA_VISIBLE_DEVICES": ""}
        settings = {"MAX_JOBS": str(jobs), "FORCE_CUDA": "1"}
        codes = machine.nvcc_codes(nvcc)
        architectures = machine.cuda_architectures(os.environ, torch["codes"], codes)
        return settings | ({"TORCH_CUDA_ARCH_LIST": architectures} if architectures else {})

    def _mmcv_wheel(self) -> Path:
        torch = self._probe()
        settings = self._compile_settings(torch)
        key = wheels.cache_key(
            python=f"{platform.python_implementation()[0].lower()}p"
            + "".join(map(str, sys.version_info[:2])),
            torch=torch["torch"],
            cuda=torch["cuda"] if settings["FORCE_CUDA"] == "1" else None,
            architectures=settings.get("TORCH_CUDA_ARCH_LIST", ""),
            platform=sysconfig.get_platform(),
        )
        folder = wheels.cache_folder(os.environ, Path.home()) / key
        name, version = self.stack.mmcv, self.pin(self.stack.mmcv)
        cached = wheels.find_wheel(folder, name, version)
        if cached is not None:
            fault = wheels.wheel_fault(cached)
            if fault is None:
                self.say(f"    from the cache: {cached}")
                return cached
            self.say(f"    the cached wheel is not used, {fault}: built anew ({cached})")
            wheels.drop_wheel(cached)
        return self._build_mmcv(name, version, folder, settings)

    def _build_mmcv(self, name: str, version: str, folder: Path, settings: dict[str, str]) -> Path:
        machine.require_compiler(os.environ)
        machine.require_python_headers()
        env = {"MMCV_WITH_OPS": "1"} | settings
        kind = "CPU ops"
        if settings["FORCE_CUDA"] == "1":
            kind = f"CUDA ops for {settings.get('TORCH_CUDA_ARCH_LIST', 'the GPUs here')}"
        self.say(
            f"    compiling {name} {version} ({kind}, {env['MAX_JOBS']} at a time): "
            "some minutes, once a machine"
        )
        self.state.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="wheel-", dir=self.state) as output:
            command = [self.python, "-m", "pip", "wheel", "-v", "--no-build-isolation"]
            run(
                [*command, "--no-deps", "--wheel-dir", output, f"{name}=={version}"],
                what=f"compiling {name}",
                log=self._log("mmcv-build"),
                env=env,
                progress=ninja_progress,
            )
            built = wheels.find_wheel(Path(output), name, version)
            if built is None:
                raise StepError(
                    f"the build of {name} left no wheel",
                    "See the log; MMCV_WITH_OPS or a pip setting may have changed its name.",
                    self._log("mmcv-build"),
                )
            return wheels.store_wheel(built, folder)
