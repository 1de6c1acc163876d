"""roi_flatten against mmdet's pasting, its gradients, and odd inputs."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
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

from mmplus_ops import roi_flatten
from mmplus_ops.roi_flatten import plain_roi_flatten


def case(seed=0, k=9, n=2, classes=3, m=7, size=48.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    shape = (m, m) if isinstance(m, int) else m
    return (
        torch.rand(k, *shape, generator=generator, dtype=dtype),
        random_rois(k, n, size, generator, dtype),
        torch.randint(0, classes, (k,), generator=generator),
    )


def pasted(masks, rois, labels, classes, batch, size, scale, reduce):
    """Each instance by mmdet's pasting, then cell by cell the largest value or the sum.

    In float32, as mmdet does it for all.
    """
    masks, rois = masks.float(), rois.float()
    canvas = masks.new_zeros((batch, classes, *size))
    for mask, roi, label in zip(masks, rois, labels.tolist(), strict=True):
        drawn, _ = _do_paste_mask(mask[None, None], roi[None, 1:] * scale, *size, skip_empty=False)
        plane = canvas[int(roi[0]), label]
        plane.copy_(torch.maximum(plane, drawn[0]) if reduce == "max" else plane + drawn[0])
    return canvas


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


@pytest.mark.parametrize("reduce", ["max", "sum"])
@pytest.mark.parametrize("size", [(12, 12), (40, 33), (1, 1), (70, 5)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_pasting(way, reduce, size, dtype):
    masks, rois, labels = case(dtype=dtype, k=25)
    ours = roi_flatten(masks, rois, labels, 3, 2, size, 0.25, reduce)
    expected = pasted(masks, rois, labels, 3, 2, size, 0.25, reduce)
    torch.testing.assert_close(ours.float(), expected, rtol=1e-4, atol=1e-4)
    assert ours.dtype == dtype and ours.shape == (2, 3, *size)


def test_inverted_boxes_are_pasted_the_other_way_round(way):
    masks, rois, labels = case()
    rois = rois[:, [0, 3, 2, 1, 4]]
    ours = roi_flatten(masks, rois, labels, 3, 2, (12, 14), 0.25, "sum")
    expected = pasted(masks, rois, labels, 3, 2, (12, 14), 0.25, "sum")
    torch.testing.assert_close(ours.float(), expected, rtol=1e-4, atol=1e-4)
    assert ours.abs().sum() > 0


@needs_compiled_ops
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    k=st.integers(0, 8),
    n=st.integers(1, 3),
    classes=st.integers(1, 4),
    m=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 20)),
    scale=st.sampled_from([0.125, 0.25, 1 / 3, 1.0]),
    maximum=st.booleans(),
)
def test_compiled_equals_plain(seed, k, n, classes, m, size, scale, maximum):
    masks, rois, labels = case(seed, k, n, classes, m, 20 / scale)
    where = (classes, n, *size, scale, maximum)
    upstream = torch.randn(n, classes, *size, dtype=torch.float64)
    ours = with_grads(
        lambda x: roi_flatten(
            x, rois, labels, classes, n, size, scale, "max" if maximum else "sum"
        ),
        masks,
        upstream=upstream,
    )
    plain = with_grads(
        lambda x: plain_roi_flatten(x, rois, labels, *where), masks, upstream=upstream
    )
    assert_all_close(ours, plain, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_gradcheck(way, reduce):
    """Values are drawn at random, so that no two instances are within a step of each other."""
    masks, rois, labels = case(k=5, m=3, classes=2, size=24)
    masks = masks + 1
    assert torch.autograd.gradcheck(
        lambda x: roi_flatten(x, rois, labels, 2, 2, (6, 7), 0.25, reduce), masks.requires_grad_()
    )


def test_gradient_of_the_maximum_goes_to_the_first_of_equals(way):
    """Instances 1 and 2 are the same and above 0 and 3; 4 is the same on another canvas."""
    masks = torch.tensor([0.3, 0.8, 0.8, 0.5, 0.8])[:, None, None].expand(5, 4, 4).clone()
    rois = torch.tensor([[0.0, 0, 0, 16, 16]] * 5)
    labels = torch.tensor([0, 0, 0, 0, 1])
    out, grad = with_grads(
        lambda x: roi_flatten(x, rois, labels, 2, 1, 4), masks, upstream=torch.ones(1, 2, 4, 4)
    )
    torch.testing.assert_close(out, torch.full((1, 2, 4, 4), 0.8))
    torch.testing.assert_close(grad.sum((1, 2)), torch.tensor([0.0, 16, 0, 0, 16]))
    # Beyond the larger one, the smaller one has its share.
    rois[3, 3:] = 32
    grad = with_grads(
        lambda x: roi_flatten(x, rois, labels, 2, 1, 8), masks, upstream=torch.ones(1, 2, 8, 8)
    )[1]
    assert grad[3].sum() > 30 and grad[0].sum() == 0 and grad[2].sum() == 0


def test_no_gradient_where_the_canvas_is_zero(way):
    masks = torch.zeros(2, 4, 4)
    masks[0, :2] = 0.5
    rois, labels = torch.tensor([[0.0, 0, 0, 16, 16]] * 2), torch.zeros(2, dtype=torch.long)
    out, grad = with_grads(
        lambda x: roi_flatten(x, rois, labels, 1, 1, 4), masks, upstream=torch.ones(1, 1, 4, 4)
    )
    assert out[0, 0, :2].min() == 0.5 and out[0, 0, 2:].max() == 0
    torch.testing.assert_close(grad[0], torch.tensor([1.0, 1, 0, 0])[:, None].expand(4, 4))
    assert grad[1].abs().sum() == 0
    # The sum has one all the same.
    grad = with_grads(
        lambda x: roi_flatten(x, rois, labels, 1, 1, 4, reduce="sum"),
        masks,
        upstream=torch.ones(1, 1, 4, 4),
    )[1]
    assert grad.min() == 1


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_odd_rois(way, reduce):
    """A box without a finite size, and one far away, draws nothing and takes no gradient."""
    rois = odd_rois()
    labels = torch.arange(len(rois))
    masks = torch.rand(len(rois), 5, 5, dtype=torch.float64) + 0.5
    out, grad = with_grads(
        lambda x: roi_flatten(x, rois, labels, len(rois), 1, (8, 9), 0.25, reduce),
        masks,
        upstream=torch.ones(1, len(rois), 8, 9),
    )
    # The ninth lies between the centres of four cells.
    nothing = [2, 3, 4, 6, 7, 8, 9]
    for name, value in (("canvas", out[0]), ("gradient", grad)):
        assert torch.isfinite(value).all(), name
        drawn = value.abs().sum((1, 2)) > 0
        assert (~drawn).nonzero()[:, 0].tolist() == nothing, name


def test_a_box_whose_sides_overflow_draws_nothing(way):
    rois = torch.tensor([[0.0, -3e38, -3e38, 3e38, 3e38]])
    out = roi_flatten(torch.ones(1, 4, 4), rois, torch.zeros(1, dtype=torch.long), 1, 1, 8, 1.0)
    assert out.abs().sum() == 0


@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_no_instance_keeps_the_graph(way, reduce):
    masks = torch.zeros(0, 28, 28, requires_grad=True)
    out = roi_flatten(
        masks, torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), 3, 2, 8, reduce=reduce
    )
    assert out.shape == (2, 3, 8, 8) and out.abs().sum() == 0
    out.sum().backward()
    assert masks.grad.shape == (0, 28, 28)


def test_no_image(way):
    masks, rois, labels = torch.zeros(0, 4, 4), torch.zeros(0, 5), torch.zeros(0, dtype=torch.int)
    assert roi_flatten(masks, rois, labels, 3, 0, (5, 6)).shape == (0, 3, 5, 6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("reduce", ["max", "sum"])
def test_half_precision_is_summed_in_float32(way, reduce, dtype):
    masks, rois, labels = case(dtype=torch.float32, k=30, n=1, classes=1)
    masks, upstream = masks.to(dtype), torch.randn(1, 1, 12, 12).to(dtype)

    def run(x):
        return roi_flatten(x, rois, labels, 1, 1, 12, 0.25, reduce)

    ours = with_grads(run, masks, upstream=upstream)
    exact = with_grads(run, masks.float(), upstream=upstream.float())
    assert all(value.dtype == dtype for value in ours)
    step = torch.finfo(dtype).eps
    assert_all_close([value.float() for value in ours], exact, rtol=step, atol=1e-5)


def test_autocast_leaves_it_in_the_precision_of_its_masks(way):
    masks, rois, labels = case(dtype=torch.float32)
    expected = roi_flatten(masks, rois, labels, 3, 2, 12)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(roi_flatten(masks, rois, labels, 3, 2, 12), expected)
        assert roi_flatten(masks.bfloat16(), rois, labels, 3, 2, 12).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_labels_of_every_whole_type(way, dtype):
    masks, rois, labels = case()
    expected = roi_flatten(masks, rois, labels, 3, 2, 12)
    torch.testing.assert_close(roi_flatten(masks, rois, labels.to(dtype), 3, 2, 12), expected)


def test_memory_layout_does_not_matter(way):
    masks, rois, labels = case(m=(5, 6))
    upstream = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    expected = with_grads(lambda x: roi_flatten(x, rois, labels, 3, 2, 9), masks, upstream=upstream)
    for other in layouts(masks).values():
        leaf = other.detach().requires_grad_()
        out = roi_flatten(leaf, rois, labels, 3, 2, 9)
        assert_all_close((out, *torch.autograd.grad(out, leaf, upstream)), expected)
    strided = torch.stack([labels, labels], 1)[:, 0]
    for other in layouts(rois).values():
        torch.testing.assert_close(roi_flatten(masks, other, strided, 3, 2, 9), expected[0])
    for other in layouts(upstream).values():
        assert_all_close(
            with_grads(lambda x: roi_flatten(x, rois, labels, 3, 2, 9), masks, upstream=other),
            expected,
        )
    wide = masks[:1].expand(9, -1, -1)
    torch.testing.assert_close(
        roi_flatten(wide, rois, labels, 3, 2, 9),
        roi_flatten(wide.contiguous(), rois, labels, 3, 2, 9),
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(masks=torch.zeros(2, 1, 4, 4)), ValueError, r"masks must be \(K, m, m\)"),
        (dict(masks=torch.zeros(2, 4, 0)), ValueError, r"masks must be \(K, m, m\)"),
        (dict(masks=torch.zeros(2, 4, 4).bool()), TypeError, "masks must be floating point"),
        (dict(masks=[[0.5]]), TypeError, "masks must be a tensor, got list"),
        (dict(rois=torch.zeros(3, 5)), ValueError, r"rois must be \(2, 5\)"),
        (dict(rois=torch.zeros(2, 4)), ValueError, r"rois must be \(K, 5\)"),
        (dict(rois=torch.ones(2, 5)), ValueError, r"batch indices of rois must lie in \[0, 1\)"),
        (dict(labels=torch.zeros(2)), TypeError, "labels must be of a whole-number type"),
        (dict(labels=torch.zeros(3).long()), ValueError, r"labels must be \(2,\)"),
        (dict(labels=torch.tensor([0, 3])), ValueError, r"labels must lie in \[0, 3\)"),
        (dict(labels=torch.tensor([0, -1])), ValueError, r"labels must lie in \[0, 3\)"),
        (dict(labels=torch.zeros(2).long().to("meta")), TypeError, "labels must be on cpu"),
        (dict(rois=torch.zeros(2, 5, device="meta")), TypeError, "rois must be on cpu"),
        (dict(num_classes=0), ValueError, "num_classes must be"),
        (dict(batch_size=-1), ValueError, "batch_size must be"),
        (dict(out_size=(4, 0)), ValueError, "out_size must be"),
        (dict(out_size=4.0), ValueError, "out_size must be"),
        (dict(reduce="mean"), ValueError, "reduce must be 'max' or 'sum', got 'mean'"),
    ],
)
def test_wrong_arguments_are_named(way, change, error, text):
    arguments = dict(
        masks=torch.zeros(2, 4, 4),
        rois=torch.zeros(2, 5),
        labels=torch.zeros(2, dtype=torch.long),
        num_classes=3,
        batch_size=1,
        out_size=4,
    )
    with pytest.raises(error, match=text):
        roi_flatten(**(arguments | change))
