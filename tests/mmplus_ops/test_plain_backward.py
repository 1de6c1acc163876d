"""The gradients of the plain kernels, written out, beside autograd through the plain forms.

They run where a graph was compiled on a machine without the library.
"""

import importlib

import pytest
import torch
from op_cases import assert_all_close, odd_rois, random_rois, with_grads

# By their names they are the functions of the package.
align = importlib.import_module("mmplus_ops.shape_aware_roi_align")
blend = importlib.import_module("mmplus_ops.blend_bases")
flatten = importlib.import_module("mmplus_ops.roi_flatten")


def floats(*shape):
    generator = torch.Generator().manual_seed(shape[0])
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def rois_of(k):
    return torch.cat([random_rois(k, 2, 40.0, torch.Generator().manual_seed(k)), odd_rois()])


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
def test_shape_aware_roi_align(monkeypatch, ratio, aligned):
    monkeypatch.setattr(align, "_POINTS_AT_ONCE", 100)
    feature, rois = floats(2, 3, 9, 10), rois_of(6)
    prob, upstream = floats(len(rois), 4, 5).sigmoid(), floats(len(rois), 3, 3, 4)
    where = (0.25, ratio, aligned)
    expected = with_grads(
        lambda f, p: align.plain_shape_aware_roi_align(f, rois, p, 3, 4, *where),
        feature, prob, upstream=upstream,
    )[1:]  # fmt: skip
    for wanted in ((True, True), (True, False), (False, True)):
        ours = align._plain_backward(upstream, feature, rois, prob, feature.shape, *where, *wanted)
        for value, grad, want in zip(ours, expected, wanted, strict=True):
            torch.testing.assert_close(value, grad if want else grad.new_zeros(0))


@pytest.mark.parametrize("ratio", [0, 1])
def test_blend_bases(ratio):
    bases, rois = floats(2, 4, 9, 10), rois_of(6)
    attention, upstream = floats(len(rois), 4, 5, 5), floats(len(rois), 7, 7)
    expected = with_grads(
        lambda b, a: blend.plain_blend_bases(b, rois, a, 7, 0.25, ratio),
        bases, attention, upstream=upstream,
    )[1:]  # fmt: skip
    ours = blend._plain_backward(upstream, bases, rois, attention, 0.25, ratio)
    assert_all_close(ours, expected)


@pytest.mark.parametrize("at_once", [80, 1 << 24])
@pytest.mark.parametrize("maximum", [True, False])
def test_roi_flatten(monkeypatch, maximum, at_once):
    """With equal instances and with masks that are 0 in part, all at once and one at a time."""
    monkeypatch.setattr(flatten, "_CELLS_AT_ONCE", at_once)
    rois = rois_of(6)
    rois = torch.cat([rois, rois, rois])
    masks, upstream = floats(len(rois), 5, 5).clamp(min=0), floats(2, 2, 8, 9)
    masks[17:34] = masks[:17]
    labels = torch.arange(len(rois)) % 2
    labels[17:34] = labels[:17]
    out, expected = with_grads(
        lambda m: flatten.plain_roi_flatten(m, rois, labels, 2, 2, 8, 9, 0.25, maximum),
        masks, upstream=upstream,
    )  # fmt: skip
    ours = flatten._plain_backward(upstream, masks, rois, labels, 0.25, maximum)
    torch.testing.assert_close(ours, expected)
    assert not maximum or ((out == 0).any() and ours[17:34].abs().sum() == 0)
    assert ours[:17].abs().sum() > 0


def test_no_gradient_where_the_canvas_is_zero():
    """Nor to the first instance, whose 0 is as large as the canvas."""
    masks, rois = torch.zeros(2, 4, 4), torch.tensor([[0.0, 0, 0, 16, 16]] * 2)
    labels, upstream = torch.zeros(2, dtype=torch.long), torch.ones(1, 1, 4, 4)
    ours = flatten._plain_backward(upstream, masks, rois, labels, 0.25, True)
    assert ours.abs().sum() == 0
