"""boundary_f against its definition: every boundary pixel beside every other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as mask_util

from mmdet_plus.evaluation.boundary_f import (
    boundary_f,
    boundary_pixels,
    decode_crop,
    rle_boundary_f,
)


def by_definition(pred, gt, tolerance):
    """The F-score with loops alone."""
    ours, theirs = pixels_by_definition(pred), pixels_by_definition(gt)

    def share(points, others):
        near = [p for p in points if any(math.dist(p, o) <= tolerance for o in others)]
        return len(near) / len(points) if points else 0.0

    precision, recall = share(ours, theirs), share(theirs, ours)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def pixels_by_definition(mask):
    height, width = mask.shape

    def inside(y, x):
        return 0 <= y < height and 0 <= x < width and mask[y, x]

    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if mask[y, x]
        and not all(inside(*n) for n in [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)])
    ]


def rle(mask):
    return mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))


@st.composite
def two_masks(draw):
    shape = draw(st.integers(1, 8)), draw(st.integers(1, 8))
    # Mostly empty, mixed and mostly full ones, and the second often close to the first.
    seed, share = draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0, 0.1, 0.5, 0.9, 1]))
    rng = np.random.default_rng(seed)
    first = rng.random(shape) < share
    if draw(st.booleans()):
        return first, rng.random(shape) < share
    return first, np.roll(first, rng.integers(-2, 3, 2), (0, 1))


@settings(max_examples=300, deadline=None)
@given(two_masks(), st.sampled_from([0, 0.5, 1, 1.0, 1.42, 2, 2.3, 4]))
def test_equals_its_definition(masks, tolerance):
    pred, gt = masks
    expected = pytest.approx(by_definition(pred, gt, tolerance), abs=1e-12)
    assert boundary_f(pred, gt, tolerance) == expected
    assert rle_boundary_f(rle(pred), rle(gt), tolerance) == expected
    ys, xs = np.nonzero(boundary_pixels(pred))
    assert list(zip(ys.tolist(), xs.tolist(), strict=True)) == pixels_by_definition(pred)


@settings(max_examples=300, deadline=None)
@given(two_masks())
def test_a_crop_is_the_mask_in_its_box(masks):
    mask = masks[0]
    crop, x, y = decode_crop(rle(mask))
    whole = np.zeros(mask.shape, np.uint8)
    whole[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert np.array_equal(whole, mask)
    if mask.any():
        ys, xs = np.nonzero(mask)
        assert (x, crop.shape[1]) == (xs.min(), np.ptp(xs) + 1)
        # A run over two columns makes the crop as high as the image, which it touches twice.
        assert (y, crop.shape[0]) in [(ys.min(), np.ptp(ys) + 1), (0, mask.shape[0])]
    else:
        assert crop.size == 0


def test_a_case_by_hand():
    gt, pred = np.zeros((10, 12), bool), np.zeros((10, 12), bool)
    gt[2:8, 3:9] = True  # 20 boundary pixels
    pred[2:8, 3:7] = True  # 16, two of which lie in the middle of the right side, 2 px off
    # The six of the true right side are missed; the two beside them are 1 px off.
    precision, recall = 14 / 16, 14 / 20
    expected = 2 * precision * recall / (precision + recall)
    assert boundary_f(pred, gt) == pytest.approx(expected) == pytest.approx(7 / 9)
    assert boundary_f(pred, gt, 2) == 1
    assert boundary_f(pred, gt, 0) == pytest.approx(2 * (12 / 16) * (12 / 20) / (12 / 16 + 12 / 20))


def test_diagonal_neighbours_are_farther_than_one_pixel():
    pred, gt = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    pred[1, 1] = gt[2, 2] = True
    assert boundary_f(pred, gt, 1) == boundary_f(pred, gt, 1.41) == 0
    assert boundary_f(pred, gt, 1.42) == 1


def test_the_border_of_the_image_is_a_boundary():
    full = np.ones((5, 6), bool)
    assert boundary_pixels(full).sum() == 2 * (5 + 6) - 4
    assert boundary_f(full, full) == 1
    # Two pixels short of the right border.
    short = full.copy()
    short[:, 4:] = False
    assert boundary_f(short, full, 0) < boundary_f(short, full, 1) < boundary_f(short, full, 2) == 1


def test_a_large_mask_far_from_the_origin():
    y, x = np.mgrid[:300, :500]
    gt = (y - 220) ** 2 + (x - 400) ** 2 < 60**2
    pred = (y - 221) ** 2 + (x - 402) ** 2 < 57**2
    ours, theirs = np.argwhere(boundary_pixels(pred)), np.argwhere(boundary_pixels(gt))
    assert [tuple(p) for p in ours.tolist()] == pixels_by_definition(pred)
    distance = np.linalg.norm(ours[:, None] - theirs, axis=2)
    for tolerance in (1, 2, 3):
        p, r = (distance.min(1) <= tolerance).mean(), (distance.min(0) <= tolerance).mean()
        assert 0 < p < 1
        assert boundary_f(pred, gt, tolerance) == pytest.approx(2 * p * r / (p + r))
        assert rle_boundary_f(rle(pred), rle(gt), tolerance) == boundary_f(pred, gt, tolerance)


def test_empty_masks_have_no_hits():
    none, some = np.zeros((4, 5), bool), np.ones((4, 5), bool)
    for pred, gt in ((none, none), (none, some), (some, none)):
        assert boundary_f(pred, gt) == rle_boundary_f(rle(pred), rle(gt)) == 0
    assert boundary_f(np.zeros((0, 3), bool), np.zeros((0, 3), bool)) == 0
    assert boundary_pixels(np.zeros((0, 3), bool)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32])
def test_numbers_are_masks_where_they_are_not_zero(dtype):
    rng = np.random.default_rng(0)
    pred, gt = rng.random((9, 7)) < 0.6, rng.random((9, 7)) < 0.6
    # A view that is not contiguous.
    assert boundary_f((pred * 255).astype(dtype).T, gt.astype(dtype).T) == boundary_f(pred.T, gt.T)


def test_wrong_input():
    mask = np.ones((4, 5), bool)
    with pytest.raises(ValueError, match=r"\[4, 5\] and \[5, 4\]"):
        boundary_f(mask, mask.T)
    with pytest.raises(ValueError, match=r"\[4, 5\] and \[5, 4\]"):
        rle_boundary_f(rle(mask), rle(mask.T))
    with pytest.raises(ValueError, match=r"shape \(1, 4, 5\)"):
        boundary_f(mask[None], mask[None])
    for tolerance in (-1, math.nan, math.inf):
        with pytest.raises(ValueError, match="distance in pixels"):
            boundary_f(mask, mask, tolerance)
