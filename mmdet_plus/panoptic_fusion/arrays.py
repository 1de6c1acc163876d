"""Tensors and NumPy arrays alike."""

from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", Tensor, np.ndarray)


def to_tensors(*values: Array) -> tuple[list[Tensor], bool]:
    """View arrays as tensors.

    Args:
        values: Tensors, or NumPy arrays; the last one tells which.

    Returns:
        The tensors, which share memory with what was given where PyTorch can; and whether that was
        NumPy arrays.
    """
    arrays = isinstance(values[-1], np.ndarray)
    if arrays:
        # PyTorch takes no views with negative strides.
        values = tuple(map(np.ascontiguousarray, values))
    return [torch.as_tensor(value) for value in values], arrays
