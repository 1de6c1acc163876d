import copy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample

from mmseg_plus.bpr.colour_evidence import colour_evidence
from mmseg_plus.bpr.refiner import fuse
from mmseg_plus.common.config import read_config

FIXTURES = Path(__file__).resolve().parents[4] / "shared" / "fixtures"
CITYSCAPES = "bpr_hrnetv2-w18s_160k_cityscapes-128x128"
TINY = "bpr_hrnetv2-w16t_shapes"


def build(name, **preprocessor):
    init_default_scope("mmseg")
    model = read_config(name).model
    model.pop("pretrained", None)
    model.backbone.norm_cfg = model.decode_head.norm_cfg = dict(type="BN")
    model.data_preprocessor.update(preprocessor)
    return MODELS.build(model)


@pytest.fixture(scope="module")
def tiny():
    torch.manual_seed(0)
    model = build(TINY)
    # Statistics of batch norm that are not the ones of a new network.
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.1)
    return model.eval()


@pytest.mark.skipif(not FIXTURES.is_dir(), reason="needs the fixtures of the references")
def test_logits_are_those_of_the_authors(monkeypatch):
    monkeypatch.syspath_prepend(str(FIXTURES))
    sys.modules.pop("weight_rule", None)
    import weight_rule

    path = FIXTURES / "bpr_hrnet18s.npz"
    model = build(CITYSCAPES).eval()
    model.load_state_dict(weight_rule.state_dict(path), strict=True)
    generator = torch.Generator().manual_seed(7)
    image = torch.randn(2, 3, 128, 128, generator=generator)
    coarse = (torch.randn(2, 1, 128, 128, generator=generator) > 0).float()
    inputs = torch.cat([image, (coarse - 0.5) / 0.5], dim=1)
    meta = dict(img_shape=(128, 128), pad_shape=(128, 128))
    expected = torch.from_numpy(np.load(path)["logits"])
    limit = 1e-4 * (expected.max() - expected.min())
    with torch.no_grad():
        assert (model.encode_decode(inputs, [meta] * 2) - expected).abs().max() < limit
        fused = fuse(copy.deepcopy(model))
        assert (fused.encode_decode(inputs, [meta] * 2) - expected).abs().max() < limit


@pytest.mark.parametrize("name", [CITYSCAPES, "bpr_mobilenet-v2_160k_cityscapes-128x128"])
def test_stem_is_the_sum_of_two_convolutions(name):
    backbone = build(name).backbone
    stem = backbone.conv1 if name == CITYSCAPES else backbone.conv1.conv
    inputs = torch.randn(2, 4, 32, 32)
    expected = F.conv2d(inputs[:, :3], stem.weight, stride=2, padding=1) + backbone.conv_mask(
        inputs[:, 3:]
    )
    torch.testing.assert_close(stem(inputs), expected)
    stem(inputs).square().sum().backward()
    assert stem.weight.grad.abs().sum() > 0
    assert backbone.conv_mask.weight.grad.abs().sum() > 0
    names = dict(backbone.named_parameters())
    assert "conv_mask.weight" in names
    assert sum("conv_mask" in name for name in names) == 1


def test_copies_keep_their_own_mask_convolution(tiny):
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.backbone.conv_mask.weight.zero_()
    inputs = torch.zeros(1, 6, 32, 32)
    inputs[:, 3] = 1
    assert other.backbone.conv1(inputs).abs().sum() == 0
    assert tiny.backbone.conv1(inputs).abs().sum() > 0


def sample(height, width, seed):
    rng = np.random.default_rng(seed)
    patch = torch.from_numpy(rng.integers(0, 256, (4, height, width), dtype=np.uint8))
    patch[3] = (patch[3] > 127) * 255
    target = torch.from_numpy(rng.integers(0, 2, (1, height, width)))
    data = SegDataSample(metainfo=dict(ori_shape=(height, width), img_shape=(height, width)))
    data.gt_sem_seg = PixelData(data=target)
    return patch, data


def test_preprocessor_resizes_each_patch_and_normalises():
    pre = build(TINY).data_preprocessor
    (a, one), (b, two) = sample(64, 64, 0), sample(40, 128, 1)
    out = pre(dict(inputs=[a, b], data_samples=[one, two]), training=True)
    assert out["inputs"].shape == (2, 6, 128, 128)
    for patch, result in zip((a, b), out["inputs"], strict=True):
        image = F.interpolate(patch[None, [2, 1, 0]].float(), (128, 128), mode="bilinear")[0]
        mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
        std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
        torch.testing.assert_close(result[:3], (image - mean) / std)
        mask = F.interpolate(patch[None, 3:].float(), (128, 128), mode="nearest")[0]
        torch.testing.assert_close(result[3:4], (mask / 255 - 0.5) / 0.5)
        evidence = colour_evidence(result[None, :3], mask[None] / 255)
        torch.testing.assert_close(result[4:], evidence[0])
    assert [s.gt_sem_seg.data.shape for s in out["data_samples"]] == [(1, 128, 128)] * 2
    assert set(out["data_samples"][1].gt_sem_seg.data.unique().tolist()) == {0, 1}
    assert out["data_samples"][0].img_shape == (128, 128)


def test_targets_keep_their_size_in_a_test_and_predictions_have_it(tiny):
    patch, data = sample(64, 48, 0)
    prediction = tiny.test_step(dict(inputs=[patch], data_samples=[data]))[0]
    assert prediction.gt_sem_seg.data.shape == (1, 64, 48)
    assert prediction.pred_sem_seg.data.shape == (1, 64, 48)


