"""Contextual fusion beside its definition, in the extractor and in the RoI heads."""

import copy

import pytest
import torch
from mmcv.ops import roi_align
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from tiny_maskplus import build, predict, two_images, with_maskplus
from tiny_mr_rcnn import losses_of
from torch import nn
from torch.nn import functional as F

from mmdet_plus.maskplus import ContextualFusion, ContextualFusionExtractor
from mmdet_plus.maskplus.contextual_fusion import FILTERS, full_image_rois

STRIDES = [4, 8, 16, 32]
# The second image is padded on both sides, the first to the right.
PADDED = (128, 160)
SIZES = [(128, 96), (60, 130)]


def extractor_cfg(kind, **kwargs):
    layer = dict(type="RoIAlign", output_size=14, sampling_ratio=0)
    return dict(type=kind, roi_layer=layer, out_channels=4, featmap_strides=STRIDES, **kwargs)


def lively(module):
    """Random convolutions, the last one too."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


@pytest.fixture
def extractor():
    cfg = extractor_cfg("ContextualFusionExtractor", contextual_fusion=[6, 5, 4])
    return lively(MODELS.build(cfg))


@pytest.fixture
def levels():
    """P2 to P6 of two images."""
    torch.manual_seed(1)
    height, width = PADDED
    return tuple(
        torch.randn(2, 4, height // s, -(-width // s), requires_grad=True) for s in (*STRIDES, 64)
    )


# RoIs of both images, not in the order of the images.
ROIS = torch.tensor(
    [[1, 4.0, 6, 60, 50], [0, 10, 20, 90, 120], [1, 0, 0, 20, 30], [0, 3, 4, 30, 40]]
)


def expected_context(fusion, level, sizes):
    """What is added to the RoIs of each image, from the definition."""
    context = []
    for image, (height, width) in enumerate(sizes):
        whole = torch.tensor([[0, 0, 0, width, height]], dtype=torch.float32)
        x = roi_align(level[image : image + 1], whole, 14, 1 / 32, 0, "avg", True)
        for number, layer in enumerate(fusion.convs):
            x = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=1)
            if number < len(fusion.convs) - 1:
                x = x.relu()
        context.append(x[0])
    return context


def test_each_roi_gets_the_context_of_its_own_image(extractor, levels):
    plain = MODELS.build(extractor_cfg("SingleRoIExtractor"))(levels[:4], ROIS)
    context = expected_context(extractor.fusion, levels[3], SIZES)
    expected = torch.stack([plain[k] + context[int(roi[0])] for k, roi in enumerate(ROIS)])
    got = extractor((*levels[:4], extractor.image_features(levels[:4], SIZES)), ROIS)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    # The sizes matter, and the images differ.
    padded = expected_context(extractor.fusion, levels[3], [PADDED, PADDED])
    for image in range(2):
        assert not torch.allclose(context[image], padded[image], atol=1e-2)


def test_rois_cover_the_images_without_their_padding():
    rois = full_image_rois([(100, 200), (30, 40)], torch.zeros(1))
    assert rois.tolist() == [[0, 0, 0, 200, 100], [1, 0, 0, 40, 30]]
    assert full_image_rois([], torch.zeros(1)).shape == (0, 5)


def test_convolutions_run_once_an_image(extractor, levels):
    seen = []
    extractor.fusion.convs.register_forward_hook(lambda m, x, y: seen.append(len(y)))
    extractor((*levels[:4], extractor.image_features(levels[:4], SIZES)), ROIS)
    assert seen == [2]


def test_gradients_reach_the_coarsest_level_and_the_convolutions(extractor, levels):
    feats = (*levels[:4], extractor.image_features(levels[:4], SIZES))
    small = ROIS[2:]  # of the finest level
    extractor(feats, small).sum().backward()
    assert levels[0].grad.abs().sum() > 0 and levels[3].grad.abs().sum() > 0
    assert levels[1].grad.abs().sum() == 0
    assert all(p.grad.abs().sum() > 0 for p in extractor.parameters())


def test_no_roi(extractor, levels):
    feats = (*levels[:4], extractor.image_features(levels[:4], SIZES))
    out = extractor(feats, ROIS[:0])
    assert out.shape == (0, 4, 14, 14)
    out.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() == 0 for p in extractor.parameters())


@pytest.mark.parametrize("filters", [(256, 256), (256, 256, 256), (512, 256, 256), FILTERS])
def test_filters_of_table_1(filters):
    convs = ContextualFusion(256, filters).convs
    assert [layer.conv.weight.shape[0] for layer in convs] == list(filters)
    assert [layer.conv.weight.shape[1] for layer in convs] == [256, *filters[:-1]]
    for layer in convs:
        assert layer.conv.kernel_size == (3, 3) and layer.conv.stride == (1, 1)
        assert layer.with_activation == (layer is not convs[-1]) and not layer.with_norm


def test_the_best_row_is_the_default():
    assert FILTERS == (720, 512, 512, 256)
    cfg = {**extractor_cfg("ContextualFusionExtractor"), "out_channels": 256}
    convs = MODELS.build(cfg).fusion.convs
    assert [layer.conv.out_channels for layer in convs] == [720, 512, 512, 256]


@pytest.mark.parametrize("filters", [[6, 5], [], [4, 4, 8]])
def test_what_cannot_be_added_is_refused(filters):
    with pytest.raises(ValueError, match=r"must equal the 4 channels"):
        ContextualFusion(4, filters)


@pytest.mark.parametrize("init", [True, False])
def test_it_starts_as_the_plain_extractor(levels, init):
    ours = MODELS.build(extractor_cfg("ContextualFusionExtractor", contextual_fusion=[6, 4]))
    if init:
        ours.init_weights()
    assert ours.fusion.convs[0].conv.weight.abs().sum() > 0
    plain = MODELS.build(extractor_cfg("SingleRoIExtractor"))(levels[:4], ROIS)
    got = ours((*levels[:4], ours.image_features(levels[:4], SIZES)), ROIS)
    assert torch.equal(got, plain)


@pytest.mark.parametrize("number", [4, 5])
def test_features_of_the_images_that_are_missing_are_told(extractor, levels, number):
    """A head that calls the extractor by itself has the levels alone, with or without P6."""
    given = levels[: extractor.num_inputs] if number == 5 else levels[:4]
    with pytest.raises(ValueError, match="features of the whole images are missing"):
        extractor(given, ROIS)
    # P6 of a picture of 896 pixels has the size of a RoI's features.
    with pytest.raises(ValueError, match="features of the whole images are missing"):
        extractor((*levels[:4], torch.zeros(2, 4, 14, 14)), ROIS)


# In the RoI heads


def spied(model):
    """The sizes that the features of the whole images are taken of."""
    heads = model.roi_head.mask_roi_extractor
    first = heads[0] if isinstance(heads, nn.ModuleList) else heads
    sizes, plain = [], first.image_features
    first.image_features = lambda feats, given: sizes.append(list(given)) or plain(feats, given)
    return sizes


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
def test_the_head_knows_the_sizes_of_the_images(name, request):
    cfg = with_maskplus(request.getfixturevalue(name), contextual_fusion=[8, 16])
    model = build(cfg)
    sizes = spied(model)
    batch = two_images([[(4, 4, 30, 30)], [(8, 8, 40, 40)]])
    # Pictures of 40 x 64 and 64 x 48, which the preprocessor pads to 64 x 64.
    shapes = [(40, 64), (64, 48)]
    for i, (height, width) in enumerate(shapes):
        batch["inputs"][i] = batch["inputs"][i][:, :height, :width]
        sample = batch["data_samples"][i]
        sample.set_metainfo(dict(img_shape=(height, width), ori_shape=(height, width)))
        sample.gt_instances.masks = sample.gt_instances.masks.crop(
            torch.tensor([0, 0, width, height]).numpy()
        )
    losses_of(model, batch)
    predict(model, batch)
    data = model.data_preprocessor(copy.deepcopy(batch), training=False)
    assert data["inputs"].shape == (2, 3, 64, 64)
    model(**data, mode="tensor")
    assert sizes == [shapes, shapes, shapes]


def test_context_is_that_of_the_definition_in_the_head(mask_rcnn):
    head = build(with_maskplus(mask_rcnn, contextual_fusion=[8, 16])).roi_head.eval()
    fusion = lively(head.mask_roi_extractor.fusion)
    torch.manual_seed(2)
    x = tuple(torch.randn(2, 16, 128 // s, 160 // s) for s in (4, 8, 16, 32, 64))
    sizes = [(128, 96), (60, 130)]
    full = head.with_image_features(x, sizes)
    assert len(full) == 5 and all(a is b for a, b in zip(full, x[:4], strict=False))
    with torch.no_grad():
        got = head._mask_forward(full, ROIS)["mask_feats"]
        plain = super(ContextualFusionExtractor, head.mask_roi_extractor).forward(x[:4], ROIS)
        context = expected_context(fusion, x[3], sizes)
    expected = torch.stack([plain[k] + context[int(roi[0])] for k, roi in enumerate(ROIS)])
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_boxes_do_not_see_it(mask_rcnn):
    """Section 3.1: fusion is of the mask branch."""
    model = build(with_maskplus(mask_rcnn, contextual_fusion=[8, 16])).eval()
    before = predict(model, two_images())
    lively(model.roi_head.mask_roi_extractor.fusion)
    after = predict(model, two_images())
    for a, b in zip(before, after, strict=True):
        assert len(a) > 0 and torch.equal(a.bboxes, b.bboxes) and torch.equal(a.scores, b.scores)
    assert not torch.equal(before[0].masks, after[0].masks)


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade"])
def test_stages_of_a_cascade_have_convolutions_of_their_own(name, request):
    extractors = build(
        with_maskplus(request.getfixturevalue(name), contextual_fusion=[8, 16])
    ).roi_head.mask_roi_extractor
    extractors = list(extractors) if name == "cascade" else [extractors]
    assert len({id(e.fusion.convs[0].conv.weight) for e in extractors}) == len(extractors)
    assert all(isinstance(e, ContextualFusionExtractor) for e in extractors)


def test_without_sizes_the_feature_maps_hold_no_padding(mask_rcnn):
    head = build(with_maskplus(mask_rcnn, contextual_fusion=[8, 16])).roi_head.eval()
    x = tuple(torch.randn(2, 16, 128 // s, 160 // s) for s in (4, 8, 16, 32, 64))
    given, guessed = head.with_image_features(x, [(128, 160)] * 2), head.with_image_features(x)
    assert torch.equal(given[-1], guessed[-1])
    proposals = [InstanceData(bboxes=ROIS[ROIS[:, 0] == i, 1:]) for i in range(2)]
    with torch.no_grad():
        *_, masks = head(x, proposals)
    assert masks.shape == (4, 3, 28, 28)


def test_a_head_without_fusion_leaves_the_features_alone(mask_rcnn):
    head = build(with_maskplus(mask_rcnn, deconv_pyramid=True)).roi_head
    x = tuple(torch.randn(1, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64))
    assert head.with_image_features(x, [(64, 64)]) is x


def test_levels_of_boxes_and_masks_must_agree(mask_rcnn):
    """Boxes of more levels than masks would read the features of the images as a level."""
    for kind, strides in (("bbox", [4, 8, 16, 32, 64]), ("mask", [4])):
        cfg = with_maskplus(mask_rcnn, contextual_fusion=[8, 16])
        cfg.roi_head[f"{kind}_roi_extractor"].featmap_strides = strides
        with pytest.raises(ValueError, match="contextual_fusion: boxes are pooled from"):
            build(cfg)
    # Without fusion there is nothing in the way.
    cfg = with_maskplus(mask_rcnn, deconv_pyramid=True)
    cfg.roi_head.mask_roi_extractor.featmap_strides = [4]
    build(cfg)
    # Boxes of fewer levels read theirs.
    cfg = with_maskplus(mask_rcnn, contextual_fusion=[8, 16])
    cfg.roi_head.bbox_roi_extractor.featmap_strides = [4, 8]
    assert [len(result) for result in predict(build(cfg), two_images())] == [10, 10]
