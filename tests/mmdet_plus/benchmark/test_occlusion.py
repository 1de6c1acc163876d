"""The benchmark of the occlusion head: its crowd, its plain way, its record."""

import torch

from mmdet_plus.benchmark.occlusion import both_concatenated, crowd, markdown, occlusion_speed
from mmdet_plus.refine import OcclusionNetwork
from mmdet_plus.refine.occlusion import Priors, overlapping_pairs


def test_a_crowd_overlaps_and_is_the_same_every_time():
    one, other = crowd(30, (80, 120)), crowd(30, (80, 120))
    assert torch.equal(one.masks, other.masks) and one.masks.shape == (30, 80, 120)
    assert 0 < len(overlapping_pairs(one.masks)) < 30 * 29
    assert one.scores.min() >= 0.5
    for mask, (x1, y1, x2, y2) in zip(one.masks, one.bboxes, strict=True):
        rows, cols = mask.nonzero().T
        assert x1 <= cols.min() and cols.max() < x2 + 1 and y1 <= rows.min() < y2 + 1


def test_the_plain_way_gives_the_same():
    torch.manual_seed(0)
    network = OcclusionNetwork(3, 4, conv_channels=8, fc_channels=8, roi_size=6)
    network.init_weights()
    priors = Priors(torch.rand(4, 12, 12), torch.randn(4, 4, 6, 6), torch.tensor([0, 1, 2, 0]))
    pairs = torch.tensor([[0, 1], [1, 0], [3, 2]])
    with torch.no_grad():
        torch.testing.assert_close(
            network(priors, pairs), both_concatenated(network, priors, pairs), rtol=1e-4, atol=1e-6
        )


def test_the_record():
    record = occlusion_speed(instances=6, size=(64, 96), repeats=1)
    assert record["every_pair"] == 30 and 0 < record["pairs"] <= 30
    assert record["head_seconds"] > 0 and record["environment"]["threads"] == 1
    text = markdown(record)
    assert f"6 instances, {record['pairs']} of 30 ordered pairs overlap" in text
