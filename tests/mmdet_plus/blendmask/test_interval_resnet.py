"""Deformable convolutions in every third block."""

import torch
from mmdet.models.backbones import ResNet
from mmdet.utils import register_all_modules

from mmdet_plus.blendmask.interval_resnet import IntervalResNet

register_all_modules()
SETTINGS = dict(
    depth=50,
    base_channels=8,
    style="caffe",
    dcn=dict(type="DCNv2", deform_groups=1, fallback_on_stride=False),
    stage_with_dcn=(False, True, True, True),
)


def deformable(net):
    return {
        (stage, block)
        for stage, name in enumerate(net.res_layers)
        for block, module in enumerate(getattr(net, name))
        if hasattr(module.conv2, "conv_offset")
    }


def test_every_third_block():
    net = IntervalResNet(**SETTINGS)
    assert deformable(net) == {(1, 0), (1, 3), (2, 0), (2, 3), (3, 0)}
    plain = {**SETTINGS, "dcn": None, "stage_with_dcn": (False,) * 4}
    assert deformable(IntervalResNet(**plain)) == set()


def test_with_an_interval_of_one_it_is_mmdet_s():
    theirs, ours = ResNet(**SETTINGS), IntervalResNet(**SETTINGS, dcn_interval=1)
    assert deformable(ours) == deformable(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.eval()
    theirs.eval()
    image = torch.randn(1, 3, 64, 64)
    for a, b in zip(ours(image), theirs(image), strict=True):
        torch.testing.assert_close(a, b)


def test_it_starts_from_a_plain_resnet_without_offsets():
    plain = ResNet(**{**SETTINGS, "dcn": None, "stage_with_dcn": (False,) * 4})
    net = IntervalResNet(**SETTINGS)
    net.init_weights()
    missing, unexpected = net.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == [] and all("conv_offset" in name for name in missing)
    assert not any(net.state_dict()[name].any() for name in missing)
    # Without offsets only the mask is left, sigmoid(0).
    for stage in (net.layer1, net.layer2):
        x = torch.randn(1, 8, 9, 9) if stage is net.layer1 else torch.randn(1, 16, 9, 9)
        expected = torch.nn.functional.conv2d(x, stage[0].conv2.weight, padding=1)
        scale = 0.5 if stage is net.layer2 else 1.0
        torch.testing.assert_close(stage[0].conv2(x), scale * expected, rtol=1e-4, atol=1e-5)
