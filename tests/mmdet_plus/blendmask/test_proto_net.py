"""The bottom module against the same steps written out."""

import pytest
import torch
import torch.nn.functional as F
from mmdet.utils import register_all_modules

from mmdet_plus.blendmask import ProtoNet

register_all_modules()


def make(**changes):
    torch.manual_seed(0)
    settings = dict(in_channels=6, feat_channels=8, num_classes=5, norm_cfg=dict(type="BN"))
    return ProtoNet(**{**settings, **changes}).eval()


@pytest.fixture
def levels():
    torch.manual_seed(1)
    # The sizes of a padded image need not halve evenly.
    return [torch.randn(2, 6, *size) for size in ((13, 16), (7, 8), (4, 4), (2, 2), (1, 1))]


def block(module, x):
    x = F.conv2d(x, module.conv.weight, padding=1)
    norm = module.bn
    x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    return x.relu()


def resize(x, size):
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("num_convs", [2, 3])
def test_bases(levels, num_convs):
    net = make(num_convs=num_convs, num_bases=3)
    x = block(net.level_convs[0], levels[0])
    x = x + resize(block(net.level_convs[1], levels[1]), (13, 16))
    x = x + resize(block(net.level_convs[2], levels[2]), (13, 16))
    for conv in net.convs:
        x = block(conv, x)
    x = block(net.fine_convs[0], resize(x, (26, 32)))
    expected = F.conv2d(x, net.conv_bases.weight, net.conv_bases.bias)
    bases = net(levels)
    assert bases.shape == (2, 3, 26, 32) and len(net.convs) == num_convs
    torch.testing.assert_close(bases, expected)


def test_each_of_the_first_levels_counts_and_no_other(levels):
    net = make(num_levels=2)
    bases = net(levels)
    for level in range(len(levels)):
        others = [x + (i == level) for i, x in enumerate(levels)]
        assert torch.equal(net(others), bases) == (level >= 2), level


def test_semantics(levels):
    net = make()
    x = block(net.sem_convs[1], block(net.sem_convs[0], levels[0]))
    expected = F.conv2d(x, net.conv_sem.weight, net.conv_sem.bias)
    torch.testing.assert_close(net.semantics(levels), expected)
    assert net.semantics(levels).shape == (2, 6, 13, 16)


def test_convolutions_start_as_the_authors_do():
    net = make(in_channels=64, feat_channels=64)
    net.init_weights()
    for conv in (net.level_convs[0], net.convs[0], net.fine_convs[0], net.sem_convs[0]):
        bound = (3 / (64 * 9)) ** 0.5
        assert 0.95 * bound < float(conv.conv.weight.detach().abs().max()) <= bound
