"""Boundary refinement beside its definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmdet_plus.maskplus import GCNBoundaryRefinement, ImprovedBoundaryRefinement
from mmdet_plus.maskplus.boundary_refinement import build_boundary_refinement

KINDS = ["improved", "gcn"]
CLASSES = 3


@pytest.fixture
def lively():
    """A refinement whose every parameter and statistic does something."""

    def build(kind):
        torch.manual_seed(0)
        module = build_boundary_refinement(kind, CLASSES)
        for name, value in module.state_dict().items():
            if "running_var" in name:
                value.uniform_(0.5, 2)
            elif "num_batches" not in name:
                value.normal_(std=0.3)
        return module.eval()

    return build


def test_dense_modules_read_the_logits_and_all_modules_before_them(lively):
    module = lively("improved")
    weights = module.state_dict()
    logits = torch.randn(2, CLASSES, 28, 28)

    def norm(x, name):
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scaled = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        return (
            scaled * weights[f"{name}.weight"][:, None, None]
            + (weights[f"{name}.bias"][:, None, None])
        )

    def prelu(x, name):
        return torch.where(x > 0, x, weights[f"{name}.weight"] * x)

    outputs = [logits]
    for number in range(4):
        x = torch.cat(outputs, 1)
        name = f"dense_modules.{number}"
        for first in (0, 3):
            x = prelu(norm(x, f"{name}.{first}"), f"{name}.{first + 1}")
            conv = f"{name}.{first + 2}"
            x = F.conv2d(x, weights[f"{conv}.weight"], weights[f"{conv}.bias"], padding=1)
        assert x.shape == (2, 4, 28, 28)
        outputs.append(x)
    residual = F.conv2d(torch.cat(outputs, 1), weights["residual.weight"], weights["residual.bias"])
    torch.testing.assert_close(module(logits), logits + residual, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3, 80])
def test_four_modules_of_the_six_layers_of_the_paper(channels):
    module = ImprovedBoundaryRefinement(channels)
    assert len(module.dense_modules) == 4
    for number, dense in enumerate(module.dense_modules):
        norm, act, conv, second_norm, second_act, second = dense
        read = channels + 4 * number
        assert isinstance(norm, nn.BatchNorm2d) and isinstance(second_norm, nn.BatchNorm2d)
        assert isinstance(act, nn.PReLU) and isinstance(second_act, nn.PReLU)
        assert (norm.num_features, second_norm.num_features) == (read, 16)
        assert conv.weight.shape == (16, read, 3, 3) and second.weight.shape == (4, 16, 3, 3)
    assert module.residual.weight.shape == (channels, channels + 16, 1, 1)


def test_the_block_of_gcn_has_two_convolutions(lively):
    module = lively("gcn")
    weights = list(module.parameters())
    assert [tuple(w.shape) for w in weights] == 2 * [(CLASSES, CLASSES, 3, 3), (CLASSES,)]
    logits = torch.randn(2, CLASSES, 28, 28)
    hidden = F.conv2d(logits, weights[0], weights[1], padding=1).relu()
    expected = logits + F.conv2d(hidden, weights[2], weights[3], padding=1)
    torch.testing.assert_close(module(logits), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", [True, False])
def test_it_starts_as_identity(kind, init):
    module = build_boundary_refinement(kind, CLASSES)
    if init:
        module.init_weights()
    logits = torch.randn(2, CLASSES, 28, 28)
    for mode in (True, False):
        assert torch.equal(module.train(mode)(logits), logits)
    *others, last = [m for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert last.weight.abs().sum() == 0 and all(m.weight.abs().sum() > 0 for m in others)
    module(logits).square().sum().backward()
    assert last.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("training", [True, False])
def test_no_roi_passes_and_teaches_nothing(lively, kind, training):
    module = lively(kind).train(training)
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    out = module(torch.zeros(0, CLASSES, 28, 28))
    assert out.shape == (0, CLASSES, 28, 28)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in module.parameters())
    for name, buffer in module.named_buffers():
        assert torch.equal(buffer, before[name]), name
    assert (kind == "improved") == bool(before)


def test_rois_are_learnt_from():
    """What the test above would not notice: statistics that never move."""
    module = ImprovedBoundaryRefinement(CLASSES)
    logits = 5 + torch.randn(1, CLASSES, 28, 28)
    module(logits)
    first = module.dense_modules[0][0]
    torch.testing.assert_close(first.running_mean, 0.1 * logits.mean((0, 2, 3)))
    assert int(first.num_batches_tracked) == 1
    for name, buffer in module.named_buffers():
        assert torch.isfinite(buffer).all(), name


def test_other_kinds_are_refused():
    with pytest.raises(ValueError, match="one of improved, gcn, got 'dense'"):
        build_boundary_refinement("dense", CLASSES)
    assert isinstance(build_boundary_refinement("gcn", 1), GCNBoundaryRefinement)
