"""The codec of masks, held to pycocotools, and what it says of damaged ones."""

import numpy as np
import pytest
import tiny_results
from pycocotools import mask as coco_mask

from mmseg_plus.common.coco_masks import (
    as_text,
    decode_mask,
    encode_mask,
    mask_area,
    mask_box,
    mask_faults,
)


def drawn_masks():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = (int(side) for side in rng.integers(1, 18, 2))
        yield rng.random((height, width)) < rng.choice([0, 0.03, 0.5, 0.97, 1])
    yield np.zeros((1, 1), bool)
    yield np.ones((7, 9), bool)
    # Counts of several groups of 5 bits, and differences of both signs.
    big = np.zeros((300, 700), bool)
    big[20:280, 40:690] = True
    big[100:200, 300:310] = False
    yield big


def test_masks_are_coded_as_pycocotools_does():
    for mask in drawn_masks():
        height, width = mask.shape
        counts = encode_mask(mask)
        rle = tiny_results.rle(mask)
        assert counts == rle["counts"]
        assert np.array_equal(decode_mask(rle, height, width), mask)
        assert mask_area(counts, height, width) == mask.sum()


def test_uncompressed_counts_and_polygons():
    plain = {"size": [3, 4], "counts": [0, 2, 4, 3, 3]}
    expected = np.array([[1, 0, 0, 0], [1, 0, 1, 0], [0, 0, 1, 0]], bool)
    expected[:, 2] = [True, True, True]
    assert np.array_equal(decode_mask(plain, 3, 4), expected)
    polygons = [[1, 1, 9, 1.5, 8, 7], [11, 2, 15, 2, 15, 8, 11, 8]]
    whole = coco_mask.merge(coco_mask.frPyObjects(polygons, 10, 16))
    assert np.array_equal(decode_mask(polygons, 10, 16), coco_mask.decode(whole).astype(bool))


def test_boxes():
    mask = np.zeros((10, 12), bool)
    assert mask_box(encode_mask(mask), 10, 12) == [0, 0, 0, 0]
    mask[3:5, 6:11] = True
    assert mask_box(encode_mask(mask), 10, 12) == [6, 3, 5, 2]


def test_bytes_become_text():
    mask = np.eye(5, dtype=bool)
    assert as_text(tiny_results.rle(mask, text=False)) == tiny_results.rle(mask)
    assert as_text([[1, 2, 3]]) == [[1, 2, 3]]


@pytest.mark.parametrize(
    "counts",
    ["", "\xff", "zz", "0", "P", "11", "a" * 9, [5, 5], [-4, 24], [], "X".join("ab")],
)
def test_damaged_counts_are_never_decoded(counts):
    with pytest.raises(ValueError, match="do not add up"):
        decode_mask({"size": [4, 5], "counts": counts}, 4, 5)


def test_counts_with_a_negative_one_are_refused():
    # They add up to the size, so that no sum tells.
    rle = {"size": [4, 5], "counts": tiny_results.coded(-2, 22)}
    assert not list(mask_faults([("mask", rle, 4, 5)]))
    with pytest.raises(ValueError, match="do not add up"):
        decode_mask(rle, 4, 5)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "m 1: has no segmentation"),
        (None, "m 1: has no segmentation"),
        ("mask", "neither a list of polygons nor an RLE"),
        ({"size": [4, 6], "counts": "0"}, r"has size \[4, 6\] but the image is \[4, 5\]"),
        ({"size": [4, 5], "counts": "zz"}, "do not add up"),
        ({"size": [4, 5], "counts": [3, 3]}, "do not add up"),
        ([[1, 2, 3, 4]], "has 4 numbers"),
        ([[1, 1, 3, 3, float("inf"), 4]], "not a finite number"),
        ([[1, 1, 3, 1, 3, 1e12]], "far outside"),
    ],
)
def test_faults_name_the_mask(segmentation, message):
    good = tiny_results.rle(np.eye(4, 5, dtype=bool))
    masks = [("m 0", good, 4, 5), ("m 1", segmentation, 4, 5), ("m 2", good, 4, 5)]
    (fault,) = mask_faults(masks)
    assert fault.startswith("m 1: ")
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(fault)
