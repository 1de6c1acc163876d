"""The quasi-multitask branch: masks of another size in training, nothing at test."""

import logging

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures.mask import BitmapMasks, mask_target
from mmengine.analysis import get_model_complexity_info
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint, save_checkpoint
from mmengine.structures import InstanceData
from tiny_maskplus import SIDE, build, predict, same_predictions, sampled, with_maskplus
from tiny_mr_rcnn import losses_of
from torch.nn import functional as F

from mmdet_plus.maskplus import MaskPlusHead

SCALES = [(0.5, 14), (2, 56)]
TRAIN = ConfigDict(mask_size=28)


def head(scale=0.5, **kwargs):
    torch.manual_seed(0)
    loss = dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0)
    sizes = dict(num_convs=2, in_channels=8, conv_out_channels=8, num_classes=3)
    cfg = dict(dict(sizes, type="MaskPlusHead", loss_mask=loss), quasi_multitask=scale)
    module = MODELS.build(dict(cfg, **kwargs))
    module.init_weights()
    return module


@pytest.fixture
def x():
    return torch.randn(5, 8, 14, 14, generator=torch.Generator().manual_seed(4))


# In training


@pytest.mark.parametrize(("scale", "size"), SCALES)
def test_layers(scale, size, x):
    """Those of the original branch; the deconvolution left out, or one more."""
    module = head(scale)
    branch = module.quasi_branch
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    weights = branch.state_dict()
    y = x
    for number in range(2):
        name = f"convs.{number}.conv"
        y = F.conv2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1).relu()
    deconvs = [name for name in ("upsample.0", "upsample.2") if f"{name}.weight" in weights]
    assert len(deconvs) == (0 if scale == 0.5 else 2)
    for name in deconvs:
        y = F.conv_transpose2d(y, weights[f"{name}.weight"], weights[f"{name}.bias"], stride=2)
        y = y.relu()
    y = F.conv2d(y, weights["conv_logits.weight"], weights["conv_logits.bias"])
    assert y.shape == (5, 3, size, size)
    logits, quasi = module(x)
    assert logits.shape == (5, 3, 28, 28)
    torch.testing.assert_close(quasi, y)
    # Nothing is shared with the original branch.
    own = {id(p) for p in branch.parameters()}
    assert len(own) == len(weights)
    assert len(own) + len(head(None).state_dict()) == len(list(module.parameters()))


@pytest.mark.parametrize(("scale", "size"), SCALES)
def test_targets_are_those_of_mmdet_in_its_size(scale, size, x):
    module = head(scale)
    results, gts = sampled()
    seen = {}
    for name, branch in (("own", module), ("quasi", module.quasi_branch)):
        branch.loss_mask.register_forward_hook(
            lambda loss, args, y, name=name: seen.update({name: args})
        )
    logits, quasi = module(x)
    output = module.loss_and_target((logits, quasi), results, gts, TRAIN)
    assert list(output["loss_mask"]) == ["loss_mask", "loss_mask_quasi"]
    assert output["mask_targets"].shape == (5, 28, 28)
    assert ConfigDict(mask_size=28) == TRAIN
    labels = torch.cat([result.pos_gt_labels for result in results])
    for name, pred, side in (("own", logits, 28), ("quasi", quasi, size)):
        expected = mask_target(
            [result.pos_priors for result in results],
            [result.pos_assigned_gt_inds for result in results],
            [gt.masks for gt in gts],
            ConfigDict(mask_size=side),
        )
        given, target, classes = seen[name]
        assert target.shape == (5, side, side) and 0.2 < target.mean() < 0.8
        assert torch.equal(target, expected) and torch.equal(classes, labels)
        assert given is pred
        own = F.binary_cross_entropy_with_logits(pred[torch.arange(5), labels], target)
        key = "loss_mask" if name == "own" else "loss_mask_quasi"
        torch.testing.assert_close(output["loss_mask"][key].squeeze(), own)


