"""Stops a test, or a training of a part, whose checkpoint belongs to another config."""

import ast
import copy
import re
from typing import Any

from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn

from mmdet_plus.engine.errors import UserError

_SHOWN = 4


@HOOKS.register_module()
class CheckpointMatchHook(Hook):
    """Compares a checkpoint with the model when mmengine has read it, before it is put to use.

    Args:
        allow_mismatch: Warn instead of stopping.

    Raises:
        UserError: Weights are missing, left over or of another shape.
    """

    priority = "VERY_LOW"

    def __init__(self, allow_mismatch: bool = False) -> None:
        self.allow_mismatch = allow_mismatch

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check names and shapes of the weights, then the names of the classes."""
        model = runner.model
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        missing, unexpected, reshaped = compare_weights(model, checkpoint)
        if missing or unexpected or reshaped:
            message = describe_mismatch(
                str(runner._load_from),
                checkpoint,
                runner.cfg.filename or "the config",
                type(model).__name__,
                {"missing": missing, "unexpected": unexpected, "of another shape": reshaped},
            )
            if not self.allow_mismatch:
                raise UserError(message)
            runner.logger.warning(message)
        dataset = runner.test_dataloader.dataset
        warning = compare_classes(checkpoint, getattr(dataset, "metainfo", {}))
        if warning:
            runner.logger.warning(warning)


@HOOKS.register_module()
class FrozenWeightsHook(Hook):
    """Stops a training that would leave random weights as they are.

    A model with ``occlusion_only`` trains its occlusion head and nothing else: the checkpoint that
    the training starts from must have all other weights.

    Raises:
        UserError: Some of them are missing or of another shape.
    """

    priority = "VERY_LOW"

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Check names and shapes of the frozen weights."""
        model = runner.model
        while is_model_wrapper(model):
            model = model.module
        missing, _, reshaped = compare_weights(copy.deepcopy(model), checkpoint)
        names = {"missing": missing, "of another shape": reshaped}
        names = {
            what: [name for name in found if not name.startswith("occlusion_head.")]
            for what, found in names.items()
        }
        if any(names.values()):
            raise UserError(
                describe_mismatch(
                    str(runner._load_from),
                    checkpoint,
                    runner.cfg.filename or "the config",
                    type(model).__name__,
                    names,
                    "With occlusion_only these weights stay as they are loaded: train the model "
                    "without its occlusion head first, and give that checkpoint as load_from.",
                )
            )


def compare_weights(model: nn.Module, checkpoint: dict) -> tuple[list[str], list[str], list[str]]:
    """Find out which of a checkpoint's weights do not fit a model.

    Args:
        model: The bare model. Where names differ it is loaded with the weights, so that its own
            conversions of old names count. A model that also completes the weights of another
            one, to start a training from them, says so by ``parameters_untrained_by``.
        checkpoint: With ``state_dict``, or a bare state dictionary.

    Returns:
        The names that the checkpoint lacks, those that the model does not know, and those whose
        shapes differ (with both shapes).
    """
    weights = checkpoint.get("state_dict", checkpoint)
    weights = {re.sub(r"^module\.", "", name): value for name, value in weights.items()}
    own = model.state_dict()
    reshaped = [
        f"{name} {_shape(weights[name])} instead of {_shape(own[name])}"
        for name in own
        if name in weights and _shape(weights[name]) != _shape(own[name])
    ]
    if not reshaped and own.keys() == weights.keys():
        return [], [], []
    untrained = getattr(model, "parameters_untrained_by", lambda weights: [])(weights)
    if untrained:
        return untrained, [], reshaped
    try:
        keys = model.load_state_dict(weights, strict=False)
        # It went through, so the model converted the shapes that looked wrong.
        missing, unexpected, reshaped = keys.missing_keys, keys.unexpected_keys, []
    except (RuntimeError, KeyError):
        missing = [name for name in own if name not in weights]
        unexpected = [name for name in weights if name not in own]
    # Files from before torch 0.4.1 lack this counter, which nothing at test time reads.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    return missing, list(unexpected), reshaped


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(getattr(value, "shape", ()))


def describe_mismatch(
    path: str,
    checkpoint: dict,
    config: str,
    model: str,
    names: dict[str, list[str]],
    mend: str = "Give the config that it was trained with, or --allow-mismatch to go on all the "
    "same.",
) -> str:
    """Word the message on a checkpoint that does not fit.

    Args:
        path: The checkpoint file.
        checkpoint: Its content; ``meta`` tells the config it was trained with.
        config: The file of the config at hand.
        model: The class of the model at hand.
        names: What is wrong, and the weights concerned.
        mend: What to do.

    Returns:
        One line: counts, some names, both configs, the mend.
    """
    parts = [
        f"{len(items)} {what} ({', '.join(items[:_SHOWN])}{', ...' if len(items) > _SHOWN else ''})"
        for what, items in names.items()
        if items
    ]
    origin = training_of(checkpoint)
    origin = f"It was trained as {origin}. " if origin else ""
    return (
        f"{path}: these weights are not of {config} ({model}): {'; '.join(parts)}. {origin}{mend}"
    )


def training_of(checkpoint: dict) -> str:
    """Tell from a checkpoint's records which config and model it was trained with.

    Args:
        checkpoint: With or without ``meta``. The config's text is parsed, never run.

    Returns:
        For example ``mask-rcnn_r50_fpn_1x_coco (MaskRCNN)``; empty if nothing is recorded.
    """
    meta = checkpoint.get("meta") or {}
    # The runner calls an experiment <config's name>_<date>_<time>; see also build_runner.
    name = re.sub(r"(_run\d+)?_\d{8}_\d{6}$", "", str(meta.get("experiment_name") or ""))
    kind = _model_type(str(meta.get("cfg") or meta.get("config") or ""))
    return f"{name} ({kind})" if name and kind else name or kind


def _model_type(text: str) -> str:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return ""
    for statement in tree.body:
        if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Call):
            continue
        if getattr(statement.targets[0], "id", None) != "model":
            continue
        for keyword in statement.value.keywords:
            if keyword.arg == "type" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return ""


def compare_classes(checkpoint: dict, metainfo: dict) -> str:
    """Compare the class names of a checkpoint with those of the data.

    Args:
        checkpoint: Its ``meta`` may hold ``dataset_meta`` (mmengine) or ``CLASSES`` (older).
        metainfo: Of the data set tested on; ``classes`` are its class names, in order of labels.

    Returns:
        A warning, or nothing if the names agree or one side has none.
    """
    meta = checkpoint.get("meta") or {}
    trained = (meta.get("dataset_meta") or {}).get("classes") or meta.get("CLASSES")
    tested = metainfo.get("classes")
    if not trained or not tested or tuple(trained) == tuple(tested):
        return ""
    if len(trained) != len(tested):
        difference = f"{len(trained)} classes against {len(tested)}"
    else:
        label = next(
            i for i, pair in enumerate(zip(trained, tested, strict=True)) if len({*pair}) > 1
        )
        difference = f"label {label} is {trained[label]!r} there and {tested[label]!r} here"
    return (
        f"The checkpoint was trained on other classes than the data has ({difference}): "
        "its metrics may be meaningless."
    )
