"""shape_aware_roi_align against mmcv's RoIAlign, against a loop over Eq. 4, and on odd inputs."""

import math

import pytest
import torch
from mmcv.ops import roi_align
from op_cases import WAYS, assert_all_close, layouts, random_rois, use_way, with_grads

from mmplus_ops import shape_aware_roi_align
from mmplus_ops.shape_aware_roi_align import plain_shape_aware_roi_align


@pytest.fixture(params=WAYS, autouse=True)
def way(request, monkeypatch):
    """All tests go both ways."""
    use_way(monkeypatch, request.param)
    return request.param


def bilinear(plane, y, x):
    """Eq. 1 and Eq. 3: the sum over all cells of max(0, 1-|y-j|) max(0, 1-|x-k|) times the cell."""
    rows, cols = plane.shape[-2:]
    wy = (1 - (y - torch.arange(rows, dtype=plane.dtype)).abs()).clamp(min=0)
    wx = (1 - (x - torch.arange(cols, dtype=plane.dtype)).abs()).clamp(min=0)
    return (plane * wy[:, None] * wx).sum((-2, -1))


def eq_4(feature, rois, prob, bins_h, bins_w, scale, ratio, aligned):
    """Eq. 4 as written, point by point; Eq. 5 in units of the RoI."""
    rows, cols = feature.shape[-2:]
    prob_rows, prob_cols = prob.shape[-2:]
    out = feature.new_zeros(len(rois), feature.shape[1], bins_h, bins_w)
    for k, (image, x1, y1, x2, y2) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (v * scale - (0.5 if aligned else 0) for v in (x1, y1, x2, y2))
        if not aligned:
            x2, y2 = max(x2, x1 + 1), max(y2, y1 + 1)
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
@pytest.mark.parametrize(
    ("scale", "dtype", "tolerance"),
    [
        (1.0, torch.float64, 1e-10),
        (0.25, torch.float64, 1e-10),
        (0.25, torch.float32, 1e-5),
    ],
)
def test_equals_roi_align_where_prob_is_one(
    aligned, sampling_ratio, output_size, scale, dtype, tolerance
):
    generator = torch.Generator().manual_seed(sampling_ratio)
    feature = torch.randn(2, 5, 19, 23, generator=generator, dtype=dtype)
    rois = random_rois(40, size=24 / scale, generator=generator, dtype=dtype)
    prob = torch.ones(40, 28, 28, dtype=dtype)
    ours = shape_aware_roi_align(feature, rois, prob, output_size, scale, sampling_ratio, aligned)
    theirs = roi_align(feature, rois, output_size, scale, sampling_ratio, "avg", aligned)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


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


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_equals_a_loop_over_equation_4(sampling_ratio, aligned):
    generator = torch.Generator().manual_seed(3)
    feature = torch.randn(2, 3, 9, 11, generator=generator, dtype=torch.float64)
    rois = random_rois(6, size=20, generator=generator)
    rois[0, 3:] = rois[0, 1:3] + torch.tensor([0.5, 6.0])  # narrower than a cell
    prob = torch.rand(6, 5, 7, generator=generator, dtype=torch.float64)
    ours = shape_aware_roi_align(feature, rois, prob, (3, 4), 0.5, sampling_ratio, aligned)
    expected = eq_4(feature, rois, prob, 3, 4, 0.5, sampling_ratio, aligned)
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


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize(
    ("box", "accepted"),
    [
        ((5.0, 5.0, 5.0, 5.0), (True, False)),
        ((5.0, 3.0, 5.0, 9.0), (True, False)),
        ((2.0, 6.0, 11.0, 6.0), (True, False)),
        ((4.1, 4.2, 4.3, 4.4), (True, False)),
        ((9.0, 2.0, 1.0, 12.0), (False,)),
        ((9.0, 12.0, 1.0, 2.0), (False,)),
        ((-30.0, -30.0, -20.0, -20.0), (True, False)),
        ((12.0, 12.0, 40.0, 40.0), (True, False)),
    ],
)
def test_degenerate_rois_are_read_as_by_roi_align(box, accepted, sampling_ratio):
    """Where mmcv takes them: it refuses inverted RoIs that are aligned."""
    feature, rois = torch.randn(1, 3, 16, 16) + 4, torch.tensor([[0, *box]])
    for aligned in (True, False):
        ours = shape_aware_roi_align(
            feature, rois, torch.ones(1, 7, 7), 7, 1.0, sampling_ratio, aligned
        )
        if aligned in accepted:
            theirs = roi_align(feature, rois, 7, 1.0, sampling_ratio, "avg", aligned)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        else:
            assert ours.abs().sum() == 0


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("cell", [(0, 0), (15, 15)])
def test_points_outside_read_nothing(sampling_ratio, cell):
    """Not even a weight of 0 times infinity."""
    feature = torch.randn(1, 3, 16, 16)
    feature[0, :, cell[0], cell[1]] = float("inf")
    rois = torch.tensor(
        [
            [0, -30.0, -30, -20, -20],
            [0, 4.0, 4, 11, 11],
            [0, 40.0, 40, 44, 47],
            [0, 10.0, -9, 13, 9],
        ]
    )
    prob = torch.rand(4, 7, 7)
    out = shape_aware_roi_align(feature, rois, prob, 7, 1.0, sampling_ratio)
    finite = feature.nan_to_num(posinf=1e3)
    torch.testing.assert_close(
        out, shape_aware_roi_align(finite, rois, prob, 7, 1.0, sampling_ratio)
    )
    assert out[[0, 2]].abs().sum() == 0 and out[1].abs().sum() > 0 and out[3].abs().sum() > 0


