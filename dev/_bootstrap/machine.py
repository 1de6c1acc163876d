"""What this machine has: Python's parts, compilers, memory, CUDA."""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from pathlib import Path

from .runner import StepError

JOB_BYTES = 1_500_000_000
COMPILERS = ("c++", "g++", "clang++")


def require_venv_module() -> None:
    """Refuse a Python without ``venv`` or ``ensurepip``, which Debian packs apart."""
    for module in ("venv", "ensurepip"):
        if importlib.util.find_spec(module) is None:
            major, minor = sys.version_info[:2]
            raise StepError(
                f"this Python ({sys.executable}) has no module '{module}'",
                f"Install it (Debian: apt install python{major}.{minor}-venv) or use another "
                "Python: make ... PYTHON=python3.11",
            )


def require_compiler(
    environment: Mapping[str, str], which: Callable[[str], str | None] = shutil.which
) -> str:
    """Return the C++ compiler that builds will use.

    Raises:
        StepError: where there is none.
    """
    chosen = environment.get("CXX", "")
    names = [shlex.split(chosen)[0]] if chosen.strip() else list(COMPILERS)
    for name in names:
        if which(name):
            return name
    raise StepError(
        f"no C++ compiler found (looked for {', '.join(names)})",
        "Install one (Debian: apt install g++; macOS: xcode-select --install) or name it in CXX.",
    )


def require_python_headers(include: str | None = None) -> None:
    """Refuse to start a build of minutes that cannot end for want of ``Python.h``."""
    folder = Path(include or sysconfig.get_path("include"))
    if not (folder / "Python.h").is_file():
        major, minor = sys.version_info[:2]
        raise StepError(
            f"the headers of Python {major}.{minor} are missing ({folder / 'Python.h'})",
            f"Install them (Debian: apt install python{major}.{minor}-dev).",
        )


def compile_jobs(environment: Mapping[str, str], cores: int, memory: int | None) -> int:
    """How many compilers may run at once: MAX_JOBS, else what cores and memory (bytes) allow."""
    wanted = environment.get("MAX_JOBS", "").strip()
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    by_memory = cores if memory is None else memory // JOB_BYTES
    return max(1, min(cores, by_memory))


def usable_cores() -> int:
    """Cores that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def usable_memory() -> int | None:
    """Bytes of memory that builds may use: what is free, and no more than a container's limit."""
    free = None
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = Path("/sys/fs/cgroup/memory.current").read_text().strip()
    except OSError:
        return free
    if limit.isdigit() and used.isdigit():
        left = max(0, int(limit) - int(used))
        return left if free is None else min(free, left)
    return free


def find_nvcc(
    environment: Mapping[str, str], which: Callable[[str], str | None] = shutil.which
) -> str | None:
    """Return the CUDA compiler, from CUDA_HOME or PATH, or None."""
    for name in ("CUDA_HOME", "CUDA_PATH"):
        home = environment.get(name)
        if home and (Path(home) / "bin" / "nvcc").is_file():
            return str(Path(home) / "bin" / "nvcc")
    return which("nvcc")


def builds_cuda(environment: Mapping[str, str], torch_cuda: str | None, nvcc: str | None) -> bool:
    """Decide whether CUDA kernels are built: torch and nvcc must be there, FORCE_CUDA=0 says no.

    Raises:
        StepError: where FORCE_CUDA=1 asks for what cannot be.
    """
    forced = environment.get("FORCE_CUDA", "").strip()
    possible = torch_cuda is not None and nvcc is not None
    if forced == "1" and not possible:
        missing = "torch is a build without CUDA" if torch_cuda is None else "there is no nvcc"
        raise StepError(
            f"FORCE_CUDA=1 is set, but {missing}",
            "Install what is missing (a CUDA build of torch; the CUDA toolkit, with CUDA_HOME "
            "set), or unset FORCE_CUDA.",
        )
    return possible and forced != "0"
