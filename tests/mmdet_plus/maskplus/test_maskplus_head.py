"""MaskPlusHead beside mmdet's FCNMaskHead."""

import copy
import itertools

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from tiny_maskplus import sampled

from mmdet_plus.maskplus import DeconvPyramid, GCNBoundaryRefinement, ImprovedBoundaryRefinement

TRAIN = ConfigDict(mask_size=28)
# Every variant with a technique: (pyramid, refinement, quasi-multitask).
VARIANTS = [
    dict(deconv_pyramid=pyramid, boundary_refinement=kind, quasi_multitask=scale)
    for pyramid, kind, scale in itertools.product(
        (False, True), (None, "improved", "gcn"), (None, 0.5, 2)
    )
]


def head_cfg(kind="MaskPlusHead", **kwargs):
    loss = dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0)
    sizes = dict(num_convs=2, in_channels=8, conv_out_channels=8, num_classes=3)
    return dict(dict(sizes, type=kind, loss_mask=loss), **kwargs)


def build(kind="MaskPlusHead", seed=0, **kwargs):
    torch.manual_seed(seed)
    head = MODELS.build(head_cfg(kind, **kwargs))
    head.init_weights()
    return head


@pytest.fixture
def x():
    return torch.randn(5, 8, 14, 14, generator=torch.Generator().manual_seed(4))


# All off


@pytest.mark.parametrize(
    "given",
    [
        dict(),
        dict(class_agnostic=True),
        dict(num_classes=1),
        dict(num_convs=0),
        dict(norm_cfg=dict(type="BN")),
        dict(upsample_cfg=dict(type=None)),
        dict(upsample_cfg=dict(type="nearest", scale_factor=2)),
        dict(upsample_cfg=dict(type="bilinear", scale_factor=2)),
    ],
    ids=lambda given: "-".join(map(str, given)) or "default",
)
def test_with_all_off_it_is_the_head_of_mmdet(given, x):
    theirs = build("FCNMaskHead", **given)
    state = torch.get_rng_state()
    ours = build("MaskPlusHead", **given)
    assert torch.equal(torch.get_rng_state(), state), "models after it would start otherwise"
    own, plain = ours.state_dict(), theirs.state_dict()
    assert list(own) == list(plain)
    assert all(torch.equal(own[name], plain[name]) for name in plain)

    size = 14 if given.get("upsample_cfg", {}).get("type", "deconv") is None else 28
    cfg = ConfigDict(mask_size=size)
    results, gts = sampled(num_classes=given.get("num_classes", 3))
    values = []
    for head in (ours, theirs):
        y = head(x.clone())
        loss = head.loss_and_target(y, copy.deepcopy(results), copy.deepcopy(gts), cfg)
        assert list(loss["loss_mask"]) == ["loss_mask"]
        loss["loss_mask"]["loss_mask"].backward()
        gradients = [p.grad for p in head.parameters()]
        values.append([y, loss["loss_mask"]["loss_mask"], loss["mask_targets"], *gradients])
        values[-1].append(head.eval()(x.clone()))
    assert values[0][0].shape[2:] == (size, size) and values[0][1] > 0
    for a, b in zip(*values, strict=True):
        assert torch.equal(a, b)

    other = build("FCNMaskHead", seed=1, **given)
    ours.load_state_dict(other.state_dict(), strict=True)
    assert torch.equal(ours(x.clone()), other.eval()(x.clone()))
    other.load_state_dict(ours.state_dict(), strict=True)


# Each on


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
@pytest.mark.parametrize("init", [True, False])
def test_weights_of_mask_rcnn_start_every_variant(variant, init, x):
    theirs = build("FCNMaskHead", seed=1).eval()
    ours = MODELS.build(head_cfg(**variant))
    if init:
        ours.init_weights()
    keys = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert keys.unexpected_keys == []
    added = set(ours.state_dict()) - set(theirs.state_dict())
    # torch does not ask for this counter.
    scaffold = ("quasi_branch.", "num_batches_tracked")
    assert set(keys.missing_keys) == {n for n in added if not any(s in n for s in scaffold)}
    assert torch.equal(ours.eval()(x), theirs(x))
    # In training too, before the first step.
    logits = ours.train()(x)
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert torch.equal(logits, theirs(x))


def test_switches_add_what_they_say():
    head = build(deconv_pyramid=True, boundary_refinement="gcn")
    assert isinstance(head.deconv_pyramid, DeconvPyramid)
    assert isinstance(head.boundary_refinement, GCNBoundaryRefinement)
    assert head.quasi_branch is None
    head = build(boundary_refinement="improved", quasi_multitask=2)
    assert isinstance(head.boundary_refinement, ImprovedBoundaryRefinement)
    assert head.deconv_pyramid is None and head.quasi_branch.scale == 2
    head = build()
    assert head.deconv_pyramid is head.boundary_refinement is head.quasi_branch is None


def test_the_order_of_the_layers(x):
    """Convolutions, pyramid, deconvolution with ReLU, logits, refinement."""
    head = build(deconv_pyramid=True, boundary_refinement="improved").eval()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    y = x
    for conv in head.convs:
        y = conv.conv(y).relu()
    y = head.deconv_pyramid(y)
    y = head.conv_logits(head.upsample(y).relu())
    expected = head.boundary_refinement(y)
    assert expected.shape == (5, 3, 28, 28)
    torch.testing.assert_close(head(x), expected)
    features = x
    for conv in head.convs:
        features = conv(features)
    assert torch.equal(head.predict_logits(features), head(x))


@pytest.mark.parametrize("channels", [dict(class_agnostic=True), dict(num_classes=1)])
def test_refinement_has_the_channels_of_the_masks(channels, x):
    head = build(boundary_refinement="improved", quasi_multitask=0.5, **channels)
    logits, quasi = head(x)
    assert logits.shape == (5, 1, 28, 28) and quasi.shape == (5, 1, 14, 14)
    results, gts = sampled(num_classes=channels.get("num_classes", 3))
    losses = head.loss_and_target((logits, quasi), results, gts, TRAIN)["loss_mask"]
    assert all(torch.isfinite(v) and v > 0 for v in losses.values())


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (dict(quasi_multitask=3), "quasi_multitask must be 0.5 or 2, got 3"),
        (dict(boundary_refinement="gnc"), "one of improved, gcn, got 'gnc'"),
        (dict(deconv_pyramid=True, num_convs=0), "num_convs must not be 0"),
    ],
)
def test_wrong_settings_are_named(given, text):
    with pytest.raises(ValueError, match=text):
        build(**given)
