"""Finding, checking and loading the compiled op library.

The library is optional: every op has a plain PyTorch twin. It is loaded with the package, and only
if it was built for the torch that runs here; where it is missing, the first op that is used warns.
"""

from __future__ import annotations

import functools
import os
import re
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch

_HOME = Path(__file__).resolve().parent
_SUFFIXES = (".so", ".pyd", ".dylib")
# Operators that the library does not bring for the CPU, filled in as they are defined.
LACKING: set[str] = set()
_MARKER = re.compile(rb"mmplus-built-for-torch=([^;\x00]{1,64});")


class LoadResult(NamedTuple):
    """What became of the compiled library: its file if there is one, and why it is not in use."""

    path: Path | None
    error: str | None


def has_compiled_ops(operator: str | None = None) -> bool:
    """Tell whether the compiled kernels are in use.

    False where the library is absent or was built for another torch (one warning says so), and
    wherever the environment has ``MMPLUS_WITH_OPS=0``, which is read at every call.

    Args:
        operator: Ask for this one: a library that was built before there was such an operator
            lacks it.
    """
    if _switched_off():
        return False
    error = load_library().error
    if error is not None:
        _warn(error)
    return error is None and operator not in LACKING


def ops_info() -> dict[str, Any]:
    """Describe the op library, for bug reports and benchmarks.

    Returns:
        A dict with ``compiled`` (bool: the compiled kernels are in use), ``cuda`` (bool: CUDA
        kernels are among them), ``torch`` (version that runs), ``torch_cuda`` (its CUDA version or
        None), ``threads`` (of torch), ``library`` (path or None) and ``reason`` (why the plain
        versions are in use, or None). A library in use adds what it was built with:
        ``compiler``, ``cxx_standard``, ``built_for_torch``, ``openmp``, ``parallel_backend``.
    """
    info: dict[str, Any] = {
        "compiled": False,
        "cuda": False,
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "library": None,
        "reason": None,
    }
    if _switched_off():
        return info | {"reason": "MMPLUS_WITH_OPS=0 is set"}
    result = load_library()
    info["library"] = None if result.path is None else str(result.path)
    if result.error is not None:
        return info | {"reason": result.error}
    built = dict(line.split("=", 1) for line in torch.ops.mmplus._build_info().splitlines())
    return info | built | {"compiled": True, "cuda": built["cuda"] == "yes"}


@functools.cache
def load_library() -> LoadResult:
    """Load the compiled library, once."""
    return try_load(find_library(_HOME))


@functools.cache
def _warn(error: str) -> None:
    warnings.warn(
        f"mmplus_ops uses its plain PyTorch ops: {error}. They give the same results, more "
        "slowly. To compile them: pip install --no-build-isolation --force-reinstall --no-deps "
        "mmplus (or `make setup` in a clone); MMPLUS_WITH_OPS=0 silences this.",
        RuntimeWarning,
        stacklevel=5,
    )


def find_library(home: Path) -> Path | None:
    """Return the library file in ``home``, the newest if an older build left another one."""
    found = [path for path in home.glob("_C*") if path.suffix in _SUFFIXES]
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def try_load(path: Path | None) -> LoadResult:
    """Load ``path`` if it fits the running torch. Never raises for a bad file: see ``error``."""
    if path is None:
        return LoadResult(None, "no compiled library is installed")
    try:
        built_for = built_for_torch(path)
        if built_for is None:
            return LoadResult(path, f"{path.name} is not a library of MMPlus, or is damaged")
        if _minor(built_for) != _minor(torch.__version__):
            return LoadResult(
                path, f"{path.name} was built for torch {built_for}, this is {torch.__version__}"
            )
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return LoadResult(path, f"{path.name} cannot be loaded: {str(error).splitlines()[0]}")
    return LoadResult(path, None)


def built_for_torch(path: Path) -> str | None:
    """Read from the library file, without loading it, which torch it was built for."""
    match = _MARKER.search(path.read_bytes())
    return None if match is None else match.group(1).decode()


def _minor(version: str) -> tuple[str, ...]:
    """The part of a torch version within which its C++ interface stays the same."""
    return tuple(version.split("+")[0].split(".")[:2])


def _switched_off() -> bool:
    return os.environ.get("MMPLUS_WITH_OPS", "").strip().lower() in ("0", "false", "no", "off")
