"""Unknown Erasing: equal to a plain reference that goes region by region, and right at edges."""

import numpy as np
import pytest
import torch

from mmdet_plus.panoptic_fusion import unknown_erasing
from mmdet_plus.panoptic_fusion.unknown_erasing import erase_regions


def regions_of(labels):
    """Each 8-connected region as (label, mask), by flooding."""
    seen = np.zeros(labels.shape, bool)
    for start in np.ndindex(*labels.shape):
        if seen[start]:
            continue
        mask, waiting = np.zeros(labels.shape, bool), [start]
        mask[start] = True
        while waiting:
            y, x = waiting.pop()
            for ny in range(max(y - 1, 0), min(y + 2, labels.shape[0])):
                for nx in range(max(x - 1, 0), min(x + 2, labels.shape[1])):
                    if not mask[ny, nx] and labels[ny, nx] == labels[start]:
                        mask[ny, nx] = True
                        waiting.append((ny, nx))
        seen |= mask
        yield int(labels[start]), mask


def grown(mask, dilation):
    wide = np.zeros_like(mask)
    for y, x in zip(*mask.nonzero(), strict=True):
        wide[max(y - dilation, 0) : y + dilation + 1, max(x - dilation, 0) : x + dilation + 1] = 1
    return wide


def plain_erasing(probs, threshold, dilation, stuff_classes, void):
    labels = probs.argmax(0)
    out = labels.copy()
    for label, mask in regions_of(labels):
        confidence = probs[label][grown(mask, dilation)].astype(np.float64).mean()
        if label in stuff_classes and confidence < threshold:
            out[mask] = void
    return out


