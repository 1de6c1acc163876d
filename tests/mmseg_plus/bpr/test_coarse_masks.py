"""Coarse masks made from ground truth: how far they go, and that no odd mask breaks them."""

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

from mmseg_plus.bpr.coarse_masks import (
    KINDS,
    _cell_means,
    _pasting,
    degrade,
    mask_head_degradation,
    polygon_simplification,
    random_morphology,
)

EVERY = {**KINDS, "degrade": degrade}
every = pytest.mark.parametrize("change", EVERY.values(), ids=EVERY)


def generator(seed=0):
    return np.random.default_rng(seed)


def disc(radius=40, centre=(60, 60), shape=(128, 128), hole=0):
    mask = np.zeros(shape, np.uint8)
    cv2.circle(mask, centre, radius, 1, -1)
    if hole:
        cv2.circle(mask, centre, hole, 0, -1)
    return mask.astype(bool)


def iou(a, b):
    return (a & b).sum() / (a | b).sum()


def band(mask, width):
    """What lies within some pixels of the boundary."""
    kernel = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    grown = cv2.dilate(mask.astype(np.uint8), kernel)
    return (grown - cv2.erode(mask.astype(np.uint8), kernel)).astype(bool)


@every
def test_the_seed_decides(change):
    mask = disc(hole=15)
    before = mask.copy()
    coarse = [change(mask, generator(seed)) for seed in (1, 1, 2, 3)]
    np.testing.assert_array_equal(mask, before)
    np.testing.assert_array_equal(coarse[0], coarse[1])
    assert any((coarse[0] != other).any() for other in coarse[2:])
    assert all(c.dtype == bool and c.shape == mask.shape for c in coarse)


@every
def test_errors_lie_near_the_boundary_and_are_there(change):
    mask = disc(hole=15)
    found = [change(mask, generator(seed)) for seed in range(20)]
    values = [iou(coarse, mask) for coarse in found]
    assert min(values) > 0.6 and 0.8 < np.mean(values) < 0.98 and min(values) < 0.96
    near = band(mask, 15)
    assert all(((coarse ^ mask) <= near).all() for coarse in found)


@every
def test_holes_stay_holes(change):
    mask = disc(hole=15)
    for seed in range(10):
        coarse = change(mask, generator(seed))
        assert not coarse[60, 60] and coarse[60, 87]


@every
@pytest.mark.parametrize("area", ["one pixel", "row", "column", "corner", "all", "edge", "two"])
def test_odd_masks(change, area):
    mask = np.zeros((30, 40), bool)
    mask[
        {
            "one pixel": (10, 12),
            "row": (7, slice(3, 35)),
            "column": (slice(None), 39),
            "corner": (29, 39),
            "all": ...,
            "edge": (slice(20, None), slice(10, 30)),
            "two": (slice(2, 28, 25), slice(2, 38, 35)),
        }[area]
    ] = True
    for seed in range(25):
        assert change(mask, generator(seed)).any()


@every
@pytest.mark.parametrize("shape", [(30, 40), (0, 40), (30, 0), (1, 1)])
def test_an_empty_mask_stays_empty(change, shape):
    coarse = change(np.zeros(shape, bool), generator())
    assert coarse.shape == shape and not coarse.any()


@every
def test_the_result_does_not_depend_on_the_canvas(change):
    """What is done to an instance is decided in the crop around it."""
    mask = disc(20, (70, 80), (160, 170), hole=5)
    wide = np.zeros((400, 900), bool)
    wide[100:260, 600:770] = mask
    for seed in range(10):
        coarse = change(mask, generator(seed))
        there = change(wide, generator(seed))
        np.testing.assert_array_equal(there[100:260, 600:770], coarse)
        assert there.sum() == coarse.sum()


@every
def test_memory_order_does_not_matter(change):
    mask = disc(hole=15)
    twice = np.zeros((256, 256), bool)
    twice[::2, ::2] = mask
    for other in (np.asfortranarray(mask), twice[::2, ::2]):
        np.testing.assert_array_equal(change(other, generator(3)), change(mask, generator(3)))


@every
def test_an_instance_that_leaves_the_image_goes_on_doing_so(change):
    mask = disc(40, (0, 60))
    for seed in range(20):
        # A box may be predicted too small; the image's border itself moves nothing.
        assert change(mask, generator(seed))[45:75, :5].any()
    assert random_morphology(mask, generator(), max_fraction=0.1, waves=0)[:, 0].any()


def test_morphology_does_not_erode_at_the_image_border():
    mask = disc(40, (0, 60))
    eroded = [random_morphology(mask, generator(seed), 0.1, waves=0) for seed in range(20)]
    eroded = [coarse for coarse in eroded if coarse.sum() < 0.9 * mask.sum()]
    assert len(eroded) >= 3
    assert all(coarse[30:90, 0].all() for coarse in eroded)


def test_a_mask_head_without_errors_gives_the_shape_back():
    mask = disc(13, (20, 20), (40, 44))
    coarse = [
        mask_head_degradation(mask, generator(seed), size=56, noise=0, box_jitter=0)
        for seed in range(40)
    ]
    assert min(iou(c, mask) for c in coarse) > 0.8
    # No shift to one side: the errors are as large left as right, up as down.
    for axis in (0, 1):
        assert np.mean([np.argwhere(c)[:, axis].mean() for c in coarse]) == pytest.approx(
            20, abs=0.1
        )


