import numpy as np
import pytest
import torch

from mmseg_plus.bpr.colour_evidence import colour_evidence


def by_loops(image, mask, window):
    """For one (C, S, S) image: cells of 4 x 4, windows cut off at the border."""
    channels, side, _ = image.shape
    cells, reach = side // 4, window // 2
    evidence = np.zeros((side, side))
    for y in range(side):
        for x in range(side):
            row, column = y // 4, x // 4
            rows = slice(4 * max(row - reach, 0), 4 * min(row + reach + 1, cells))
            columns = slice(4 * max(column - reach, 0), 4 * min(column + reach + 1, cells))
            inside = mask[rows, columns] > 0
            if inside.all() or not inside.any():
                continue
            part = image[:, rows, columns]
            f = ((image[:, y, x] - part[:, inside].mean(1)) ** 2).sum()
            b = ((image[:, y, x] - part[:, ~inside].mean(1)) ** 2).sum()
            evidence[y, x] = (b - f) / (b + f + 1e-3)
    return evidence


@pytest.mark.parametrize("windows", [(3,), (1, 5), (3, 9)])
def test_it_is_what_the_loops_say(windows):
    rng = np.random.default_rng(0)
    images, masks = rng.normal(size=(2, 3, 24, 24)), rng.random((2, 1, 24, 24)) > 0.4
    masks[1, :, :, :13] = False
    found = colour_evidence(torch.tensor(images), torch.tensor(masks).double(), windows)
    assert found.shape == (2, len(windows), 24, 24)
    for i in range(2):
        for k, window in enumerate(windows):
            expected = by_loops(images[i], masks[i, 0], window)
            np.testing.assert_allclose(found[i, k], expected, atol=1e-9)


def test_a_shifted_mask_is_found_out():
    image = torch.zeros(1, 3, 64, 64)
    image[..., 32:] = 1
    coarse = torch.zeros(1, 1, 64, 64)
    coarse[..., 36:] = 1
    evidence = colour_evidence(image, coarse)
    # Right of column 32 lies the object, whatever the mask says.
    assert (evidence[:, 0, :, 32:36] > 0.3).all()
    assert (evidence[:, 1, :, 32:48] > 0.3).all() and (evidence[:, 1, :, 20:32] < -0.3).all()


def test_nothing_is_said_of_masks_that_are_all_one():
    image = torch.randn(1, 3, 32, 32)
    for value in (0, 1):
        assert not colour_evidence(image, torch.full((1, 1, 32, 32), float(value))).any()
