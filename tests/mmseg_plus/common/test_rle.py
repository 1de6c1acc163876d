import numpy as np
import pytest
from pycocotools import mask as mask_utils

from mmseg_plus.common import rle


def encode(mask):
    return mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


@pytest.fixture(scope="module")
def masks():
    rng = np.random.default_rng(0)
    masks = []
    for number in range(150):
        mask = rng.random(rng.integers(1, 150, 2)) < rng.choice([0, 0.01, 0.5, 1])
        if number % 3 == 0:
            mask[:] = False
            mask[len(mask) // 4 :, mask.shape[1] // 3 :] = True
        masks.append(mask)
    # Counts of many groups, as in large pictures.
    masks.append(np.zeros((3000, 4000)))
    masks[-1][1000:2500, 7] = 1
    return masks


@pytest.mark.parametrize("chunk", [1, 1 << 14])
def test_a_mask_s_counts_add_up_to_its_pixels(masks, chunk, monkeypatch):
    monkeypatch.setattr(rle, "_CHUNK_CHARS", chunk)
    texts = [encode(mask) for mask in masks]
    np.testing.assert_array_equal(rle.pixel_counts(texts), [mask.size for mask in masks])


def test_what_is_no_rle_does_not_touch_its_neighbours(masks):
    good, size = encode(masks[3]), masks[3].size
    # Cut inside of a number, empty, foreign letters, a number without end or far too long.
    for bad in (
        encode(masks[-1])[:1],
        "",
        "\u00e9",
        "\u4e2d",
        "\udc80",
        "~~",
        "oo",
        "o" * 20 + "0",
    ):
        assert rle.pixel_counts([good, bad, good]).tolist() == [size, -1, size]
    assert rle.pixel_counts([bad]).tolist() == [-1]
    assert rle.pixel_counts([]).tolist() == []


def test_a_text_cut_short_or_continued_covers_other_pixels(masks):
    good = encode(masks[3])
    assert rle.pixel_counts([good[:-1]]) != masks[3].size
    assert rle.pixel_counts([good + "5"]) != masks[3].size
