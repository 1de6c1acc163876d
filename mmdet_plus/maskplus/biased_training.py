"""Biased training (sections 3.5 and 4.8): the mask loss weighs more in the first half."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch import nn

from mmdet_plus.engine.errors import UserError


@HOOKS.register_module()
class BiasedTrainingHook(Hook):
    """Multiplies losses by alpha, and by 1 from a point of the training on.

    ``L = L_cls + L_box + alpha L_mask``. The weight is computed in every iteration from where the
    training stands, so that a resumed training has the weight of an uninterrupted one, and a
    training whose length was changed switches at its own half. The losses in the log are those
    that are trained on; the weight stands beside them as ``biased_weight``.

    Args:
        losses: Which: names as in the log, with ``*`` for anything. By default the mask losses
            of all stages, the quasi-multitask ones among them. As in mmengine, a loss has "loss"
            in its name; accuracies beside them are never touched.
        weight: alpha before the switch, 0 or more.
        switch: Where it ends: a share of the training in [0, 1], or a number of iterations or
            epochs.
        by: What ``switch`` counts: 'fraction', 'iter' or 'epoch'.

    Raises:
        ValueError: A setting is out of range.
        UserError: One of ``losses`` is not among the model's in the first iteration, or ``by`` is
            'epoch' in a training that counts iterations alone.
    """

    def __init__(
        self,
        losses: Sequence[str] = ("*loss_mask*",),
        weight: float = 1.5,
        switch: float = 0.5,
        by: Literal["fraction", "iter", "epoch"] = "fraction",
    ) -> None:
        if isinstance(losses, str):
            losses = (losses,)
        if not losses:
            raise ValueError("losses: name at least one")
        if weight < 0:
            raise ValueError(f"weight must be 0 or more, got {weight}")
        if by not in ("fraction", "iter", "epoch"):
            raise ValueError(f"by must be 'fraction', 'iter' or 'epoch', got {by!r}")
        if switch < 0 or (by == "fraction" and switch > 1):
            raise ValueError(
                f"switch must be {'in [0, 1]' if by == 'fraction' else '0 or more'}, got {switch}"
            )
        self.losses = tuple(losses)
        self.weight = weight
        self.switch = switch
        self.by = by
        self.current = 1.0
        self._checked = False
        self._handle: Any = None

    def before_train(self, runner: Runner) -> None:
        """Listen to the losses that the model returns."""
        if self.by == "epoch" and isinstance(runner.train_loop, IterBasedTrainLoop):
            # Its epoch stays 0, and the weight would never fall.
            raise UserError(
                "BiasedTrainingHook: by='epoch' needs a training in epochs, and this one counts "
                "iterations; set by='iter' or by='fraction'"
            )
        self._checked = False
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._handle = model.register_forward_hook(self._weigh, with_kwargs=True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Find the weight of this iteration."""
        done = {
            "fraction": runner.iter / runner.max_iters,
            "iter": runner.iter,
            "epoch": runner.epoch,
        }[self.by]
        self.current = self.weight if done < self.switch else 1.0
        runner.message_hub.update_scalar("train/biased_weight", self.current)

    def after_train(self, runner: Runner) -> None:
        """Leave the model as it was."""
        self._handle.remove()

    def _weigh(self, model: nn.Module, args: tuple, kwargs: dict, output: Any) -> Any:
        mode = kwargs.get("mode", args[2] if len(args) > 2 else None)
        if mode != "loss":
            return output
        if not self._checked:
            self._check(model, output)
        return {
            name: value
            if not any(_is_loss(name, pattern) for pattern in self.losses)
            else [self.current * part for part in value]
            if isinstance(value, (list, tuple))
            else self.current * value
            for name, value in output.items()
        }

    def _check(self, model: nn.Module, output: dict) -> None:
        """Find every pattern among the losses, once: a batch of no RoI may lack some of them."""
        for pattern in self.losses:
            if not any(_is_loss(name, pattern) for name in output):
                raise UserError(
                    f"BiasedTrainingHook: no loss is called {pattern!r}; "
                    f"{type(model).__name__} has {', '.join(n for n in output if 'loss' in n)}"
                )
        self._checked = True


def _is_loss(name: str, pattern: str) -> bool:
    return "loss" in name and fnmatchcase(name, pattern)
