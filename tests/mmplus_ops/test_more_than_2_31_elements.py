"""Inputs of more than 2^31 elements: places are counted in 64 bits.

NumPy's zeros cost no memory until they are written, so these need little. An op that lost a bit
would read, or write, elsewhere.
"""

import sys

import numpy as np
import pytest
import torch
from op_cases import needs_compiled_ops

import mmplus_ops

pytestmark = [
    needs_compiled_ops,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="about Linux's memory"),
]


def zeros(*shape, dtype):
    try:
        value = torch.from_numpy(np.zeros(shape, dtype))
    except MemoryError:
        pytest.skip("this machine promises no memory beyond what it has")
    assert value.numel() > 2**31
    return value


def test_features_of_the_last_image():
    feature = zeros(520, 65, 256, 256, dtype=np.float16)
    feature[519, 64, :8] = torch.arange(256.0)
    roi, prob = torch.tensor([[519.0, 10, 0, 18, 4]]), torch.ones(1, 1, 1)
    out = mmplus_ops.shape_aware_roi_align(feature, roi, prob, (1, 4))
    expected = torch.zeros(1, 65, 1, 4)
    expected[0, 64, 0] = torch.tensor([10.5, 12.5, 14.5, 16.5])
    torch.testing.assert_close(out.float(), expected)


def test_bases_of_the_last_image():
    bases = zeros(33000, 4, 128, 128, dtype=np.float16)
    bases[32999, :, :8] = torch.arange(128.0)
    roi = torch.tensor([[32999.0, 10, 0, 18, 8]])
    out = mmplus_ops.blend_bases(bases, roi, torch.zeros(1, 4, 2, 2).half(), 4, 1.0)
    row = torch.tensor([10.5, 12.5, 14.5, 16.5])
    torch.testing.assert_close(out.float(), row.expand(1, 4, 4))


@pytest.mark.slow
def test_canvas_of_the_last_class():
    """The result is written in full: 4.6 GB."""
    classes = 2**22
    rois, label = torch.tensor([[0.0, 0, 0, 128, 64]]), torch.tensor([classes - 1])
    out = mmplus_ops.roi_flatten(torch.ones(1, 40, 40).half(), rois, label, classes, 1, (17, 32))
    assert out.numel() > 2**31
    assert out[0, -1, 1:15, 1:31].min() == 1 and out[0, -1, 16].max() == 0
    assert out[0, -2].abs().sum() == 0


def test_masks_behind_others():
    masks = zeros(3, 27000, 27000, dtype=bool)
    masks[2, 26990:, 26950:] = True
    masks[1, 26995:, 26980:] = True
    areas = mmplus_ops.mask_intersections(masks)
    assert areas.tolist() == [[0, 0, 0], [0, 100, 100], [0, 100, 500]]
    boxes, index = mmplus_ops.extract_boundary_patches(masks, 64)
    # As in the corner alone: away from all of it, patches are chosen in the same order.
    corner, of = mmplus_ops.extract_boundary_patches(masks[:, -200:, -200:], 64)
    assert torch.equal(boxes, corner + 26800) and torch.equal(index, of) and len(boxes) > 1
