"""More RoIs than are worked off at a time."""

import pytest
import torch

from mmplus_ops import has_compiled_ops, shape_aware_roi_align


@pytest.mark.skipif(not has_compiled_ops(), reason="about the compiled kernel's memory")
def test_rois_worked_off_in_turn_give_the_same():
    """Large RoIs read so many cells that 256 are a turn; the second image comes in the second."""
    torch.manual_seed(0)
    feature = torch.randn(3, 1, 320, 320, requires_grad=True)
    prob = torch.rand(300, 4, 4, requires_grad=True)
    corners = torch.rand(300, 2) * 20
    image = (torch.arange(300) >= 260).float()[:, None]
    rois = torch.cat([image, corners, corners + 295], 1)
    grad = torch.randn(300, 1, 7, 7)

    def grads(part):
        out = shape_aware_roi_align(feature, rois[part], prob[part], 7)
        return out, *torch.autograd.grad(out, (feature, prob), grad[part])

    out, feature_grad, prob_grad = grads(slice(None))
    parts = [grads(slice(start, start + 100)) for start in (0, 100, 200)]
    torch.testing.assert_close(out, torch.cat([part[0] for part in parts]))
    expected = sum(part[1] for part in parts)
    torch.testing.assert_close(feature_grad, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(prob_grad, sum(part[2] for part in parts), rtol=1e-4, atol=1e-5)
    assert feature_grad[2].abs().sum() == 0 and feature_grad[1].abs().sum() > 0