def test_masks_are_pasted_as_mmdet_does():
    grid = generator().random((14, 14)).astype(np.float32)
    box = np.array([3.3, 5.8, 25.1, 37.6])
    pasted, _ = _do_paste_mask(
        torch.from_numpy(grid)[None, None],
        torch.from_numpy(box)[None].float(),
        40,
        30,
        skip_empty=False,
    )
    ours = _pasting(box[1::2], 40, 14) @ grid @ _pasting(box[::2], 30, 14).T
    np.testing.assert_allclose(ours, pasted[0].numpy(), atol=1e-4)


def test_cells_hold_the_mean_of_what_they_cover():
    line = generator().random(20)
    side = np.array([2.25, 17.75])
    fine = np.repeat(line, 1000)[2250:17750].reshape(5, -1).mean(axis=1)
    np.testing.assert_allclose(_cell_means(side, 20, 5) @ line, fine, atol=1e-3)


def test_a_smaller_grid_is_coarser_and_more_noise_is_worse():
    def mean(**settings):
        star = np.zeros((160, 160), np.uint8)
        angles = np.arange(24) * np.pi / 12
        radius = np.where(np.arange(24) % 2, 35, 75)[:, None]
        points = 80 + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        cv2.fillPoly(star, [points.astype(np.int32)], 1)
        star = star.astype(bool)
        return np.mean(
            [iou(mask_head_degradation(star, generator(s), **settings), star) for s in range(20)]
        )

    assert mean(size=7) < mean(size=14) < mean(size=28)
    assert mean(size=28, noise=4.0) < mean(size=28, noise=0.0) - 0.02


def test_polygons_of_no_tolerance_are_exact():
    mask = disc(hole=15)
    mask[5, 5] = mask[10, 100:120] = True
    coarse = polygon_simplification(mask, generator(), tolerance=0, jitter=0)
    np.testing.assert_array_equal(coarse, mask)


def test_vertices_are_moved():
    mask = disc(hole=15)
    found = [polygon_simplification(mask, generator(s), 0.02, jitter=0.05) for s in range(5)]
    still = [polygon_simplification(mask, generator(s), 0.02, jitter=0) for s in range(5)]
    assert max(map(iou, found, [mask] * 5)) < min(map(iou, still, [mask] * 5))


def test_mask_heads_miss_both_ways():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    found = [mask_head_degradation(mask, generator(seed), box_jitter=0.1) for seed in range(20)]
    assert max((coarse & ~mask).sum() for coarse in found) > 20
    assert max((mask & ~coarse).sum() for coarse in found) > 20


def test_a_chain_of_two_kinds():
    mask = disc(hole=15)
    one, two = (
        np.mean([iou(degrade(mask, generator(s), chain=p), mask) for s in range(40)])
        for p in (0, 1)
    )
    assert two < one - 0.02


def test_polygons_have_few_vertices():
    def vertices(mask):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        return len(cv2.approxPolyDP(contours[0], 1.5, closed=True))

    mask = disc(60, (64, 64))
    coarse = polygon_simplification(mask, generator(), tolerance=0.2, jitter=0)
    assert vertices(coarse) < vertices(mask) - 3


def test_morphology_goes_both_ways_and_unevenly():
    mask = disc()
    sizes = [random_morphology(mask, generator(seed), waves=0).sum() for seed in range(30)]
    assert min(sizes) < 0.95 * mask.sum() and max(sizes) > 1.05 * mask.sum()
    wavy = random_morphology(mask, generator(), max_fraction=0.1, waves=1)
    assert (wavy & ~mask).any() and (mask & ~wavy).any()


def test_a_moved_disc_is_a_disc_of_another_radius():
    mask = disc(50, (80, 80), (160, 160))
    side = np.sqrt(mask.sum())
    errors = []
    for seed in range(40):
        # The first number that is drawn.
        moved = generator(seed).uniform(-0.2 * side, 0.2 * side)
        coarse = random_morphology(mask, generator(seed), max_fraction=0.2, waves=0)
        errors.append(np.sqrt(coarse.sum() / np.pi) - np.sqrt(mask.sum() / np.pi) - moved)
    assert np.abs(errors).max() < 0.6 and abs(np.mean(errors)) < 0.12


def test_least_iou():
    mask = disc(7, (20, 20), (40, 40))
    values = [iou(degrade(mask, generator(seed), min_iou=0.85), mask) for seed in range(40)]
    assert min(values) > 0.85 and np.mean(np.array(values) < 1) > 0.6
    loose = [iou(degrade(mask, generator(seed), min_iou=0.0), mask) for seed in range(40)]
    assert min(loose) <= 0.8
    # Out of reach: the mask itself.
    np.testing.assert_array_equal(degrade(mask, generator(), min_iou=1.0), mask)


def test_only_the_chosen_kinds():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    for seed in range(10):
        # A square is a polygon of four vertices already.
        assert iou(degrade(mask, generator(seed), ["polygon"]), mask) > 0.9
    with pytest.raises(ValueError, match=r"some of mask_head, polygon, morphology, got blur"):
        degrade(mask, generator(), ["blur"])
    with pytest.raises(ValueError, match="kinds"):
        degrade(mask, generator(), [])
