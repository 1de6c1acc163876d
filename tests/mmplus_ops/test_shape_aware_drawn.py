"""shape_aware_roi_align on shapes and arguments that are drawn."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import roi_align
from op_cases import assert_all_close, needs_compiled_ops, odd_rois, random_rois, with_grads

from mmplus_ops import shape_aware_roi_align
from mmplus_ops.shape_aware_roi_align import plain_shape_aware_roi_align


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.integers(1, 5),
    bins=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    ratio=st.integers(0, 3),
    maps=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    constant=st.floats(0, 1),
    aligned=st.booleans(),
)
def test_constant_probability_scales_roi_align(seed, k, bins, ratio, maps, constant, aligned):
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(2, 2, 7, 9, generator=generator, dtype=torch.float64)
    rois = random_rois(k, size=12, generator=generator)
    prob = torch.full((k, *maps), constant, dtype=torch.float64)
    ours = shape_aware_roi_align(feature, rois, prob, bins, 1.0, ratio, aligned)
    theirs = roi_align(feature, rois, bins, 1.0, ratio, "avg", aligned)
    torch.testing.assert_close(ours, constant * theirs, rtol=1e-8, atol=1e-8)


@needs_compiled_ops
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.integers(0, 5),
    channels=st.integers(1, 20),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    maps=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    bins=st.tuples(st.integers(1, 8), st.integers(1, 8)),
    scale=st.sampled_from([0.125, 0.25, 0.3, 1.0]),
    ratio=st.integers(0, 3),
    aligned=st.booleans(),
    odd=st.booleans(),
)
def test_compiled_equals_plain(seed, k, channels, size, maps, bins, scale, ratio, aligned, odd):
    generator = torch.Generator().manual_seed(seed)
    feature = torch.randn(2, channels, *size, generator=generator, dtype=torch.float64)
    rois = random_rois(k, 2, 12 / scale, generator)
    rois = torch.cat([rois, odd_rois()]) if odd else rois
    prob = torch.rand(len(rois), *maps, generator=generator, dtype=torch.float64)
    upstream = torch.randn(len(rois), channels, *bins, generator=generator, dtype=torch.float64)
    where = (*bins, scale, ratio, aligned)
    ours = with_grads(
        lambda f, p: shape_aware_roi_align(f, rois, p, bins, *where[2:]),
        feature, prob, upstream=upstream,
    )  # fmt: skip
    plain = with_grads(
        lambda f, p: plain_shape_aware_roi_align(f, rois, p, *where),
        feature, prob, upstream=upstream,
    )  # fmt: skip
    assert_all_close(ours, plain, rtol=1e-8, atol=1e-8)


@needs_compiled_ops
def test_a_roi_of_a_diverged_detector_takes_no_time():
    """About one point per cell would be 10^17 of them; those on the map count alone."""
    rois = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [0, -1e30, -1e30, 1e30, 1e30]]).double()
    out, feature_grad, prob_grad = with_grads(
        lambda f, p: shape_aware_roi_align(f, rois, p, 7),
        torch.ones(1, 3, 9, 9).double(), torch.ones(2, 5, 5).double(),
        upstream=torch.ones(2, 3, 7, 7),
    )  # fmt: skip
    assert 0 < out[0].max() < 1e-9 and torch.isfinite(out).all()
    assert torch.isfinite(feature_grad).all() and torch.isfinite(prob_grad).all()
