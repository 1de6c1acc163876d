"""blend_bases against its parts (mmcv's RoIAlign, interpolation, softmax), and on odd inputs."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import roi_align
from op_cases import (
    WAYS,
    assert_all_close,
    layouts,
    needs_compiled_ops,
    odd_rois,
    random_rois,
    use_way,
    with_grads,
)

from mmplus_ops import blend_bases
from mmplus_ops.blend_bases import plain_blend_bases


def case(seed=0, k=7, n=2, b=4, bases=(13, 17), m=5, size=68.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, b, *bases, generator=generator, dtype=dtype),
        random_rois(k, n, size, generator, dtype),
        2 * torch.randn(k, b, m, m, generator=generator, dtype=dtype),
    )


def of_parts(bases, rois, attention, size=56, scale=0.25, ratio=1):
    """As BlendMask's blender does it, step by step."""
    pooled = roi_align(bases, rois, size, scale, ratio, "avg", True)
    shares = F.interpolate(attention, (size, size), mode="bilinear", align_corners=False)
    return (pooled * shares.softmax(1)).sum(1)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize("ratio", [0, 1, 2])
@pytest.mark.parametrize("size", [1, 8, 28])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
def test_equals_its_parts(way, ratio, size, dtype, tolerance):
    bases, rois, attention = case(dtype=dtype)
    upstream = torch.randn(len(rois), size, size, dtype=dtype)
    ours = with_grads(
        lambda b, a: blend_bases(b, rois, a, size, 0.25, ratio),
        bases,
        attention,
        upstream=upstream,
    )
    theirs = with_grads(
        lambda b, a: of_parts(b, rois, a, size, 0.25, ratio), bases, attention, upstream=upstream
    )
    assert_all_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_defaults_are_those_of_blendmask(way):
    bases, rois, attention = case(bases=(32, 32), m=14, size=128)
    ours = blend_bases(bases, rois, attention)
    torch.testing.assert_close(ours, of_parts(bases, rois, attention))
    assert ours.shape == (7, 56, 56)


@needs_compiled_ops
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.integers(0, 5),
    b=st.integers(1, 6),
    bases=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    m=st.integers(1, 9),
    size=st.integers(1, 20),
    ratio=st.integers(0, 3),
    scale=st.sampled_from([0.125, 0.25, 0.3, 1.0]),
)
def test_compiled_equals_plain(seed, k, b, bases, m, size, ratio, scale):
    bases, rois, attention = case(seed, k, 2, b, bases, m, 20 / scale)
    where = (size, scale, ratio)
    upstream = torch.randn(k, size, size, dtype=torch.float64)
    ours = with_grads(
        lambda x, a: blend_bases(x, rois, a, *where), bases, attention, upstream=upstream
    )
    plain = with_grads(
        lambda x, a: plain_blend_bases(x, rois, a, *where), bases, attention, upstream=upstream
    )
    assert_all_close(ours, plain, rtol=1e-8, atol=1e-8)


def test_gradcheck(way):
    bases, rois, attention = case(k=3, bases=(4, 5), m=2, b=3, size=20)
    assert torch.autograd.gradcheck(
        lambda b, a: blend_bases(b, rois, a, 3),
        (bases.requires_grad_(), attention.requires_grad_()),
    )


def test_equal_rois_keep_their_own_attention(way):
    """As in training, where a box comes once for each location that predicts it."""
    bases, rois, attention = case(k=12)
    rois = rois[torch.tensor([0, 1, 0, 2, 1, 0, 0, 3, 2, 1, 0, 3])]
    upstream = torch.randn(12, 8, 8, dtype=torch.float64)
    together = with_grads(
        lambda b, a: blend_bases(b, rois, a, 8), bases, attention, upstream=upstream
    )
    alone = [
        with_grads(
            lambda b, a, k=k: blend_bases(b, rois[k : k + 1], a, 8),
            bases,
            attention[k : k + 1],
            upstream=upstream[k : k + 1],
        )
        for k in range(12)
    ]
    out, bases_grads, attention_grads = zip(*alone, strict=True)
    expected = torch.cat(out), sum(bases_grads), torch.cat(attention_grads)
    assert_all_close(together, expected)


