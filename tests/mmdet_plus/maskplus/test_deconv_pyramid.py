"""The deconvolutional pyramid beside its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmdet_plus.maskplus import DeconvPyramid


@pytest.fixture
def pyramid():
    """With a last convolution that does something."""
    torch.manual_seed(0)
    module = DeconvPyramid(6)
    module.init_weights()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)
    return module


def test_up_twice_and_down_twice_with_sums_at_28_and_14(pyramid):
    x = torch.randn(3, 6, 14, 14)
    weights = dict(pyramid.state_dict())

    def up(i, x):
        return F.conv_transpose2d(x, weights[f"up.{i}.weight"], weights[f"up.{i}.bias"], stride=2)

    def down(i, x):
        weight, bias = weights[f"down.{i}.weight"], weights[f"down.{i}.bias"]
        return F.conv2d(x, weight, bias, stride=2, padding=1)

    at_28 = up(0, x).relu()
    at_56 = up(1, at_28).relu()
    assert at_28.shape[2:] == (28, 28) and at_56.shape[2:] == (56, 56)
    back_at_28 = down(0, at_56).relu() + at_28
    expected = down(1, back_at_28) + x
    assert expected.shape == x.shape
    torch.testing.assert_close(pyramid(x), expected)


def test_layers_and_sizes(pyramid):
    sizes = []
    for layer in (*pyramid.up, *pyramid.down):
        layer.register_forward_hook(lambda layer, x, y: sizes.append(tuple(y.shape[1:])))
    pyramid(torch.randn(2, 6, 14, 14))
    assert sizes == [(6, 28, 28), (6, 56, 56), (6, 28, 28), (6, 14, 14)]
    assert all(layer.stride == (2, 2) for layer in (*pyramid.up, *pyramid.down))
    assert sum(layer.weight.shape[0] for layer in DeconvPyramid().up) == 2 * 256


@pytest.mark.parametrize("init", [True, False])
def test_it_starts_as_identity(init):
    module = DeconvPyramid(6)
    if init:
        module.init_weights()
    x = torch.randn(2, 6, 14, 14)
    assert torch.equal(module(x), x)
    # The layers before the last one are not at zero, or none of them could ever learn.
    assert all(layer.weight.abs().sum() > 0 for layer in (*module.up, module.down[0]))
    module(x).square().sum().backward()
    assert module.down[1].weight.grad.abs().sum() > 0


def test_no_roi(pyramid):
    out = pyramid(torch.zeros(0, 6, 14, 14))
    assert out.shape == (0, 6, 14, 14)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in pyramid.parameters())
