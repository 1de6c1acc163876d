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

from . import machine, wheels
from .runner import StepError, clean_environment, ninja_progress, run
from .stamps import Stamps, digest

PROBE = """
import json, torch
print(json.dumps({"torch": torch.__version__, "cuda": torch.version.cuda}))
"""

CHECK = """
import cv2, mmcv, mmcv.ops, mmdet, mmengine, mmseg, torch
import mmdet_plus, mmplus_ops, mmseg_plus
ops = mmplus_ops.ops_info()
print(
    f"torch {torch.__version__}, mmcv {mmcv.__version__}, mmengine {mmengine.__version__}, "
    f"mmdet {mmdet.__version__}, mmseg {mmseg.__version__}; ops "
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
        self.say = say
        self.constraints = root / stack.constraints
        self.requirements = root / "requirements"

    def plan(self, docs: bool = False) -> list[Step]:
        """All steps with their keys; nothing is run or imported for it."""
        base = digest([], sys.version_info[:3], os.path.realpath(sys.executable))
        torch = self._key([self.constraints], base)
        tools = self._key([self.requirements / "build.txt"], torch)
        mmcv = self._key([], tools, *self._settings("FORCE_CUDA"))
        lists = [self.requirements / f"{n}.txt" for n in ("runtime", self.stack.name, "tests")]
        packages = self._key([*lists, self.requirements / "no-deps.txt"], torch)
        sources = [self.root / "setup.py", self.root / "pyproject.toml"]
        sources += [path for path in (self.root / "ops/csrc").rglob("*") if path.is_file()]
        # An editable install maps the import packages that were there when it was made.
        found = [*self.root.glob("*/__init__.py"), *self.root.glob("ops/*/__init__.py")]
        imports = sorted(path.parent.name for path in found)
        settings = self._settings("FORCE_CUDA", "MMPLUS_WITH_OPS")
        package = self._key(sources, torch, imports, *settings)
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
                self._library_is_there,
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
        lists = [self.requirements / f"{n}.txt" for n in ("runtime", self.stack.name, "tests")]
        arguments = [part for path in lists for part in ("-r", path)]
        self._pip("packages", "installing packages", arguments)
        no_deps = ["--no-deps", "-r", self.requirements / "no-deps.txt"]
        self._pip("packages-no-deps", "installing packages", no_deps)

    def install_package(self) -> None:
        """Install this repository as an editable package and compile its ops."""
        env = {"MMPLUS_WITH_OPS": os.environ.get("MMPLUS_WITH_OPS", "1")}
        if env["MMPLUS_WITH_OPS"] != "0":
            machine.require_compiler(os.environ)
            env |= self._compile_settings(self._builds_cuda(self._probe()))
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
        self.say(f"    {log.read_text().rstrip().splitlines()[-1]}")

    def _library_is_there(self) -> bool:
        """The compiled library lies in the source tree, where a cleaning may take it."""
        if os.environ.get("MMPLUS_WITH_OPS") == "0":
            return True
        return any((self.root / "ops/mmplus_ops").glob("_C*"))

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

    def _probe(self) -> dict[str, str | None]:
        log = self._log("torch-probe")
        run([self.python, "-c", PROBE], what="importing torch", log=log)
        return json.loads(log.read_text().rstrip().splitlines()[-1])

    @staticmethod
    def _builds_cuda(torch: dict[str, str | None]) -> bool:
        return machine.builds_cuda(os.environ, torch["cuda"], machine.find_nvcc(os.environ))

    @staticmethod
    def _compile_settings(with_cuda: bool) -> dict[str, str]:
        jobs = machine.compile_jobs(os.environ, machine.usable_cores(), machine.usable_memory())
        settings = {"MAX_JOBS": str(jobs), "FORCE_CUDA": "1" if with_cuda else "0"}
        if not with_cuda:
            # mmcv builds CUDA kernels wherever it sees a GPU, even without a CUDA compiler.
            settings["CUDA_VISIBLE_DEVICES"] = ""
        return settings

    def _mmcv_wheel(self) -> Path:
        torch = self._probe()
        with_cuda = self._builds_cuda(torch)
        key = wheels.cache_key(
            python=f"{platform.python_implementation()[0].lower()}p"
            + "".join(map(str, sys.version_info[:2])),
            torch=str(torch["torch"]),
            cuda=torch["cuda"],
            with_cuda=with_cuda,
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
        return self._build_mmcv(name, version, folder, with_cuda)

    def _build_mmcv(self, name: str, version: str, folder: Path, with_cuda: bool) -> Path:
        machine.require_compiler(os.environ)
        machine.require_python_headers()
        env = {"MMCV_WITH_OPS": "1"} | self._compile_settings(with_cuda)
        self.say(
            f"    compiling {name} {version} ({'CUDA' if with_cuda else 'CPU'} ops, "
            f"{env['MAX_JOBS']} at a time): some minutes, once a machine"
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