@pytest.mark.parametrize(("scale", "size"), SCALES)
def test_targets_of_a_known_shape(scale, size):
    """The left half of a RoI is instance."""
    plane = np.zeros((1, SIDE, SIDE), np.uint8)
    plane[:, :, :32] = 1
    results, _ = sampled((1,))
    results[0].pos_priors = torch.tensor([[16.0, 8, 48, 40]])
    gts = [InstanceData(masks=BitmapMasks(plane, SIDE, SIDE))]
    branch = head(scale).quasi_branch
    logits = torch.zeros(1, 3, size, size)
    expected = torch.zeros(1, size, size)
    expected[:, :, : size // 2] = 1
    # mmdet takes the size as a number, or as height and width.
    for cfg in (TRAIN, ConfigDict(mask_size=(28, 28))):
        target = branch.loss_and_target(logits, results, gts, cfg)["mask_targets"]
        assert torch.equal(target, expected)


def test_weight_of_the_loss(x):
    results, gts = sampled()
    values = []
    for weight in (1.0, 0.25, 0.0):
        module = head(quasi_loss_weight=weight)
        values.append(module.loss_and_target(module(x), results, gts, TRAIN)["loss_mask"])
    first, second, third = (value["loss_mask_quasi"].item() for value in values)
    assert first > 0 and second == pytest.approx(first / 4) and third == 0
    assert len({value["loss_mask"].item() for value in values}) == 1
    # By default the two count alike.
    assert head().quasi_loss_weight == 1.0


@pytest.mark.parametrize("scale", [0.5, 2])
@pytest.mark.parametrize("training", [True, False])
def test_no_roi(scale, training):
    module = head(scale).train(training)
    results, gts = sampled((0, 0))
    empty = torch.zeros(0, 8, 14, 14)
    if not training:
        assert module(empty).shape == (0, 3, 28, 28)
        return
    losses = module.loss_and_target(module(empty), results, gts, TRAIN)["loss_mask"]
    assert [value.item() for value in losses.values()] == [0, 0]
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in module.parameters())


@pytest.mark.parametrize("scale", [0.5, 2])
def test_it_starts_as_mask_rcnn_starts_its_layers(scale):
    """Kaiming with fan-out and no bias for deconvolutions and logits."""
    branch = head(scale, conv_out_channels=64, in_channels=8).quasi_branch
    deconvs = [] if scale == 0.5 else [branch.upsample[0], branch.upsample[2]]
    for layer in deconvs:
        # torch takes the outputs of a deconvolution's weight, its dimension 1, for fan-in.
        expected = (2 / (64 * 4)) ** 0.5
        assert float(layer.weight.std()) == pytest.approx(expected, rel=0.1)
        assert layer.bias.abs().sum() == 0
    std = float(branch.conv_logits.weight.std())
    assert std == pytest.approx((2 / 3) ** 0.5, rel=0.25)
    assert branch.conv_logits.bias.abs().sum() == 0


# At test


@pytest.mark.parametrize("scale", [0.5, 2])
def test_it_is_not_run_at_test(scale, mask_rcnn, batch):
    model = build(with_maskplus(mask_rcnn, quasi_multitask=scale))
    plain = build(mask_rcnn, seed=1)
    model.load_state_dict(plain.state_dict())

    def refuse(*args):
        raise AssertionError("the branch was run")

    model.roi_head.mask_head.quasi_branch.register_forward_pre_hook(refuse)
    assert same_predictions(predict(model, batch), predict(plain, batch))
    data = model.data_preprocessor(batch, training=False)
    with torch.no_grad():
        model(**data, mode="tensor")
    with pytest.raises(AssertionError, match="the branch was run"):
        losses_of(model.train(), batch)


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
@pytest.mark.parametrize("scale", [0.5, 2])
def test_no_parameter_without_training(name, scale, request):
    cfg = request.getfixturevalue(name)
    ours = with_maskplus(cfg, quasi_multitask=scale)
    # Asked for by the mask head's own config, it is left out just so.
    heads = with_maskplus(cfg, mask_head=dict(quasi_multitask=scale, type="MaskPlusHead"))
    plain = build(cfg)
    for given in (ours, heads):
        trained = build(given)
        assert sum(p.numel() for p in trained.parameters()) > sum(
            p.numel() for p in plain.parameters()
        )
        given.train_cfg = None
        deployed = build(given)
        assert {k: v.shape for k, v in deployed.state_dict().items()} == {
            k: v.shape for k, v in plain.state_dict().items()
        }
        deployed.load_state_dict(trained.state_dict(), strict=True)


