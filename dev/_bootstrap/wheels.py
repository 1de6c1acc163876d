"""The user's cache of wheels that take minutes to build.

Layout: ``<cache>/mmplus/wheels/<key>/<wheel>`` with ``<wheel>.sha256`` beside it. The key names all
that the compiled code depends on, so that one cache serves every clone and Python of a user.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str], home: Path) -> Path:
    """Return MMPlus's folder for wheels in the user's cache."""
    configured = environment.get("XDG_CACHE_HOME", "")
    base = Path(configured) if os.path.isabs(configured) else home / ".cache"
    return base / "mmplus" / "wheels"


def cache_key(
    *, python: str, torch: str, cuda: str | None, architectures: str, platform: str
) -> str:
    """Name the folder for one combination of binary interfaces.

    Args:
        python: implementation and version, such as ``"cp311"``.
        torch: full version, local part included (``"2.13.0+cpu"``).
        cuda: CUDA version that CUDA kernels are compiled with, or None where none are.
        architectures: GPUs that they are compiled for, such as ``"8.0;9.0+PTX"``.
        platform: such as ``"linux-x86_64"``.
    """
    device = "cpu"
    if cuda is not None:
        device = f"cuda{cuda}-" + (re.sub(r"[^\w.+]+", "_", architectures) or "any")
    return "-".join([python, f"torch{torch}", device, platform.replace("-", "_")])


def find_wheel(folder: Path, name: str, version: str) -> Path | None:
    """Return the cached wheel of ``name==version``, or None."""
    stem = name.replace("-", "_")
    return next(iter(sorted(folder.glob(f"{stem}-{version}-*.whl"))), None)


def wheel_fault(wheel: Path) -> str | None:
    """Say what is wrong with a cached wheel, or None: checksum first, then the archive itself."""
    recorded = _checksum_file(wheel)
    try:
        expected = recorded.read_text().split()
        if not expected:
            return "its checksum file is empty"
        if expected[0] != sha256(wheel):
            return "its checksum does not match"
    except FileNotFoundError:
        return "its checksum file is missing"
    except OSError as error:
        return f"it cannot be read: {error}"
    return archive_fault(wheel)


def archive_fault(wheel: Path) -> str | None:
    """Say what is wrong with the zip archive of a wheel, or None."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            broken = archive.testzip()
            if broken is not None:
                return f"its member {broken} is damaged"
            if not any(name.endswith(".dist-info/RECORD") for name in archive.namelist()):
                return "it has no RECORD, so it is no wheel"
    except (OSError, zipfile.BadZipFile) as error:
        return f"it is no readable archive: {error}"
    return None


def store_wheel(built: Path, folder: Path) -> Path:
    """Move a wheel into the cache in one step, its checksum before it; return its place.

    Raises:
        ValueError: where the built file is not a sound wheel.
    """
    fault = archive_fault(built)
    if fault is not None:
        raise ValueError(f"{built.name}: {fault}")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / built.name
    # The build may lie on another file system, where a move is no single step.
    part = folder / f".{built.name}.{os.getpid()}"
    shutil.copyfile(built, part)
    checksum = _checksum_file(target)
    checksum_part = checksum.with_name(f".{checksum.name}.{os.getpid()}")
    checksum_part.write_text(f"{sha256(part)}  {built.name}\n")
    os.replace(checksum_part, checksum)
    os.replace(part, target)
    return target


def drop_wheel(wheel: Path) -> None:
    """Remove a wheel and its checksum from the cache."""
    wheel.unlink(missing_ok=True)
    _checksum_file(wheel).unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's contents in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as source:
        for block in iter(lambda: source.read(1 << 20), b""):
            total.update(block)
    return total.hexdigest()


def _checksum_file(wheel: Path) -> Path:
    return wheel.with_name(wheel.name + ".sha256")
