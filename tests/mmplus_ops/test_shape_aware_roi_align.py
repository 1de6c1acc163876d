"""shape_aware_roi_align against mmcv's RoIAlign, against a loop over Eq. 4, and on odd inputs."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import roi_align

from mmplus_ops import shape_aware_roi_align


def random_rois(k, n=2, size=64.0, generator=None, dtype=torch.float64):
    """RoIs of all sizes, some of them leaving the image."""
    centre = torch.rand(k, 2, generator=generator, dtype=dtype) * size
    half = torch.rand(k, 2, generator=generator, dtype=dtype) * size / 2 + 0.1
    image = torch.randint(0, n, (k, 1), generator=generator).to(dtype)
    return torch.cat([image, centre - half, centre + half], dim=1)


def bilinear(plane, y, x):
    """Eq. 1 and Eq. 3: the sum over all cells of max(0, 1-|y-j|) max(0, 1-|x-k|) times the cell."""
    rows, cols = plane.shape[-2:]
    wy = (1 - (y - torch.arange(rows, dtype=plane.dtype)).abs()).clamp(min=0)
    wx = (1 - (x - torch.arange(cols, dtype=plane.dtype)).abs()).clamp(min=0)
    return (plane * wy[:, None] * wx).sum((-2, -1))


def eq_4(feature, rois, prob, bins_h, bins_w, scale, ratio):
    """Eq. 4 as written, point by point; Eq. 5 in units of the RoI (aligned=True)."""
    rows, cols = feature.shape[-2:]
    prob_rows, prob_cols = prob.shape[-2:]
    out = feature.new_zeros(len(rois), feature.shape[1], bins_h, bins_w)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * scale - 0.5 for v in (x1, y1, x2, y2))
        n_w = ratio or math.ceil((x2 - x1) / bins_w)
        n_h = ratio or math.ceil((y2 - y1) / bins_h)
        for h in range(bins_h):
            for w in range(bins_w):
                for i in range(n_h):
                    for j in range(n_w):
                        u = (w + (j + 0.5) / n_w) / bins_w
                        v = (h + (i + 0.5) / n_h) / bins_h
                        x, y = x1 + u * (x2 - x1), y1 + v * (y2 - y1)
                        if not (-1 <= x <= cols and -1 <= y <= rows):
                            continue
                        x, y = min(max(x, 0), cols - 1), min(max(y, 0), rows - 1)
                        c = min(max(u * prob_cols - 0.5, 0), prob_cols - 1)
                        d = min(max(v * prob_rows - 0.5, 0), prob_rows - 1)
                        f, p = bilinear(feature[int(image)], y, x), bilinear(prob[k], d, c)
                        out[k, :, h, w] += f * p / (n_h * n_w)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 3])
@pytest.mark.parametrize("output_size", [7, 14, (3, 5)])
@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_equals_roi_align_where_prob_is_one(aligned, sampling_ratio, output_size, scale):
    generator = torch.Generator().manual_seed(sampling_ratio)
    feature = torch.randn(2, 5, 19, 23, generator=generator, dtype=torch.float64)
    rois = random_rois(40, size=24 / scale, generator=generator)
    prob = torch.ones(40, 28, 28, dtype=torch.float64)
    ours = shape_aware_roi_align(feature, rois, prob, output_size, scale, sampling_ratio, aligned)
    theirs = roi_align(feature, rois, output_size, scale, sampling_ratio, "avg", aligned)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradient_equals_roi_align_where_prob_is_one(sampling_ratio):
    feature = torch.randn(2, 4, 16, 16, dtype=torch.float64, requires_grad=True)
    rois, upstream = random_rois(12, size=16), torch.randn(12, 4, 7, 7, dtype=torch.float64)
    ours = shape_aware_roi_align(
        feature, rois, torch.ones(12, 14, 14, dtype=torch.float64), 7, 1.0, sampling_ratio
    )
    theirs = roi_align(feature, rois, 7, 1.0, sampling_ratio, "avg", True)
    expected = torch.autograd.grad(theirs, feature, upstream)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, feature, upstream)[0], expected)


@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_equals_a_loop_over_equation_4(sampling_ratio):
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    rois = random_rois(6, size=20, generator=generator)
    prob = torch.rand(6, 5, 7, generator=generator, dtype=torch.float64)
    ours = shape_aware_roi_align(feature, rois, prob, (3, 4), 0.5, sampling_ratio)
    expected = eq_4(feature, rois, prob, 3, 4, 0.5, sampling_ratio)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_gradcheck(aligned, sampling_ratio):
    generator = torch.Generator().manual_seed(5)
    feature = torch.randn(2, 2, 6, 7, generator=generator, dtype=torch.float64).requires_grad_()
    prob = torch.rand(4, 3, 5, generator=generator, dtype=torch.float64).requires_grad_()
    rois = random_rois(4, size=8, generator=generator)
    assert torch.autograd.gradcheck(
        lambda f, p: shape_aware_roi_align(f, rois, p, (2, 3), 1.0, sampling_ratio, aligned),
        (feature, prob),
    )


def test_zero_probability_hides_the_features():
    feature, rois = torch.rand(1, 3, 16, 16) + 1, torch.tensor([[0, 2.0, 2.0, 12.0, 12.0]])
    prob = torch.ones(1, 14, 14)
    prob[:, :, 7:] = 0
    out = shape_aware_roi_align(feature, rois, prob, 2, sampling_ratio=4)
    full = roi_align(feature, rois, 2, 1.0, 4, "avg", True)
    assert (out[..., 0] > 0.9 * full[..., 0]).all()
    assert (out[..., 1] < 0.1 * full[..., 1]).all()


def test_no_roi_keeps_the_graph():
    feature = torch.randn(2, 3, 8, 8, requires_grad=True)
    prob = torch.zeros(0, 14, 14, requires_grad=True)
    out = shape_aware_roi_align(feature, torch.zeros(0, 5), prob, 7)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert feature.grad.abs().sum() == 0


def test_degenerate_rois_give_zero_and_leave_the_others_alone():
    feature = torch.randn(1, 3, 16, 16)
    good = [0, 1.0, 2.0, 9.0, 12.0]
    bad = [
        [0, 9.0, 2.0, 1.0, 12.0],
        [0, 5.0, 5.0, 5.0, 5.0],
        [0, float("nan"), 1.0, 4.0, 4.0],
        [0, 1.0, 1.0, float("inf"), 4.0],
        [0, 100.0, 100.0, 120.0, 120.0],
    ]
    rois = torch.tensor([bad[0], good, *bad[1:]])
    out = shape_aware_roi_align(feature, rois, torch.ones(6, 7, 7), 7)
    alone = shape_aware_roi_align(feature, torch.tensor([good]), torch.ones(1, 7, 7), 7)
    torch.testing.assert_close(out[1], alone[0])
    assert out[[0, 2, 3, 4, 5]].abs().sum() == 0
    assert shape_aware_roi_align(feature, torch.tensor(bad), torch.ones(5, 7, 7), 7).sum() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    feature = torch.randn(1, 4, 16, 16).to(dtype)
    rois, prob = random_rois(5, n=1, size=16, dtype=torch.float32), torch.rand(5, 14, 14)
    out = shape_aware_roi_align(feature, rois, prob.to(dtype), 7)
    expected = shape_aware_roi_align(feature.float(), rois, prob.to(dtype).float(), 7)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


def test_memory_layout_does_not_matter():
    feature, prob = torch.randn(2, 4, 12, 12), torch.rand(3, 10, 8)
    rois = random_rois(3, size=12, dtype=torch.float32)
    expected = shape_aware_roi_align(feature, rois, prob, 5)
    for other in (
        feature.to(memory_format=torch.channels_last),
        torch.cat([feature, feature])[:2],
        feature.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        torch.testing.assert_close(shape_aware_roi_align(other, rois, prob, 5), expected)
    strided = prob.transpose(1, 2).contiguous().transpose(1, 2)
    torch.testing.assert_close(shape_aware_roi_align(feature, rois, strided, 5), expected)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(input=torch.zeros(3, 8, 8)), ValueError, r"input must be \(N, C, H, W\)"),
        (dict(input=torch.zeros(1, 3, 8, 8, dtype=torch.long)), TypeError, "input must be float"),
        (dict(rois=torch.zeros(2, 4)), ValueError, r"rois must be \(K, 5\)"),
        (dict(rois=torch.tensor([[1.0, 0, 0, 4, 4]] * 2)), ValueError, r"must lie in \[0, 1\)"),
        (dict(prob=torch.zeros(3, 7, 7)), ValueError, r"prob must be \(2, Hp, Wp\)"),
        (dict(prob=None), TypeError, "prob must be a tensor"),
        (dict(output_size=0), ValueError, "output_size"),
        (dict(output_size=(7, 7, 7)), ValueError, "output_size"),
        (dict(prob=torch.zeros(2, 7, 7, device="meta")), TypeError, "prob must be on cpu"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    arguments = dict(
        input=torch.zeros(1, 3, 8, 8),
        rois=torch.tensor([[0.0, 0, 0, 4, 4]] * 2),
        prob=torch.zeros(2, 7, 7),
        output_size=7,
    )
    with pytest.raises(error, match=text):
        shape_aware_roi_align(**(arguments | change))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.integers(1, 5),
    bins=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ratio=st.integers(0, 3),
    maps=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    constant=st.floats(0, 1),
)
def test_constant_probability_scales_roi_align(seed, k, bins, ratio, maps, constant):
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64)
    rois = random_rois(k, size=12, generator=generator)
    prob = torch.full((k, *maps), constant, dtype=torch.float64)
    ours = shape_aware_roi_align(feature, rois, prob, bins, 1.0, ratio)
    theirs = roi_align(feature, rois, bins, 1.0, ratio, "avg", True)
    torch.testing.assert_close(ours, constant * theirs, rtol=1e-8, atol=1e-8)
