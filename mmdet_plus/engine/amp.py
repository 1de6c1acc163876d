"""Mixed precision without a GPU."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class CPUAmpOptimWrapper(OptimWrapper):
    """Runs the forward pass in bfloat16 where that is safe; needs no scaling of the loss.

    mmcv's NMS and RoIAlign have no bfloat16 kernels for the CPU. For the rest of the process they
    compute in float32 what they get in bfloat16, as torch does with its own functions of that kind.
    """

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        _keep_float32()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Enter autocast around the forward pass of one iteration."""
        with super().optim_context(model), torch.autocast("cpu", dtype=torch.bfloat16):
            yield


def _keep_float32() -> None:
    from mmcv.ops.nms import NMSop
    from mmcv.ops.roi_align import RoIAlignFunction

    for function in (NMSop, RoIAlignFunction):
        if not getattr(function, "keeps_float32", False):
            function.forward = staticmethod(_in_float32(function.forward))
            function.backward = staticmethod(_in_float32(function.backward))
            function.keeps_float32 = True


def _in_float32(kernel: Callable) -> Callable:
    """Let a kernel see float32 for bfloat16, and its caller bfloat16 for what it computes."""

    @functools.wraps(kernel)
    def wrapped(ctx: Any, *args: Any) -> Any:
        half = [isinstance(arg, torch.Tensor) and arg.dtype == torch.bfloat16 for arg in args]
        if not any(half):
            return kernel(ctx, *args)
        args = [arg.float() if flag else arg for arg, flag in zip(args, half, strict=True)]
        output = kernel(ctx, *args)
        if isinstance(output, torch.Tensor) and output.is_floating_point():
            output = output.bfloat16()
        return output

    return wrapped