def test_odd_rois(way):
    """Those that RoIAlign pools as usual do here; those without points give 0; none gives NaN."""
    bases, _, _ = case(bases=(8, 8))
    rois = odd_rois()
    attention = torch.randn(len(rois), 4, 5, 5, dtype=torch.float64)
    out, bases_grad, attention_grad = with_grads(
        lambda b, a: blend_bases(b, rois, a, 6),
        bases,
        attention,
        upstream=torch.ones(len(rois), 6, 6),
    )
    nothing = torch.tensor([0, 1, 4, 6, 7, 8])
    some = torch.tensor([2, 3, 5, 9, 10])
    assert out[nothing].abs().sum() == 0 and attention_grad[nothing].abs().sum() == 0
    torch.testing.assert_close(out[some], of_parts(bases, rois[some], attention[some], 6))
    # The points of the last lie so far apart that none falls on the image.
    assert out[some[:-1]].abs().amax((1, 2)).min() > 0 and out[10].abs().sum() == 0
    assert torch.isfinite(bases_grad).all() and torch.isfinite(attention_grad).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
def test_bases_of_a_single_row_or_column(way, shape):
    bases, rois, attention = case(bases=shape, size=20)
    torch.testing.assert_close(
        blend_bases(bases, rois, attention, 7), of_parts(bases, rois, attention, 7)
    )


def test_bases_without_pixels_pool_zero(way):
    """Points up to a cell outside read the border, and here there is none."""
    bases, (_, rois, attention) = torch.zeros(2, 4, 0, 9, dtype=torch.float64), case()
    rois[:, 2], rois[:, 4] = -3, 3
    out, bases_grad, attention_grad = with_grads(
        lambda b, a: blend_bases(b, rois, a, 7), bases, attention, upstream=torch.ones(7, 7, 7)
    )
    assert out.abs().sum() == 0 and attention_grad.abs().sum() == 0
    assert out.shape == (7, 7, 7) and bases_grad.shape == bases.shape


@pytest.mark.parametrize("images", [0, 2])
def test_no_roi_keeps_the_graph(way, images):
    bases = torch.randn(images, 4, 8, 8, requires_grad=True)
    attention = torch.zeros(0, 4, 14, 14, requires_grad=True)
    out = blend_bases(bases, torch.zeros(0, 5), attention)
    assert out.shape == (0, 56, 56)
    out.sum().backward()
    assert bases.grad.shape == bases.shape and bases.grad.abs().sum() == 0
    assert attention.grad.shape == (0, 4, 14, 14)