@pytest.mark.parametrize("scale", [0.5, 2])
def test_no_operation_at_test(scale):
    given = torch.rand(5, 8, 14, 14)
    counts = []
    for module in (head(scale), head(None)):
        info = get_model_complexity_info(module.eval(), inputs=(given,), show_table=False)
        counts.append(info["flops"])
    assert counts[0] == counts[1] > 0
    training = get_model_complexity_info(head(scale).train(), inputs=(given,), show_table=False)
    assert training["flops"] > counts[0]


# Weights


@pytest.fixture
def pair(mask_rcnn):
    """A model with the branch and one without, the other techniques being the same."""
    others = dict(deconv_pyramid=True, contextual_fusion=[8, 16])
    return (
        build(with_maskplus(mask_rcnn, quasi_multitask=2, **others), seed=1),
        build(with_maskplus(mask_rcnn, **others), seed=2),
    )


def branch_of(model):
    return {k: v.clone() for k, v in model.state_dict().items() if "quasi_branch" in k}


def same_but_the_branch(a, b):
    a, b = a.state_dict(), b.state_dict()
    names = {name for name in {*a, *b} if "quasi_branch" not in name}
    return all(torch.equal(a[name], b[name]) for name in names)


def test_torch_loads_either_into_the_other(pair):
    with_branch, without = pair
    untouched = branch_of(with_branch)
    assert len(untouched) == 10
    given = without.state_dict()
    assert str(with_branch.load_state_dict(given, strict=True)) == "<All keys matched successfully>"
    assert same_but_the_branch(with_branch, without)
    assert all(torch.equal(v, untouched[k]) for k, v in branch_of(with_branch).items())

    torch.nn.init.ones_(with_branch.roi_head.mask_head.conv_logits.weight)
    given = with_branch.state_dict()
    before = list(given)
    assert str(without.load_state_dict(given, strict=True)) == "<All keys matched successfully>"
    assert list(given) == before
    assert same_but_the_branch(with_branch, without)


def test_the_bare_head_loads_either_too():
    with_branch, without = head(0.5), head(None)
    given = with_branch.state_dict()
    assert without.load_state_dict(given, strict=True).unexpected_keys == []
    assert any(name.startswith("quasi_branch.") for name in given)
    with_branch.load_state_dict(without.state_dict(), strict=True)


@pytest.mark.parametrize("strict", [True, False])
def test_mmengine_loads_either_into_the_other(pair, strict, tmp_path, caplog):
    logger = logging.getLogger("of this test")
    for source, target in (pair, pair[::-1]):
        path = str(tmp_path / "weights.pth")
        save_checkpoint(dict(state_dict=source.state_dict(), meta={}), path)
        for parameter in source.parameters():
            torch.nn.init.zeros_(parameter)
        with caplog.at_level(logging.DEBUG, logger=logger.name):
            load_checkpoint(target, path, map_location="cpu", strict=strict, logger=logger)
        weights = torch.load(path, weights_only=True)["state_dict"]
        for name, value in target.state_dict().items():
            assert "quasi_branch" in name or torch.equal(value, weights[name]), name
    assert [record.levelname for record in caplog.records] == ["INFO"] * 2, caplog.text
    assert all("Loads checkpoint" in record.message for record in caplog.records)


def test_weights_with_the_branch_reach_it(pair):
    with_branch, _ = pair
    other = {k: v + 1 for k, v in with_branch.state_dict().items()}
    with_branch.load_state_dict(other)
    assert all(torch.equal(v, other[k]) for k, v in branch_of(with_branch).items())


def test_other_names_are_still_told(pair):
    for model in pair:
        weights = dict(model.state_dict())
        del weights["roi_head.mask_head.conv_logits.bias"]
        weights["roi_head.mask_head.quasi.weight"] = torch.zeros(1)
        keys = model.load_state_dict(weights, strict=False)
        assert keys.missing_keys == ["roi_head.mask_head.conv_logits.bias"]
        assert keys.unexpected_keys == ["roi_head.mask_head.quasi.weight"]


@pytest.mark.parametrize(
    "upsample", [dict(type=None), dict(type="deconv", scale_factor=4)], ids=["none", "4x"]
)
def test_only_masks_of_twice_the_features_are_halved_or_doubled(upsample):
    with pytest.raises(ValueError, match="must enlarge them by 2"):
        MaskPlusHead(quasi_multitask=0.5, upsample_cfg=upsample)
    MaskPlusHead(upsample_cfg=upsample)
