"""Checkpoint files of other models turned into ours; the conversions themselves are beside."""

import io
import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmdet_plus.engine.errors import UserError
from mmseg_plus.bpr.checkpoints import without_prefix
from mmseg_plus.common.compat import load_from_local, use_safe_checkpoint_loading
from mmseg_plus.common.files import write_file

from .adelaidet import adelaidet_blendmask, adelaidet_unused
from .mask_rcnn import mask_rcnn_to_mr_rcnn

# Where from and how far a model was trained, and on which classes, by mmdet 2 and 3.
_KEPT_META = ("CLASSES", "PALETTE", "dataset_meta", "epoch", "iter", "mmdet_version", "seed")


class Converter(NamedTuple):
    """One direction of conversion: what it does, and the function from state dict to state dict.

    A converter that does not use all of a state dict lists what it leaves by ``unused``.
    """

    summary: str
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
    unused: Callable[[Mapping[str, Tensor]], list[str]] = lambda weights: []


CONVERTERS = {
    "blendmask": Converter(
        "AdelaiDet's BlendMask, instance or panoptic, to ours",
        adelaidet_blendmask,
        adelaidet_unused,
    ),
    "mask-rcnn": Converter(
        "mmdet's Mask R-CNN to MR R-CNN, whose refining heads start as copies of the trained ones",
        mask_rcnn_to_mr_rcnn,
    ),
    "bpr": Converter(
        "a refinement network of BPR's authors, prefixes before its names taken off",
        without_prefix,
    ),
}


def convert_file(
    kind: str,
    source: str | os.PathLike,
    target: str | os.PathLike,
    tell_unused: Callable[[list[str]], object] | None = None,
) -> int:
    """Convert a checkpoint file.

    Args:
        kind: A key of ``CONVERTERS``.
        source: A checkpoint with a ``state_dict`` (or, of detectron2, a ``model``), or a state
            dict alone.
        target: Where the converted one goes; it appears whole or not at all. It holds the weights,
            the classes and the length of the training, and nothing else of the source.
        tell_unused: Called with the names of the source's tensors that were not used, once the
            target is written.

    Returns:
        The number of tensors written.

    Raises:
        UserError: The source is missing, is no checkpoint, or is not of the kind's model; or the
            target cannot be written.
        pickle.UnpicklingError: The source cannot be read.
    """
    use_safe_checkpoint_loading()
    try:
        checkpoint = load_from_local(str(source), "cpu")
        if not isinstance(checkpoint, Mapping):
            raise ValueError(f"not a checkpoint: it holds a {type(checkpoint).__name__}")
        weights = checkpoint.get("state_dict", checkpoint)
        if weights is checkpoint and isinstance(checkpoint.get("model"), Mapping):
            weights = checkpoint["model"]
        if not all(isinstance(value, (Tensor, np.ndarray)) for value in weights.values()):
            raise ValueError("not a checkpoint: it has no 'state_dict', nor is it one")
        converter = CONVERTERS[kind]
        converted = converter.convert(weights)
    except (FileNotFoundError, IsADirectoryError, ValueError) as error:
        raise UserError(f"{source}: {error}") from error
    meta = checkpoint.get("meta") or {} if weights is not checkpoint else {}
    buffer = io.BytesIO()
    torch.save(
        {"meta": {k: meta[k] for k in _KEPT_META if k in meta}, "state_dict": converted}, buffer
    )
    try:
        write_file(target, buffer.getvalue())
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error
    if tell_unused is not None:
        tell_unused(converter.unused(weights))
    return len(converted)