def test_shares_of_far_apart_logits(way):
    """The softmax does not overflow, and a base out of question takes no share."""
    bases, rois, attention = case(dtype=torch.float32)
    attention[:, 0] = 3e4
    attention[:, 1:] = -3e4
    ours = blend_bases(bases, rois, attention, 8)
    torch.testing.assert_close(ours, roi_align(bases, rois, 8, 0.25, 1)[:, 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(way, dtype):
    bases, rois, attention = case(dtype=torch.float32)
    bases, attention = bases.to(dtype), attention.to(dtype)
    upstream = torch.randn(7, 14, 14).to(dtype)
    ours = with_grads(lambda b, a: blend_bases(b, rois, a, 14), bases, attention, upstream=upstream)
    exact = with_grads(
        lambda b, a: blend_bases(b, rois, a, 14),
        bases.float(),
        attention.float(),
        upstream=upstream.float(),
    )
    assert all(value.dtype == dtype for value in ours)
    step = torch.finfo(dtype).eps
    assert_all_close([value.float() for value in ours], exact, rtol=step, atol=1e-4)


def test_attention_of_a_finer_type_is_not_rounded(way):
    """Bases behind a convolution under autocast, logits from float32."""
    bases, rois, attention = case(dtype=torch.float32)
    attention = attention * 20
    out, _, attention_grad = with_grads(
        lambda b, a: blend_bases(b, rois, a, 14),
        bases.bfloat16(),
        attention,
        upstream=torch.ones(7, 14, 14),
    )
    expected = with_grads(
        lambda b, a: blend_bases(b, rois, a, 14),
        bases.bfloat16().float(),
        attention,
        upstream=torch.ones(7, 14, 14),
    )
    assert out.dtype == torch.bfloat16 and attention_grad.dtype == torch.float32
    torch.testing.assert_close(out.float(), expected[0], rtol=2**-8, atol=1e-5)
    torch.testing.assert_close(attention_grad, expected[2], rtol=1e-4, atol=1e-5)


def test_autocast_leaves_it_in_the_precision_of_its_bases(way):
    bases, rois, attention = case(dtype=torch.float32)
    expected = blend_bases(bases, rois, attention, 14)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(blend_bases(bases, rois, attention, 14), expected)
        assert blend_bases(bases.bfloat16(), rois, attention, 14).dtype == torch.bfloat16


def test_memory_layout_does_not_matter(way):
    bases, rois, attention = case()
    upstream = torch.randn(7, 9, 9, dtype=torch.float64)

    def run(b, r, a, g=upstream):
        return with_grads(lambda x, y: blend_bases(x, r, y, 9), b, a, upstream=g)

    expected = run(bases, rois, attention)
    for other in layouts(bases).values():
        leaf = other.detach().requires_grad_()
        out = blend_bases(leaf, rois, attention, 9)
        (grad,) = torch.autograd.grad(out, leaf, upstream)
        assert_all_close((out, grad), expected[:2])
    for other in layouts(attention).values():
        torch.testing.assert_close(blend_bases(bases, rois, other, 9), expected[0])
    for other in layouts(rois).values():
        torch.testing.assert_close(blend_bases(bases, other, attention, 9), expected[0])
    assert_all_close(run(bases, rois, attention, layouts(upstream)["transposed"]), expected)
    wide = attention[:1].expand(7, -1, -1, -1)
    torch.testing.assert_close(
        blend_bases(bases, rois, wide, 9), blend_bases(bases, rois, wide.contiguous(), 9)
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(bases=torch.zeros(3, 8, 8)), ValueError, r"bases must be \(N, C, H, W\)"),
        (dict(bases=torch.zeros(1, 3, 8, 8, dtype=torch.int)), TypeError, "bases must be float"),
        (dict(bases=None), TypeError, "bases must be a tensor"),
        (dict(rois=torch.zeros(2, 4)), ValueError, r"rois must be \(K, 5\)"),
        (dict(rois=torch.zeros(2, 5, dtype=torch.long)), TypeError, "rois must be floating"),
        (dict(rois=torch.tensor([[1.0, 0, 0, 4, 4]] * 2)), ValueError, r"must lie in \[0, 1\)"),
        (dict(rois=torch.tensor([[-1.0, 0, 0, 4, 4]] * 2)), ValueError, r"must lie in \[0, 1\)"),
        (
            dict(rois=torch.tensor([[float("nan"), 0, 0, 4, 4]] * 2)),
            ValueError,
            r"must lie in \[0, 1\)",
        ),
        (dict(attention=torch.zeros(3, 3, 5, 5)), ValueError, r"attention must be \(2, 3, M, M\)"),
        (dict(attention=torch.zeros(2, 4, 5, 5)), ValueError, r"attention must be \(2, 3, M, M\)"),
        (dict(attention=torch.zeros(2, 3, 5, 6)), ValueError, r"attention must be \(2, 3, M, M\)"),
        (dict(attention=torch.zeros(2, 3, 0, 0)), ValueError, "attention must have"),
        (dict(attention=torch.zeros(2, 3, 5, 5, device="meta")), TypeError, "attention must be on"),
        (dict(rois=torch.zeros(2, 5, device="meta")), TypeError, "rois must be on cpu"),
        (dict(output_size=0), ValueError, "output_size must be"),
        (dict(output_size=(7, 9)), ValueError, "output_size must be"),
        (dict(output_size=2**31), ValueError, "output_size must be below"),
    ],
)
def test_wrong_arguments_are_named(way, change, error, text):
    arguments = dict(
        bases=torch.zeros(1, 3, 8, 8),
        rois=torch.zeros(2, 5),
        attention=torch.zeros(2, 3, 5, 5),
        output_size=7,
    )
    with pytest.raises(error, match=text):
        blend_bases(**(arguments | change))


@needs_compiled_ops
def test_a_roi_of_a_diverged_detector_takes_no_time():
    """About one point per cell would be 10^17 of them; those on the bases count alone."""
    bases, _, attention = case(k=2, n=1)
    rois = torch.tensor([[0, -1e9, -1e9, 1e9, 1e9], [0, -1e30, -1e30, 1e30, 1e30]]).double()
    out, bases_grad, _ = with_grads(
        lambda b, a: blend_bases(b, rois, a, 7, 0.25, 0),
        bases,
        attention,
        upstream=torch.ones(2, 7, 7),
    )
    assert 0 < out[0].abs().max() < 1e-9 and torch.isfinite(bases_grad).all()