def random_probs(rng, classes, height, width, cell):
    coarse = rng.random((classes, -(-height // cell), -(-width // cell)))
    probs = coarse.repeat(cell, 1).repeat(cell, 2)[:, :height, :width] * 3
    probs = np.exp(probs + rng.random((classes, height, width)))
    return (probs / probs.sum(0)).astype(np.float32)


@pytest.mark.parametrize("dilation", [0, 1, 3, 50])
@pytest.mark.parametrize("size", [(1, 1), (1, 23), (17, 1), (19, 28)])
def test_equal_to_the_plain_reference(size, dilation):
    rng = np.random.default_rng(dilation)
    kept, erased = 0, 0
    for cell in (1, 4, 9):
        for classes, stuff in ((1, [0]), (3, [1, 2]), (5, [3, 0, 4])):
            probs = random_probs(rng, classes, *size, cell)
            threshold = float(np.quantile(probs.max(0), rng.random()))
            expected = plain_erasing(probs, threshold, dilation, stuff, 9)
            labels = unknown_erasing(probs, threshold, dilation, stuff, 9)
            assert isinstance(labels, np.ndarray) and labels.dtype == np.int64
            assert np.array_equal(labels, expected)
            given = torch.from_numpy(probs)
            assert torch.equal(
                unknown_erasing(given, threshold, dilation, stuff, 9), torch.from_numpy(labels)
            )
            erased += (labels == 9).sum()
            kept += (labels != 9).sum()
    assert kept and (erased or size == (1, 1))


def speck(certainty=0.99):
    """Sure of class 1, but for one pixel in which it is sure of class 2."""
    probs = torch.zeros(3, 9, 9, dtype=torch.float64)
    probs[1] = 0.9
    probs[:, 4, 4] = torch.tensor([0.0, 0.0, certainty])
    return probs


def test_a_small_sure_fragment_goes():
    labels = unknown_erasing(speck(), dilation=0)
    assert labels[4, 4] == 2 and (labels == 1).sum() == 80
    labels = unknown_erasing(speck(), dilation=1)
    assert labels[4, 4] == 0 and (labels == 1).sum() == 80
    # Its confidence is 0.99 / 9, and at the threshold it stays.
    assert unknown_erasing(speck(), 0.99 / 9 - 1e-9, 1)[4, 4] == 2
    assert unknown_erasing(speck(0.875), 0.875, 0)[4, 4] == 2


def test_the_border_of_the_image_cuts_the_square():
    probs = torch.zeros(3, 5, 5, dtype=torch.float64)
    probs[1] = 0.9
    probs[:, 0, 0] = torch.tensor([0.0, 0.0, 0.8])
    # Four pixels around the corner, not nine.
    assert unknown_erasing(probs, 0.19, 1)[0, 0] == 2
    assert unknown_erasing(probs, 0.21, 1)[0, 0] == 0


def test_only_stuff_is_tested():
    probs = torch.full((4, 6, 6), 0.2)
    probs[3] = 0.3
    assert (unknown_erasing(probs) == 0).all()
    assert (unknown_erasing(probs, stuff_classes=[1, 2]) == 3).all()
    assert (unknown_erasing(probs, stuff_classes=[], void=9) == 3).all()
    assert (unknown_erasing(probs, stuff_classes=[3, 3], void=255) == 255).all()
    # By default class 0 stands for the things.
    probs[0] = 0.35
    assert (unknown_erasing(probs) == 0).all()
    assert (unknown_erasing(probs, void=1) == 1).all()


def test_touching_at_a_corner_is_one_region():
    probs = torch.full((2, 4, 4), 0.4, dtype=torch.float64)
    probs[0] = 0.9
    probs[:, 1, 1] = torch.tensor([0.1, 0.9])
    probs[:, 2, 2] = torch.tensor([0.3, 0.5])
    labels = unknown_erasing(probs, 0.65, 0, void=7)
    # Together 0.7; alone the second would have 0.5.
    assert labels[1, 1] == 1 and labels[2, 2] == 1
    assert unknown_erasing(probs, 0.75, 0, void=7)[[1, 2], [1, 2]].tolist() == [7, 7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_and_views(dtype):
    rng = np.random.default_rng(3)
    probs = torch.from_numpy(random_probs(rng, 4, 12, 15, 3)).to(dtype)
    mirrored = probs.transpose(1, 2).flip(2)
    expected = plain_erasing(mirrored.double().numpy(), 0.4, 2, [1, 2], 0)
    assert torch.equal(unknown_erasing(mirrored, 0.4, 2, [1, 2]), torch.from_numpy(expected))
    array = probs.double().numpy()[:, :, ::-1]
    assert np.array_equal(unknown_erasing(array, 0.4, 2, [1]), plain_erasing(array, 0.4, 2, [1], 0))


def test_regions_of_a_map_that_is_given():
    probs = torch.tensor([0.7, 0.3])[:, None, None].expand(2, 4, 4)
    labels = torch.ones(4, 4, dtype=torch.long)
    labels[:, 2:] = 0
    labels[0] = -1
    erased = erase_regions(labels, probs, 0.5, 1, [0, 1], 5)
    assert (erased[1:, :2] == 5).all() and (erased[1:, 2:] == 0).all() and (erased[0] == -1).all()


def test_no_pixels():
    assert unknown_erasing(torch.zeros(3, 0, 5)).shape == (0, 5)
    assert unknown_erasing(np.zeros((3, 4, 0))).shape == (4, 0)


def test_what_cannot_be_is_refused():
    probs = torch.rand(3, 4, 4)
    with pytest.raises(TypeError, match="sem_probs must be floating point, got torch.int64"):
        unknown_erasing(probs.long())
    with pytest.raises(ValueError, match=r"sem_probs must be \(C, H, W\), C >= 1.*\(4, 4\)"):
        unknown_erasing(probs[0])
    with pytest.raises(ValueError, match=r"must be \(C, H, W\), C >= 1.*\(0, 4, 4\)"):
        unknown_erasing(probs[:0])
    with pytest.raises(ValueError, match=r"stuff_classes: \[-1, 3\] are not in \[0, 3\)"):
        unknown_erasing(probs, stuff_classes=[3, 1, -1])
    for threshold in (-0.1, 60, float("nan")):
        with pytest.raises(ValueError, match=r"threshold must be a probability in \[0, 1\]"):
            unknown_erasing(probs, threshold)
    for dilation in (-1, 1.5, True):
        with pytest.raises(ValueError, match="dilation must be a whole number of pixels >= 0"):
            unknown_erasing(probs, dilation=dilation)
    probs[1, 2, 3] = torch.nan
    with pytest.raises(ValueError, match="sem_probs holds NaN"):
        unknown_erasing(probs)
