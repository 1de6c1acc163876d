"""A checkpoint made small and impersonal, to be given away."""

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmdet_plus.engine.errors import UserError
from mmseg_plus.common.compat import load_from_local, use_safe_checkpoint_loading
from mmseg_plus.common.files import write_file

# Parts that training alone uses: MaskPlus's quasi-multitask branch.
_TRAINING_ONLY = ("quasi_branch",)
_KEPT_META = ("dataset_meta", "epoch", "iter", "mmengine_version", "seed")


def published(checkpoint: Mapping[str, Any], half: bool = False) -> dict[str, Any]:
    """Keep of a checkpoint what its users need.

    The optimiser, the history of the losses and the config's text, which tells paths of the
    machine, are left out, and so are the weights of parts that no test runs; classes, seed and
    length of the training stay.

    Args:
        checkpoint: As mmengine writes it: ``state_dict`` and ``meta``.
        half: Store weights of two or more dimensions as float16. Biases and the statistics of
            normalisation, which may be very small or large, keep their type. A model takes either
            type when it loads them.

    Returns:
        ``meta`` and ``state_dict`` with tensors of their own on the CPU.

    Raises:
        ValueError: There is no ``state_dict``, or a weight is beyond float16's range.
    """
    weights = checkpoint.get("state_dict")
    if not isinstance(weights, Mapping):
        raise ValueError("not a checkpoint of a training: it has no 'state_dict'")
    meta = checkpoint.get("meta") or {}
    return {
        "meta": {key: meta[key] for key in _KEPT_META if key in meta},
        "state_dict": {
            name: (_halved(name, value) if half else value).detach().cpu().clone()
            for name, value in weights.items()
            if not set(name.split(".")) & set(_TRAINING_ONLY)
        },
    }


def _halved(name: str, value: Tensor) -> Tensor:
    if value.ndim < 2 or not value.is_floating_point():
        return value
    half = value.half()
    if not torch.equal(half.isfinite(), value.isfinite()):
        raise ValueError(f"{name}: values up to {value.abs().max():.3g} do not fit float16")
    return half


def publish(source: str | os.PathLike, target: str | os.PathLike, half: bool = False) -> str:
    """Write the published form of a checkpoint file.

    Args:
        source: A checkpoint of a training.
        target: Where the small one goes; it appears whole or not at all.
        half: As in :func:`published`.

    Returns:
        The first eight hex digits of the file's SHA-256, by which model zoos name their files.

    Raises:
        UserError: The file is missing, or cannot be published.
    """
    use_safe_checkpoint_loading()
    try:
        small = published(load_from_local(str(source), "cpu"), half)
    except (FileNotFoundError, ValueError) as error:
        raise UserError(f"{source}: {error}") from error
    buffer = io.BytesIO()
    torch.save(small, buffer)
    write_file(Path(target), buffer.getvalue())
    return hashlib.sha256(buffer.getvalue()).hexdigest()[:8]
