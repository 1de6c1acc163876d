"""Stops a panoptic training or test whose model counts other classes than its data has.

Labels carry no names: those of a model with another number of things are other classes, and the
label after its last class is void. mmdet's figures are wrong then without notice, and its training
leaves out the labels that it has no channel for.
"""

from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmdet_plus.engine.config import add_hook, add_import
from mmdet_plus.engine.errors import UserError

# mmdet's names of the parts that are told both numbers.
_HEADS = ("panoptic_fusion_head", "panoptic_head", "semantic_head")
_LOADERS = ("train", "val", "test")


@HOOKS.register_module()
class ClassMatchHook(Hook):
    """Compares model and data sets when all are built, before weights are loaded.

    Raises:
        UserError: See :func:`check_model_classes`.
    """

    def before_run(self, runner: Runner) -> None:
        """Look at the data sets of the loops that this run has built."""
        for kind in _LOADERS:
            loop = getattr(runner, f"_{kind}_loop", None)
            if isinstance(loop, BaseLoop):
                source = f"{kind}_dataloader of {runner.cfg.filename or 'the config'}"
                check_model_classes(runner.model, loop.dataloader.dataset, source)


def add_class_match(cfg: Config) -> None:
    """Have a config's run compare its panoptic model with its data; other models need no hook."""
    if any(cfg.model.get(name) for name in _HEADS):
        add_hook(cfg, dict(type="mmengine.ClassMatchHook"))
        add_import(cfg, "mmdet_plus.engine")


def check_model_classes(model: nn.Module, dataset: Any, source: str) -> None:
    """Compare a panoptic model's numbers of things and stuff with those of a data set.

    Args:
        model: Any model. One without a ``panoptic_fusion_head`` of ``num_things_classes`` and
            ``num_stuff_classes`` passes; those of ``semantic_head`` and ``panoptic_head`` are
            looked at, too.
        dataset: Any data set, wrapped or not. One whose metainfo tells neither ``thing_classes``
            nor ``stuff_classes`` passes.
        source: What to call the data set in messages.

    Raises:
        UserError: They differ.
    """
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    heads = {name: found for name in _HEADS if (found := _numbers(getattr(model, name, None)))}
    if "panoptic_fusion_head" not in heads:
        return
    for part in _leaves(dataset):
        told = _classes_of(part)
        if told is None:
            continue
        things, stuff = told
        for name, (own_things, own_stuff) in heads.items():
            total = things is None and own_things + own_stuff == stuff
            if total or (own_things, own_stuff) == told:
                continue
            file = getattr(part, "ann_file", None) or type(part).__name__
            has = (
                f"{stuff} classes in all"
                if things is None
                else f"{things} thing and {stuff} stuff classes"
            )
            raise UserError(
                f"{file}: the data set ({source}) has {has}, but the model's {name} has "
                f"{own_things} thing and {own_stuff} stuff classes; {_mend(model, heads, *told)}"
            )


def _mend(model: nn.Module, heads: dict[str, tuple], things: int | None, stuff: int) -> str:
    values = ("things", "stuff") if things is None else (things, stuff)
    fields = "num_things_classes={}, num_stuff_classes={}".format(*values)
    settings = ", ".join(f"{name}=dict({fields})" for name in heads)
    boxes = ""
    if hasattr(model, "roi_head") or hasattr(model, "bbox_head"):
        boxes = f" (and num_classes={values[0]} of its box and mask heads)"
    return (
        f"set model=dict({settings}){boxes} in the config, or the data set's `metainfo`, where it "
        "is that which is wrong"
    )


def _numbers(head: Any) -> tuple[int, int] | None:
    numbers = (getattr(head, f"num_{kind}_classes", None) for kind in ("things", "stuff"))
    things, stuff = numbers
    return (things, stuff) if isinstance(things, int) and isinstance(stuff, int) else None


def _leaves(dataset: Any) -> Iterator[Any]:
    """Walk through wrappers to the data sets that read files."""
    inner = getattr(dataset, "dataset", None)
    parts = getattr(dataset, "datasets", None) if inner is None else [inner]
    if parts is None:
        yield dataset
        return
    for part in parts:
        yield from _leaves(part)


def _classes_of(dataset: Any) -> tuple[int | None, int] | None:
    """A data set's numbers of things and stuff; None where it has no such.

    mmdet's own data set keeps COCO's things beside classes of one's own: what is a thing is not
    known then, but how many classes there are (``(None, number)``).
    """
    # Not above, where configs of mmseg would import it, too.
    from mmdet.datasets import CocoPanopticDataset

    from mmdet_plus.datasets.panoptic_checks import things_told

    meta = getattr(dataset, "metainfo", None) or {}
    if "classes" not in meta:
        return None
    try:
        told = things_told(meta)
    except UserError:
        own = isinstance(dataset, CocoPanopticDataset)
        return (None, len(meta["classes"])) if own else None
    return (sum(told.values()), len(told) - sum(told.values())) if told else None
