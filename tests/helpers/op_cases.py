"""What the tests of the ops share: cases, slow references, both ways to compute."""

import math

import pytest
import torch

from mmplus_ops import has_compiled_ops

NAN, INF = math.nan, math.inf

needs_compiled_ops = pytest.mark.skipif(
    not has_compiled_ops(), reason="about the compiled kernels, which are not in use"
)
# Both ways that a call can go, for `use_way`.
WAYS = [pytest.param("compiled", marks=needs_compiled_ops), "plain"]


def use_way(monkeypatch, way):
    """Send calls to the compiled kernels or to the plain forms."""
    if way == "plain":
        monkeypatch.setenv("MMPLUS_WITH_OPS", "0")


def random_rois(k, n=2, size=64.0, generator=None, dtype=torch.float64):
    """RoIs of all sizes, some of them leaving the image of ``size`` pixels: (K, 5)."""
    centre = torch.rand(k, 2, generator=generator, dtype=dtype) * size
    half = torch.rand(k, 2, generator=generator, dtype=dtype) * size / 2 + 0.1
    image = torch.randint(0, n, (k, 1), generator=generator).to(dtype)
    return torch.cat([image, centre - half, centre + half], dim=1)


# RoIs that a detector in trouble makes, beside an image of 32 x 32: (name, box).
ODD_BOXES = [
    ("inverted", (20.0, 22.0, 4.0, 6.0)),
    ("inverted along x", (20.0, 3.0, 4.0, 16.0)),
    ("a point", (9.0, 9.0, 9.0, 9.0)),
    ("a line", (9.0, 2.0, 9.0, 20.0)),
    ("outside", (500.0, 500.0, 540.0, 530.0)),
    ("half outside", (-20.0, 20.0, 12.0, 60.0)),
    ("NaN", (NAN, 2.0, 9.0, 9.0)),
    ("infinite", (1.0, 2.0, INF, 9.0)),
    ("infinite everywhere", (-INF, -INF, INF, INF)),
    ("smaller than a cell", (9.1, 9.2, 9.3, 9.4)),
    ("far larger than the image", (-900.0, -700.0, 800.0, 1000.0)),
]


def odd_rois(dtype=torch.float64):
    """All of ``ODD_BOXES``, in image 0: (K, 5)."""
    return torch.tensor([(0.0, *box) for _, box in ODD_BOXES], dtype=dtype)


def random_masks(n, rows, cols, generator, blobs=3):
    """Masks of some ellipses with ragged edges: (N, H, W) bool."""
    ys = torch.arange(rows)[:, None].float()
    xs = torch.arange(cols)[None].float()
    masks = torch.zeros(n, rows, cols, dtype=torch.bool)
    for mask in masks:
        for y, x, tall, wide in torch.rand(blobs, 4, generator=generator).tolist():
            reach = ((ys - y * rows) / (1 + tall * rows / 3)) ** 2
            reach = reach + ((xs - x * cols) / (1 + wide * cols / 3)) ** 2
            mask |= reach + 0.2 * torch.rand(rows, cols, generator=generator) < 1
    return masks


def layouts(value):
    """The same values in other memory layouts: {name: tensor}."""
    last = value.dim() - 1
    found = {
        "transposed": value.transpose(last - 1, last).contiguous().transpose(last - 1, last),
        "part of a larger tensor": torch.stack([value, value], dim=-1)[..., 0],
        "moved to the end": value.movedim(0, last).contiguous().movedim(last, 0),
    }
    if value.dim() == 4:
        found["channels last"] = value.contiguous(memory_format=torch.channels_last)
    return found


def with_grads(function, *tensors, upstream):
    """The result of ``function`` and its gradients to the tensors, for one upstream gradient."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    return out.detach(), *torch.autograd.grad(out, leaves, upstream.to(out.dtype))


def assert_all_close(ours, theirs, **tolerance):
    """Element by element of two tuples of tensors."""
    assert len(ours) == len(theirs)
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        torch.testing.assert_close(a, b, msg=lambda text, i=index: f"item {i}: {text}", **tolerance)
