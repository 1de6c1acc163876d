"""ShapeAwareRoIExtractor beside mmdet's SingleRoIExtractor."""

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules

import mmdet_plus.mr_rcnn  # noqa: F401, registers the extractor

register_all_modules()
STRIDES = [4, 8, 16, 32]


def extractor(kind):
    return MODELS.build(
        dict(
            type=kind,
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=0),
            out_channels=3,
            featmap_strides=STRIDES,
        )
    )


@pytest.fixture
def features():
    torch.manual_seed(0)
    return tuple(torch.randn(2, 3, 512 // s, 512 // s, requires_grad=True) for s in STRIDES)


@pytest.fixture
def rois():
    """RoIs of all levels, not in the order of the levels."""
    sizes = torch.tensor([300.0, 20.0, 500.0, 130.0, 30.0, 240.0])
    image = torch.tensor([0.0, 1, 1, 0, 0, 1])
    corner = torch.full((6, 2), 5.0)
    return torch.cat([image[:, None], corner, corner + sizes[:, None]], 1)


@pytest.mark.parametrize("prob", [None, torch.ones(6, 28, 28)])
def test_equals_the_plain_extractor_where_prob_is_one(features, rois, prob):
    expected = extractor("SingleRoIExtractor")(features, rois)
    out = extractor("ShapeAwareRoIExtractor")(features, rois, prob)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


def test_every_roi_reads_its_own_probability(features, rois):
    ours = extractor("ShapeAwareRoIExtractor")
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    out = ours(features, rois, scale[:, None, None].expand(6, 28, 28))
    full = ours(features, rois, torch.ones(6, 28, 28))
    torch.testing.assert_close(out, full * scale[:, None, None, None], rtol=1e-4, atol=1e-5)


def test_levels_without_rois_stay_in_the_graph(features, rois):
    out = extractor("ShapeAwareRoIExtractor")(features, rois[1:2], torch.ones(1, 28, 28))
    out.sum().backward()
    assert all(f.grad is not None for f in features)
    assert features[0].grad.abs().sum() > 0 and features[3].grad.abs().sum() == 0


def test_no_roi(features):
    out = extractor("ShapeAwareRoIExtractor")(features, torch.zeros(0, 5), torch.zeros(0, 28, 28))
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert all(f.grad is not None for f in features)


def test_a_scaled_roi_would_leave_its_probability(features, rois):
    with pytest.raises(ValueError, match="roi_scale_factor"):
        extractor("ShapeAwareRoIExtractor")(features, rois, torch.ones(6, 28, 28), 1.5)


@pytest.mark.parametrize(
    "layer",
    [dict(type="RoIAlign", output_size=7, pool_mode="max"), dict(type="RoIPool", output_size=7)],
)
def test_a_layer_that_does_not_average_is_refused(layer):
    cfg = dict(type="ShapeAwareRoIExtractor", out_channels=3, featmap_strides=STRIDES)
    with pytest.raises(ValueError, match="pool_mode='avg', not of RoI"):
        MODELS.build(dict(cfg, roi_layer=layer))
