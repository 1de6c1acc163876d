"""Where the two OpenMMLab stacks, or two versions of torch, differ.

Imports torch and mmengine alone, so that detection and segmentation configs can both use it.
"""

import contextlib
import functools
import inspect
import os
import pickle
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
import torch
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.logging import HistoryBuffer
from mmengine.runner import checkpoint as mmengine_checkpoint
from mmengine.utils import digit_version

# From this version on torch.load unpickles nothing but weights unless told otherwise.
_SAFE_BY_DEFAULT = "2.6.0"
# numpy moved its core package in version 2; a checkpoint may come from either side of the move.
_NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")


def stack() -> str:
    """Name the installed OpenMMLab stack.

    Returns:
        ``'onedl'`` where the maintained forks are installed, ``'openmmlab'`` otherwise.
    """
    try:
        metadata.version("onedl-mmengine")
    except metadata.PackageNotFoundError:
        return "openmmlab"
    return "onedl"


def versions() -> dict[str, str]:
    """Tell what a figure was made with.

    Returns:
        Versions by distribution: torch and the packages of the installed stack.
    """
    names = ("torch", "mmplus", "mmcv", "mmengine", "mmdet", "mmsegmentation")
    if stack() == "onedl":
        fork = {"mmdet": "onedl-mmdetection"}
        names = (*names[:2], *(fork.get(name, f"onedl-{name}") for name in names[2:]))
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def find_mmseg_configs() -> None:
    """Let configs inherit from ``mmseg::`` on the maintained forks.

    mmengine looks such a base up under the distribution's name, mmsegmentation, which the fork has
    not got; under the name of the package it finds it. May be called any number of times.
    """
    if stack() == "onedl":
        MODULE2PACKAGE["mmseg"] = "mmseg"


def available_cores() -> int:
    """Count the processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _history_buffer_method(owner: Any, name: str) -> Callable:
    """Stand in for ``getattr`` inside checkpoints, good for ``HistoryBuffer``'s methods alone.

    Pickle protocol 2 writes the buffer's table of statistics as ``getattr(HistoryBuffer, 'mean')``.
    The built-in would let a file reach any attribute of any allowed class.
    """
    method = getattr(owner, name, None) if owner is HistoryBuffer else None
    if name.startswith("_") or not inspect.isfunction(method):
        raise pickle.UnpicklingError(f"getattr({owner!r}, {name!r}) is not allowed in a checkpoint")
    return method


def checkpoint_globals() -> list:
    """List what an mmengine checkpoint holds besides tensors and plain Python objects.

    Returns:
        Entries for ``torch.serialization.add_safe_globals``: mmengine's history of logged values
        and the parts of which numpy arrays and scalars are made, under their names of either
        numpy generation.
    """
    kinds = ["bool", "f2", "f4", "f8", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8))]
    dtypes = dict.fromkeys(type(np.dtype(kind)) for kind in kinds)
    rebuild_array = np.zeros(1).__reduce__()[0]
    rebuild_scalar = np.float64(1).__reduce__()[0]
    entries: list = [HistoryBuffer, np.ndarray, np.dtype, *dtypes]
    entries += [(rebuild_array, f"{core}._reconstruct") for core in _NUMPY_CORES]
    entries += [(rebuild_scalar, f"{core}.scalar") for core in _NUMPY_CORES]
    entries.append((_history_buffer_method, "builtins.getattr"))
    return entries


def _can_admit_by_name() -> bool:
    return digit_version(torch.__version__) >= digit_version(_SAFE_BY_DEFAULT)


def _weights_only() -> bool:
    """What to ask of ``torch.load``; said outright, as its default is not the same everywhere."""
    trusted = os.environ.get("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "0") in ("1", "y", "yes", "true")
    return _can_admit_by_name() and not trusted


def load_from_local(filename: str, map_location: Any = None) -> Any:
    """Read a checkpoint from disk, running no code that the file may hold (from torch 2.6 on).

    Args:
        filename: Path of the file; ``~`` is expanded.
        map_location: As for ``torch.load``.

    Returns:
        What was saved: a checkpoint dictionary of mmengine's, or a bare state dictionary.

    Raises:
        FileNotFoundError: There is no such file.
        pickle.UnpicklingError: The file is damaged, or holds objects other than weights and
            mmengine's records. torch's ``TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1`` lets trusted files
            of the second kind through.
    """
    filename = os.path.expanduser(filename)
    if not os.path.isfile(filename):
        raise FileNotFoundError(f"{filename} can not be found.")
    try:
        return torch.load(filename, map_location=map_location, weights_only=_weights_only())
    except pickle.UnpicklingError as error:
        raise pickle.UnpicklingError(
            f"{filename}: not loaded, because it holds more than weights and training records, "
            "or is damaged. If you trust its origin, set TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1. "
            f"({_first_line(error)})"
        ) from error
    except (EOFError, LookupError, RuntimeError, UnicodeDecodeError, ValueError) as error:
        raise pickle.UnpicklingError(
            f"{filename}: not a checkpoint, or a damaged one; copy or download it again. "
            f"({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def use_safe_checkpoint_loading() -> None:
    """Make mmengine load checkpoints, its own included, with ``weights_only=True``.

    mmengine 0.10.7 passes no choice to ``torch.load``, so that from torch 2.6 on no checkpoint with
    logged history resumes; its fork falls back to unrestricted unpickling. Both now read exactly
    :func:`checkpoint_globals` and refuse all else. Older versions of torch are left alone, as they
    cannot admit single classes by name. Calling this again changes nothing.
    """
    if not _can_admit_by_name():
        return
    torch.serialization.add_safe_globals(checkpoint_globals())
    mmengine_checkpoint.CheckpointLoader.register_scheme(
        prefixes="", loader=load_from_local, force=True
    )
    if not isinstance(mmengine_checkpoint.load_url, functools.partial):
        mmengine_checkpoint.load_url = functools.partial(
            mmengine_checkpoint.load_url, weights_only=True
        )


def read_checkpoint_records(filename: str) -> dict:
    """Read what a checkpoint says of its training, without reading its weights.

    Args:
        filename: A local file written by mmengine.

    Returns:
        Its ``meta`` dictionary (epoch, iteration, seed, config text, dataset's classes), empty for
        a bare state dictionary.
    """
    use_safe_checkpoint_loading()
    try:
        # Mapped, not read: the weights stay on disk.
        checkpoint = torch.load(
            filename, map_location="cpu", mmap=True, weights_only=_weights_only()
        )
    except (RuntimeError, pickle.UnpicklingError):
        # The format before torch 1.6 cannot be mapped; anything else fails again, with its reason.
        checkpoint = load_from_local(filename, "cpu")
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    return meta if isinstance(meta, dict) else {}