@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_an_unknown_image_gives_zero_where_it_is_not_looked_for(sampling_ratio):
    """As on a GPU, where reading the indices would stall it."""
    feature = torch.randn(2, 3, 8, 8)
    rois = torch.tensor(
        [[-1, 1.0, 1, 6, 6], [1, 1.0, 1, 6, 6], [2, 1.0, 1, 6, 6], [-9, 1.0, 1, 6, 6]]
    )
    where = (3, 3, 1.0, sampling_ratio, True)
    out = plain_shape_aware_roi_align(feature, rois, torch.ones(4, 7, 7), *where)
    assert out[[0, 2, 3]].abs().sum() == 0
    torch.testing.assert_close(out[1:2], roi_align(feature, rois[1:2], 3, 1.0, sampling_ratio))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    feature = torch.randn(1, 4, 16, 16).to(dtype)
    rois, prob = random_rois(5, n=1, size=16, dtype=torch.float32), torch.rand(5, 14, 14)
    out = shape_aware_roi_align(feature, rois, prob.to(dtype), 7)
    expected = shape_aware_roi_align(feature.float(), rois, prob.to(dtype).float(), 7)
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))
    # Exactly the rounding of what mmcv makes of the same features in float32, up to one step.
    plain = shape_aware_roi_align(feature, rois, torch.ones_like(prob).to(dtype), 7)
    theirs = roi_align(feature.float(), rois, 7)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(plain.float(), theirs, rtol=step, atol=1e-5)


def test_autocast_leaves_it_in_the_precision_of_its_input():
    feature = torch.randn(2, 4, 16, 16, requires_grad=True)
    rois, prob = random_rois(5, size=16, dtype=torch.float32), torch.rand(5, 14, 14)
    expected = shape_aware_roi_align(feature, rois, prob, 7)
    with torch.autocast("cpu", torch.bfloat16):
        out = shape_aware_roi_align(feature, rois, prob, 7)
        # As behind a convolution: features in half precision, the probability of a sigmoid beside.
        mixed = shape_aware_roi_align(feature.bfloat16(), rois, prob, 7)
    assert out.dtype == torch.float32 and mixed.dtype == torch.bfloat16
    assert torch.equal(out, expected)
    reference = shape_aware_roi_align(feature.bfloat16().float(), rois, prob, 7)
    torch.testing.assert_close(mixed.float(), reference, rtol=torch.finfo(mixed.dtype).eps, atol=0)
    (mixed.float().sum() + out.sum()).backward()
    assert torch.isfinite(feature.grad).all()


@pytest.mark.cuda
@pytest.mark.parametrize("aligned", [True, False])
def test_on_a_gpu_exact_multiples_of_the_bins_get_no_point_too_many(aligned):
    """Sides of 7, 14, ... cells: one point more a bin and axis if the quotient is rounded up."""
    sides = torch.arange(7, 7 * 40, 7, dtype=torch.float32)
    rois = torch.zeros(len(sides), 5)
    rois[:, 3:] = sides[:, None]
    rois[:, 1:] += 0.5
    feature, prob = torch.randn(1, 8, 300, 300), torch.ones(len(sides), 28, 28)
    expected = roi_align(feature, rois, 7, 1.0, 0, "avg", aligned)
    ours = shape_aware_roi_align(feature.cuda(), rois.cuda(), prob.cuda(), 7, 1.0, 0, aligned).cpu()
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 33])
def test_any_number_of_channels(channels):
    """The compiled kernel takes sixteen at a time."""
    generator = torch.Generator().manual_seed(channels)
    feature = torch.randn(2, channels, 9, 8, generator=generator, dtype=torch.float64)
    prob = torch.rand(6, 5, 4, generator=generator, dtype=torch.float64)
    rois = random_rois(6, size=10, generator=generator)
    upstream = torch.randn(6, channels, 3, 4, generator=generator, dtype=torch.float64)

    def run(part):
        return with_grads(
            lambda f, p: shape_aware_roi_align(f, rois, p, (3, 4)),
            feature[:, part], prob, upstream=upstream[:, part],
        )  # fmt: skip

    out, feature_grad, prob_grad = run(slice(None))
    single = [run(slice(c, c + 1)) for c in range(channels)]
    expected = torch.cat([one[0] for one in single], 1), torch.cat([one[1] for one in single], 1)
    assert_all_close((out, feature_grad, prob_grad), (*expected, sum(one[2] for one in single)))
    torch.testing.assert_close(out, eq_4(feature, rois, prob, 3, 4, 1.0, 0, True))


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("maps", [(1, 1), (1, 6), (6, 1)])
def test_maps_of_a_single_row_or_column(shape, maps):
    feature = torch.randn(2, 3, *shape, dtype=torch.float64)
    rois, prob = random_rois(8, size=6), torch.rand(8, *maps, dtype=torch.float64)
    ours = shape_aware_roi_align(feature, rois, prob, (2, 3), 0.5, 2)
    torch.testing.assert_close(ours, eq_4(feature, rois, prob, 2, 3, 0.5, 2, True))


