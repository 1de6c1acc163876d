"""mask_intersections against a product of matrices, connected_components against OpenCV's."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import WAYS, layouts, needs_compiled_ops, random_masks, use_way

from mmplus_ops import connected_components, mask_intersections
from mmplus_ops.mask_regions import plain_connected_components, plain_mask_intersections


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


# ---- mask_intersections ----


def areas_by_loop(masks):
    return torch.tensor([[int((a & b).sum()) for b in masks] for a in masks])


@pytest.mark.parametrize("cols", [1, 7, 8, 63, 64, 65, 128, 200])
@pytest.mark.parametrize("rows", [1, 3, 130])
def test_intersections_equal_a_loop(way, rows, cols):
    masks = random_masks(5, rows, cols, torch.Generator().manual_seed(cols))
    masks[3] = False
    masks[4] = True
    areas = mask_intersections(masks)
    assert areas.dtype == torch.int64 and torch.equal(areas, areas_by_loop(masks))
    assert areas[4, 4] == rows * cols


@needs_compiled_ops
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(0, 6), st.integers(0, 40), st.integers(0, 140)),
    share=st.floats(0, 1),
)
def test_compiled_intersections_equal_plain(seed, shape, share):
    masks = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share
    assert torch.equal(mask_intersections(masks), plain_mask_intersections(masks))


@pytest.mark.parametrize("shape", [(0, 5, 6), (2, 0, 6), (2, 5, 0)])
def test_intersections_of_nothing(way, shape):
    areas = mask_intersections(torch.ones(shape, dtype=torch.bool))
    assert torch.equal(areas, torch.zeros(shape[0], shape[0], dtype=torch.int64))


@needs_compiled_ops
def test_intersections_of_bool_masks_that_were_bytes():
    """Memory of another library: True is any byte but 0."""
    masks = torch.zeros(2, 9, 77, dtype=torch.uint8)
    masks[0, :5], masks[1, 3:] = 255, 2
    areas = mask_intersections(masks.view(torch.bool))
    assert areas.tolist() == [[5 * 77, 2 * 77], [2 * 77, 6 * 77]]


def test_intersections_whatever_the_memory_layout(way):
    masks = random_masks(4, 30, 70, torch.Generator().manual_seed(0))
    expected = areas_by_loop(masks)
    for name, other in layouts(masks).items():
        assert torch.equal(mask_intersections(other), expected), name
    assert (mask_intersections(masks[:1].expand(3, -1, -1)) == expected[0, 0]).all()


@needs_compiled_ops
def test_intersections_are_the_same_on_every_number_of_threads():
    masks = random_masks(6, 200, 333, torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            answers += [mask_intersections(masks) for _ in range(2)]
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(answer, answers[0]) for answer in answers)


@pytest.mark.parametrize(
    ("masks", "error", "text"),
    [
        (torch.zeros(2, 3, 3, dtype=torch.uint8), TypeError, "masks must be bool, got torch.uint8"),
        (torch.zeros(2, 3, 3), TypeError, "masks must be bool"),
        (torch.zeros(3, 3).bool(), ValueError, r"masks must be \(N, H, W\)"),
        (np.zeros((2, 3, 3), bool), TypeError, "masks must be a tensor, got ndarray"),
    ],
)
def test_wrong_masks_are_named(way, masks, error, text):
    with pytest.raises(error, match=text):
        mask_intersections(masks)


# ---- connected_components ----


def components_by_opencv(labels, ignore=()):
    """Label by label, numbered anew in raster order."""
    names = np.zeros(labels.shape, np.int64)
    for label in np.unique(labels):
        if label not in ignore:
            count, found = cv2.connectedComponents((labels == label).astype(np.uint8))
            names = np.where(found > 0, names.max() + found, names)
    _, first, index = np.unique(names, return_index=True, return_inverse=True)
    order = [place for place in np.argsort(first) if names.flat[first[place]] > 0]
    number = np.zeros(len(first), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    return torch.from_numpy(number[index.reshape(labels.shape)])


def blocky(rows, cols, labels, seed, size=3):
    """A label map of squares, some of them touching at corners only."""
    rng = np.random.RandomState(seed)
    small = rng.randint(0, labels, (rows // size + 1, cols // size + 1))
    return np.kron(small, np.ones((size, size), np.int64))[:rows, :cols]


@pytest.mark.parametrize("labels", [1, 2, 5])
@pytest.mark.parametrize("ignore", [(), (0,), (1, 3)])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (37, 70), (64, 64)])
def test_components_equal_opencv(way, shape, labels, ignore):
    for size in (1, 3):
        value = blocky(*shape, labels, seed=labels, size=size)
        ours = connected_components(torch.from_numpy(value), ignore)
        assert ours.dtype == torch.int32
        assert torch.equal(ours, components_by_opencv(value, ignore)), size


def test_components_that_meet_late(way):
    """Combs and spirals: numbers that lead to numbers that lead to numbers."""
    comb = torch.zeros(40, 41, dtype=torch.long)
    comb[:, ::2] = 1
    comb[-1] = 1
    ours = connected_components(comb, (0,))
    assert torch.equal(ours, comb.int())
    spiral = np.zeros((41, 41), np.int64)
    y, x, dy, dx = 0, 0, 0, 1
    for length in [40, 40, 40, *np.repeat(np.arange(38, 1, -2), 2)]:
        for _ in range(length):
            spiral[y, x] = 7
            y, x = y + dy, x + dx
        dy, dx = dx, -dy
    for value in (spiral, spiral.T.copy(), spiral[::-1].copy()):
        ours = connected_components(torch.from_numpy(value))
        assert torch.equal(ours, components_by_opencv(value))


def test_components_are_numbered_in_raster_order(way):
    value = torch.tensor([[5, 5, 9, 9], [9, 5, 5, 9], [9, 9, 2, 2], [1, 9, 2, 5]])
    expected = torch.tensor([[1, 1, 2, 2], [3, 1, 1, 2], [3, 3, 4, 4], [5, 3, 4, 6]])
    assert torch.equal(connected_components(value), expected.int())
    # The diagonal neighbours at the corner of four squares belong together.
    crossing = torch.tensor([[0, 1], [1, 0]])
    assert torch.equal(connected_components(crossing), torch.tensor([[1, 2], [2, 1]]).int())


@pytest.mark.parametrize(
    "dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16]
)
def test_components_of_every_whole_type(way, dtype):
    value = blocky(20, 30, 2, seed=3)
    expected = components_by_opencv(value, (0,))
    assert torch.equal(connected_components(torch.from_numpy(value).to(dtype), (0,)), expected)


def test_an_ignored_label_beyond_the_type_ignores_nothing(way):
    """-1 is not 255, though both are one byte."""
    value = torch.tensor([[255, 0]], dtype=torch.uint8)
    assert connected_components(value, (-1, 256)).tolist() == [[1, 2]]
    assert connected_components(value, (255,)).tolist() == [[0, 1]]


@needs_compiled_ops
@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(0, 30), st.integers(0, 80)),
    labels=st.integers(1, 6),
    size=st.integers(1, 4),
    ignore=st.lists(st.integers(-1, 6), max_size=3),
)
def test_compiled_components_equal_plain(seed, shape, labels, size, ignore):
    value = torch.from_numpy(blocky(*shape, labels, seed, size))
    ours = connected_components(value, ignore)
    assert torch.equal(ours, plain_connected_components(value, ignore))


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0)])
def test_components_of_nothing(way, shape):
    ours = connected_components(torch.zeros(shape, dtype=torch.long))
    assert ours.shape == shape and ours.dtype == torch.int32


def test_components_whatever_the_memory_layout(way):
    value = torch.from_numpy(blocky(20, 31, 3, seed=0))
    expected = components_by_opencv(value.numpy())
    for name, other in layouts(value).items():
        assert torch.equal(connected_components(other), expected), name
    wide = value[:1].expand(6, -1)
    assert torch.equal(connected_components(wide), connected_components(wide.contiguous()))


@pytest.mark.parametrize(
    ("labels", "error", "text"),
    [
        (torch.zeros(3, 3), TypeError, "labels must be of a whole-number type"),
        (torch.zeros(1, 3, 3).long(), ValueError, r"labels must be \(H, W\)"),
        (
            torch.zeros(1, 1, dtype=torch.uint8).expand(2**15, 2**16),
            ValueError,
            "fewer than 2.31 pixels, got 2147483648",
        ),
        (None, TypeError, "labels must be a tensor, got NoneType"),
    ],
)
def test_wrong_labels_are_named(way, labels, error, text):
    with pytest.raises(error, match=text):
        connected_components(labels)
