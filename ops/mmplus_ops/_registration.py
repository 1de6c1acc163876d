"""Operators of the namespace ``mmplus``: schemas and fake kernels here, kernels from the library.

A schema stands here and nowhere else. The compiled library brings kernels for the devices that it
was built for; on the others, and where there is no library, the plain PyTorch form is the kernel.
So an operator exists wherever the package is imported, and torch.compile and torch.export see one
node, whatever computes it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._library import LACKING, has_compiled_ops, load_library, ops_info

_NAMESPACE = "mmplus"
_DEVICES = ("CPU", "CUDA")
# Lives as long as the process: torch forgets the operators of a library that is collected.
_LIBRARY = torch.library.Library(_NAMESPACE, "FRAGMENT")


def define(schema: str, fake: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    """Define an operator.

    Args:
        schema: ``name(Tensor a, ...) -> ...`` in torch's schema language.
        fake: Makes empty outputs of the right shape from fake inputs.
        plain: The kernel in plain PyTorch. It runs below autograd.

    Returns:
        The operator.
    """
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    torch.library.register_fake(f"{_NAMESPACE}::{name}", fake, lib=_LIBRARY)
    load_library()
    for device in _DEVICES:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"{_NAMESPACE}::{name}", device):
            _LIBRARY.impl(name, plain, device)
            if device == "CPU":
                LACKING.add(name)
    return getattr(getattr(torch.ops, _NAMESPACE), name).default


def differentiate(
    name: str, backward: Callable[..., Any], setup_context: Callable[..., None]
) -> None:
    """Give an operator its gradient, as ``torch.library.register_autograd`` does."""
    torch.library.register_autograd(
        f"{_NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY
    )


def takes_operator(value: Tensor) -> bool:
    """Tell whether a call shall go to the operator, or straight to the plain form.

    While a graph is recorded it is always the operator: only that is one node; tensors of the meta
    device too. Otherwise the plain form is called by itself where it would do the work, so that
    autograd differentiates it.

    Args:
        value: One of the tensors, for its device.
    """
    # On the meta device there are shapes only, which the fake kernels tell.
    if torch.compiler.is_compiling() or value.is_meta:
        return True
    if not has_compiled_ops():
        return False
    device = value.device.type
    return device == "cpu" or (device == "cuda" and ops_info()["cuda"])