@pytest.mark.parametrize("shape", [(2, 3, 0, 8), (2, 3, 8, 0), (2, 0, 8, 8)])
def test_features_without_pixels_or_channels(shape):
    rois = random_rois(4, size=8, dtype=torch.float32)
    out, feature_grad, prob_grad = with_grads(
        lambda f, p: shape_aware_roi_align(f, rois, p, 7),
        torch.zeros(shape), torch.rand(4, 5, 5), upstream=torch.ones(4, shape[1], 7, 7),
    )  # fmt: skip
    assert out.shape == (4, shape[1], 7, 7) and out.abs().sum() == 0
    assert feature_grad.shape == shape and prob_grad.abs().sum() == 0


@pytest.mark.parametrize("wanted", ["input", "prob", "both"])
def test_only_the_gradients_that_are_wanted(wanted):
    feature, prob = torch.randn(2, 4, 12, 12), torch.rand(3, 10, 8)
    rois = random_rois(3, size=12, dtype=torch.float32)
    both = with_grads(
        lambda f, p: shape_aware_roi_align(f, rois, p, 5), feature, prob,
        upstream=torch.ones(3, 4, 5, 5),
    )  # fmt: skip
    feature.requires_grad_(wanted != "prob")
    prob.requires_grad_(wanted != "input")
    shape_aware_roi_align(feature, rois, prob, 5).sum().backward()
    for value, expected in ((feature, both[1]), (prob, both[2])):
        assert (value.grad is None) == (not value.requires_grad)
        if value.grad is not None:
            torch.testing.assert_close(value.grad, expected)


def test_memory_layout_does_not_matter():
    feature, prob = torch.randn(2, 4, 12, 10), torch.rand(3, 10, 8)
    rois, upstream = random_rois(3, size=12, dtype=torch.float32), torch.randn(3, 4, 5, 5)

    def run(f, r, p, g=upstream):
        leaves = [value.detach().requires_grad_() for value in (f, p)]
        out = shape_aware_roi_align(leaves[0], r, leaves[1], 5)
        return out.detach(), *torch.autograd.grad(out, leaves, g)

    expected = run(feature, rois, prob)
    for other in layouts(feature).values():
        assert_all_close(run(other, rois, prob), expected)
    for other in layouts(prob).values():
        assert_all_close(run(feature, rois, other), expected)
    for other in layouts(rois).values():
        assert_all_close(run(feature, other, prob), expected)
    for other in (*layouts(upstream).values(), torch.ones(1, 4, 1, 1).expand(3, 4, 5, 5)):
        ours = run(feature, rois, prob, other)
        assert_all_close(ours, run(feature, rois, prob, other.contiguous()))
    wide = feature[:1, :1].expand(2, 4, -1, -1)
    assert_all_close(run(wide, rois, prob), run(wide.contiguous(), rois, prob))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(input=torch.zeros(3, 8, 8)), ValueError, r"input must be \(N, C, H, W\)"),
        (dict(input=torch.zeros(1, 3, 8, 8, dtype=torch.long)), TypeError, "input must be float"),
        (dict(rois=torch.zeros(2, 4)), ValueError, r"rois must be \(K, 5\)"),
        (dict(rois=torch.tensor([[1.0, 0, 0, 4, 4]] * 2)), ValueError, r"must lie in \[0, 1\)"),
        (dict(prob=torch.zeros(3, 7, 7)), ValueError, r"prob must be \(2, Hp, Wp\)"),
        (dict(prob=None), TypeError, "prob must be a tensor"),
        (dict(prob=torch.zeros(2, 7, 0)), ValueError, "one non-empty map"),
        (dict(prob=torch.zeros(2, 7, 7).bool()), TypeError, "prob must be floating point"),
        (dict(input=torch.zeros(1, 3, 8, 8, dtype=torch.cfloat)), TypeError, "input must be float"),
        (dict(rois=torch.zeros(2, 5).to("meta")), TypeError, "rois must be on cpu"),
        (dict(rois=torch.full((2, 5), math.nan)), ValueError, r"must lie in \[0, 1\)"),
        (dict(output_size=True), ValueError, "output_size"),
        (dict(output_size=(7, 2**31)), ValueError, "output_size"),
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
