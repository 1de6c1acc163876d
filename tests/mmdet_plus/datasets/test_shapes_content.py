"""Whether the pictures hold the difficulties that they are drawn for."""

from collections import Counter
from itertools import combinations

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mmdet_plus.datasets.shapes import CLASSES, STUFF_CLASSES, THING_CLASSES, draw_sample
from mmdet_plus.datasets.shapes.catalog import LAYERS
from mmdet_plus.datasets.shapes.outlines import OUTLINES

COUNT = 150


@pytest.fixture(scope="module")
def samples():
    return [draw_sample(0, "train", i, (256, 256)) for i in range(COUNT)]


def name(annotation):
    return CLASSES[annotation["category_id"] - 1]


def decode(annotation):
    return mask_utils.decode(annotation["segmentation"])


def pairs(samples):
    """Pairs of things of one image, the upper one first."""
    for sample in samples:
        yield from combinations(sample.instances, 2)


def box_iou(a, b):
    (ax, ay, aw, ah), (bx, by, bw, bh) = a["bbox"], b["bbox"]
    inter = max(0, min(ax + aw, bx + bw) - max(ax, bx)) * max(
        0, min(ay + ah, by + bh) - max(ay, by)
    )
    return inter / (aw * ah + bw * bh - inter)


def touching(a, b):
    return bool((cv2.dilate(decode(a), np.ones((3, 3), np.uint8)) & decode(b)).any())


def test_numbers_and_sizes(samples):
    numbers = [len(sample.instances) for sample in samples]
    assert min(numbers) >= 1 and max(numbers) <= 12 and 5 <= np.mean(numbers) <= 9
    sides = [max(a["bbox"][2:]) for sample in samples for a in sample.instances]
    assert np.percentile(sides, 5) < 20 and np.percentile(sides, 95) > 80
    counts = Counter(name(a) for sample in samples for a in sample.instances)
    assert set(counts) == set(THING_CLASSES)
    assert min(counts.values()) > 0.05 * sum(counts.values())
    grounds = Counter(
        name(s) for sample in samples for s in sample.segments if name(s) in STUFF_CLASSES
    )
    assert set(grounds) == set(STUFF_CLASSES) and min(grounds.values()) > 0.3 * COUNT


@pytest.mark.parametrize(
    ("upper", "lower"), [("ribbon", "blob"), ("star", "slab"), ("comb", "slab")]
)
def test_some_classes_nearly_always_lie_on_top(samples, upper, lower):
    orders = [
        name(a) == upper
        for a, b in pairs(samples)
        if {name(a), name(b)} == {upper, lower} and touching(a, b)
    ]
    assert len(orders) >= 20, "the pair is too rare to be learned"
    assert np.mean(orders) >= 0.9


def test_the_order_is_not_always_given_by_the_class(samples):
    close = [
        LAYERS[name(a)] > LAYERS[name(b)]
        for a, b in pairs(samples)
        if 0 < abs(LAYERS[name(a)] - LAYERS[name(b)]) <= 0.3 and touching(a, b)
    ]
    assert len(close) >= 20
    same = [1 for a, b in pairs(samples) if name(a) == name(b) and touching(a, b)]
    assert 0.5 < np.mean(close) < 0.9
    assert len(same) > 0.5 * COUNT


def test_occlusion(samples):
    ratios = np.array([a["visible_ratio"] for sample in samples for a in sample.instances])
    assert 0.15 < np.mean(ratios < 0.9) < 0.6


def test_huddled_neighbours_have_boxes_that_overlap_and_like_colours(samples):
    huddled, colour_gaps, other_gaps = 0, [], []
    for sample in samples:
        means = [sample.image[decode(a) > 0].mean(axis=0) for a in sample.instances]
        for (i, a), (j, b) in combinations(enumerate(sample.instances), 2):
            gap = np.abs(means[i] - means[j]).mean()
            if name(a) == name(b) and box_iou(a, b) > 0.2 and touching(a, b):
                huddled += 1
                colour_gaps.append(gap)
            elif name(a) != name(b):
                other_gaps.append(gap)
    assert huddled > COUNT
    assert np.median(colour_gaps) < 0.5 * np.median(other_gaps)


def test_holes(samples):
    def holes(annotation):
        _, tree = cv2.findContours(decode(annotation), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        return int((tree[0, :, 3] >= 0).sum())

    whole = [
        a
        for sample in samples
        for a in sample.instances
        if a["visible_ratio"] == 1 and min(a["bbox"][2:]) > 24
    ]
    rings = [holes(a) for a in whole if name(a) == "ring"]
    lattices = [holes(a) for a in whole if name(a) == "lattice"]
    assert len(rings) > 10 and np.mean(np.array(rings) >= 1) > 0.9
    assert len(lattices) > 10 and np.median(lattices) >= 2


def test_thin_parts(samples):
    def breadth(annotation):
        padded = np.pad(decode(annotation), 1)
        return 2 * cv2.distanceTransform(padded, cv2.DIST_L2, 5).max()

    things = [a for sample in samples for a in sample.instances]
    ribbons = [a for a in things if name(a) == "ribbon"]
    assert np.median([breadth(a) for a in ribbons]) < 10
    assert np.median([max(a["bbox"][2:]) for a in ribbons]) > 30
    assert np.median([breadth(a) for a in things if name(a) == "comb"]) < 14


@pytest.mark.parametrize("shape", ["star", "crescent", "comb"])
def test_concave_outlines(shape):
    rng = np.random.default_rng(0)
    contour = np.rint(OUTLINES[shape](rng)[0] * 1000).astype(np.int32)
    hull = cv2.contourArea(cv2.convexHull(contour))
    assert cv2.contourArea(contour) < 0.8 * hull


@pytest.mark.parametrize("shape", THING_CLASSES)
def test_outlines_stay_in_their_frame(shape):
    rng = np.random.default_rng(1)
    for _ in range(50):
        points = np.concatenate(OUTLINES[shape](rng))
        assert np.isfinite(points).all()
        assert 0.5 < np.abs(points).max() <= 1.2


def test_colour_tells_a_part_of_the_classes(samples):
    colours, labels = [], []
    for sample in samples:
        for annotation in sample.instances:
            pixels = sample.image[decode(annotation) > 0].astype(float)
            colours.append(np.concatenate([pixels.mean(axis=0), pixels.std(axis=0)]))
            labels.append(annotation["category_id"])
    colours, labels = np.array(colours), np.array(labels)
    half = len(labels) // 2
    distance = np.abs(colours[half:, None, :3] - colours[None, :half, :3]).sum(axis=2)
    nearest = labels[:half][distance.argmin(axis=1)]
    assert 0.2 < np.mean(nearest == labels[half:]) < 0.6


def test_void_occurs_but_is_rare(samples):
    shares = np.array([np.mean(sample.stuff == 255) for sample in samples])
    assert 0.2 < np.mean(shares > 0) < 0.5
    assert shares.mean() < 0.25


@pytest.mark.parametrize("size", [(64, 64), (256, 64), (300, 517)])
def test_other_sizes(size):
    for index in range(8):
        sample = draw_sample(2, "val", index, size)
        assert sample.image.shape == (size[1], size[0], 3)
        assert len(sample.instances) >= 1
        assert all(a["area"] >= 4 for a in sample.instances)