def test_refine_patches_agrees_with_testing(tiny):
    patch, data = sample(64, 64, 3)
    prediction = tiny.test_step(dict(inputs=[patch], data_samples=[data]))[0]
    image = F.interpolate(patch[None, :3].float(), (128, 128), mode="bilinear")
    mask = F.interpolate(patch[None, 3:].float() / 255, (128, 128), mode="nearest")
    with torch.no_grad():
        probabilities = tiny.refine_patches(image, mask, (64, 64))
    expected = prediction.seg_logits.data.softmax(0)[1]
    torch.testing.assert_close(probabilities[0], expected, rtol=1e-4, atol=1e-5)
    assert probabilities.std() > 1e-3


def test_without_the_coarse_mask_the_network_cannot_see_it():
    init_default_scope("mmseg")
    cfg = read_config("bpr_hrnetv2-w18s_no-mask_160k_cityscapes-128x128").model
    cfg.pop("pretrained")
    cfg.backbone.norm_cfg = cfg.decode_head.norm_cfg = dict(type="BN")
    model = MODELS.build(cfg).eval()
    assert not any("conv_mask" in name for name in model.state_dict())
    image = torch.rand(1, 3, 128, 128) * 255
    with torch.no_grad():
        a, b = (
            model.refine_patches(image, torch.full((1, 1, 128, 128), value), (64, 64))
            for value in (0.0, 1.0)
        )
    assert torch.equal(a, b)


def test_the_mask_is_seen_otherwise(tiny):
    image = torch.rand(1, 3, 128, 128) * 255
    with torch.no_grad():
        a, b = (
            tiny.refine_patches(image, torch.full((1, 1, 128, 128), value), (64, 64))
            for value in (0.0, 1.0)
        )
    assert (a - b).abs().max() > 1e-3


def test_fusing_changes_no_output(tiny):
    fused = fuse(copy.deepcopy(tiny))
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
    image, mask = torch.rand(2, 3, 128, 128) * 255, (torch.rand(2, 1, 128, 128) > 0.5).float()
    with torch.no_grad():
        torch.testing.assert_close(
            fused.refine_patches(image, mask, (64, 64)),
            tiny.refine_patches(image, mask, (64, 64)),
            rtol=1e-3,
            atol=1e-4,
        )


def test_network_learns_a_patch():
    torch.manual_seed(0)
    model = build(TINY, input_size=32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    patches, losses = [sample(32, 32, seed) for seed in range(4)], []
    for patch, data in patches:
        target = torch.zeros(1, 32, 32, dtype=torch.long)
        target[:, 8:24, 6:20] = 1
        patch[:3, target[0] > 0] = 250
        data.gt_sem_seg = PixelData(data=target)
    for _ in range(25):
        inputs, samples = zip(*copy.deepcopy(patches), strict=True)
        batch = model.data_preprocessor(
            dict(inputs=list(inputs), data_samples=list(samples)), training=True
        )
        loss = model.loss(**batch)["decode.loss_ce"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_residual_head_starts_from_the_coarse_mask():
    torch.manual_seed(0)
    model = build(TINY)
    model.init_weights()
    # In training, where batch norm knows the features' size from the first batch on.
    model.train()
    image = torch.rand(2, 3, 128, 128) * 255
    mask = (F.avg_pool2d(torch.rand(2, 1, 128, 128), 9, 1, 4) > 0.5).float()
    with torch.no_grad():
        refined = model.refine_patches(image, mask, (128, 128)) > 0.5
    assert torch.equal(refined, mask[:, 0] > 0.5)


def residual_head():
    return MODELS.build(
        dict(
            type="ResidualFCNHead",
            in_channels=4,
            channels=4,
            in_index=0,
            num_convs=0,
            concat_input=False,
            dropout_ratio=0,
            num_classes=2,
        )
    )


def test_caution_keeps_pixels_of_which_the_network_is_unsure(tiny):
    torch.manual_seed(0)
    image, mask = torch.rand(2, 3, 128, 128) * 255, torch.zeros(2, 1, 128, 128)
    mask[:, :, 20:90, 30:100] = 1
    with torch.no_grad():
        bold = tiny.refine_patches(image, mask, (128, 128))
        careful = tiny.refine_patches(image, mask, (128, 128), caution=0.75)
        sign = 2 * mask[:, 0] - 1
        torch.testing.assert_close(careful.logit(), bold.logit() + 0.75 * sign, rtol=0, atol=1e-3)
        halves = tiny.refine_patches(image, mask, (64, 64), caution=100.0)
    assert torch.equal(halves > 0.5, mask[:, 0, ::2, ::2] > 0.5)


def test_residual_head_corrects_the_mask_by_the_features():
    head = residual_head()
    features, picture = torch.randn(2, 4, 8, 8), torch.randn(2, 6, 32, 32)
    with torch.no_grad():
        head.coarse_weight.fill_(0.7)
        logits = head([features, picture])
        plain = F.interpolate(head.cls_seg(features), (32, 32), mode="bilinear")
    torch.testing.assert_close(logits[:, 1], plain[:, 1] + 0.7 * picture[:, 3])
    torch.testing.assert_close(logits[:, 0], plain[:, 0] - 0.7 * picture[:, 3])


def test_residual_head_needs_a_coarse_mask():
    with pytest.raises(ValueError, match="use_coarse_mask"):
        build(TINY, use_coarse_mask=False)
