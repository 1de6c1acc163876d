"""What this machine has: Python's parts, compilers, memory, CUDA."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from .runner import StepError

JOB_BYTES = 1_500_000_000
COMPILERS = ("c++", "g++", "clang++")
# The same words as in setup.py and mmplus_ops.
NO = ("0", "false", "no", "off")


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


def wants_ops(environment: Mapping[str, str]) -> bool:
    """Tell whether the ops are compiled: yes, unless MMPLUS_WITH_OPS says no in one of its ways."""
    return environment.get("MMPLUS_WITH_OPS", "").strip().lower() not in NO


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


def cuda_architectures(
    environment: Mapping[str, str], torch_codes: Sequence[str], nvcc_codes: Collection[str]
) -> str:
    """Choose the GPUs to compile for: TORCH_CUDA_ARCH_LIST, else all that torch was built for.

    torch's own choice would be the GPUs that it sees. It crashes where it sees none, as on the
    login node of a cluster, and what it builds on one node fails on a node with older GPUs.

    Args:
        environment: variables of the caller.
        torch_codes: ``torch.cuda.get_arch_list()``, such as ``["sm_80", "sm_90", "compute_90"]``.
        nvcc_codes: what nvcc can compile for, such as ``{"sm_80"}``; empty where that is unknown.

    Returns:
        A value for TORCH_CUDA_ARCH_LIST, such as ``"8.0;9.0+PTX"``, the newest one with code that
        later GPUs translate; empty where torch names no architecture.
    """
    chosen = environment.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if chosen:
        return chosen
    known = [code for code in torch_codes if code in nvcc_codes] or torch_codes
    numbers = sorted({int(m[1]) for code in known if (m := re.fullmatch(r"sm_(\d+)", code))})
    names = [f"{number // 10}.{number % 10}" for number in numbers]
    return ";".join(names) + "+PTX" if names else ""


def nvcc_codes(nvcc: str | None) -> list[str]:
    """Ask nvcc which GPUs it compiles for (``["sm_75", "sm_80", ...]``); an old one cannot say."""
    if nvcc is None:
        return []
    try:
        answer = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True)
    except OSError:
        return []
    return re.findall(r"^sm_\d+$", answer.stdout, re.MULTILINE) if answer.returncode == 0 else []
