"""The top module: attention where it is needed, positives, detections."""

import copy

import pytest
import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import FCOSHead
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData

from mmdet_plus.blendmask import BlendMaskHead

register_all_modules()
STRIDES = [8, 16, 32]
SIZES = [(12, 16), (6, 8), (3, 4)]
TEST = ConfigDict(
    score_thr=0.05, nms_pre=1000, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
)


def make(**changes):
    torch.manual_seed(0)
    settings = dict(
        num_classes=4,
        in_channels=8,
        feat_channels=8,
        stacked_convs=2,
        strides=STRIDES,
        regress_ranges=((-1, 32), (32, 64), (64, 1e8)),
        norm_cfg=dict(type="GN", num_groups=2),
        attention_size=5,
        num_bases=3,
        test_cfg=TEST,
    )
    head = BlendMaskHead(**{**settings, **changes})
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return head.eval()


@pytest.fixture
def levels():
    torch.manual_seed(1)
    return [torch.randn(2, 8, *size) for size in SIZES]


def test_attention_is_the_top_layer_s_answer_at_every_location(levels):
    head = make()
    features = head(levels)[3]
    for level, feature in enumerate(features):
        whole = head.top_layer(feature)
        places = torch.arange(2 * whole[0, 0].numel()).flip(0)
        got = head.attention(features, torch.full_like(places, level), places)
        expected = whole.permute(0, 2, 3, 1).reshape(-1, 3, 5, 5).flip(0)
        torch.testing.assert_close(got, expected)
    # Levels in any order, and none at all.
    where = torch.tensor([2, 0, 1, 0]), torch.tensor([23, 7, 95, 383])
    mixed = head.attention(features, *where)
    for row, level, place in zip(mixed, *where, strict=True):
        torch.testing.assert_close(row, head.attention(features, level[None], place[None])[0])
    nothing = torch.zeros(0, dtype=torch.long)
    assert head.attention(features, nothing, nothing).shape == (0, 3, 5, 5)


def test_attention_reads_the_box_tower(levels):
    head = make()
    for conv in head.cls_convs:
        torch.nn.init.zeros_(conv.conv.weight)
    expected = levels[0]
    for conv in head.reg_convs:
        expected = conv(expected)
    torch.testing.assert_close(head(levels)[3][0], expected)


def test_boxes_are_in_strides_in_training_and_in_pixels_otherwise(levels):
    head = make()
    pixels = head(levels)[1]
    strides = head.train()(levels)[1]
    for stride, a, b in zip(STRIDES, pixels, strides, strict=True):
        torch.testing.assert_close(a, b * stride)
        assert (b == 0).any() and (b > 0).any()


def test_boxes_are_scaled_by_level_only_on_demand(levels):
    assert not any("scales" in name for name in make().state_dict())
    head = make(use_scale=True)
    before = head(levels)[1]
    with torch.no_grad():
        head.scales[1].scale *= 2
    after = head(levels)[1]
    torch.testing.assert_close(after[1], 2 * before[1])
    assert torch.equal(after[0], before[0])


def test_a_shared_tower_feeds_all_branches(levels):
    head = make(num_shared_convs=3, stacked_convs=0)
    assert (len(head.shared_convs), len(head.cls_convs), len(head.reg_convs)) == (3, 0, 0)
    expected = levels[1]
    for conv in head.shared_convs:
        expected = conv(expected)
    scores, _, centerness, features = head(levels)
    torch.testing.assert_close(features[1], expected)
    torch.testing.assert_close(scores[1], head.conv_cls(expected))
    torch.testing.assert_close(centerness[1], head.conv_centerness(expected))


@pytest.mark.parametrize("towers", [dict(num_shared_convs=2, stacked_convs=0), {}])
def test_a_normalisation_for_each_level(levels, towers):
    head = make(norm_per_level=True, norm_cfg=dict(type="BN"), **towers)
    tower = head.shared_convs or head.reg_convs
    assert len(tower) == 2
    for conv in tower:
        assert [type(norm) for norm in conv.norms] == [torch.nn.BatchNorm2d] * 3
        for level, norm in enumerate(conv.norms):
            torch.nn.init.constant_(norm.running_mean, 0.1 * level)
    features = head(levels)[3]
    for level, x in enumerate(levels):
        for conv in tower:
            norm = conv.norms[level]
            x = F.conv2d(x, conv.conv.weight, conv.conv.bias, padding=1)
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            x = x.relu()
        torch.testing.assert_close(features[level], x)


def test_widths_that_do_not_fit():
    for changes in (
        dict(num_shared_convs=1),
        dict(stacked_convs=0),
        dict(norm_per_level=True, norm_cfg=dict(type="BN")),
    ):
        with pytest.raises(ValueError, match="needs in_channels = feat_channels, got 6 and 8"):
            make(in_channels=6, **changes)
    make(in_channels=6)


def ground_truth():
    boxes = [
        [[4, 4, 60, 80], [50, 20, 110, 90], [6.5, 5, 30.2, 33]],
        [[1, 1, 2, 2], [20, 20, 90, 85]],
        [],
    ]
    labels = [[3, 0, 2], [2, 1], []]
    return [
        InstanceData(bboxes=torch.tensor(b).reshape(-1, 4).float(), labels=torch.tensor(n).long())
        for b, n in zip(boxes, labels, strict=True)
    ]


def test_targets_are_fcos_s():
    head = make()
    plain = FCOSHead(
        4,
        8,
        strides=STRIDES,
        regress_ranges=head.regress_ranges,
        center_sampling=True,
        norm_on_bbox=True,
    )
    points = head.prior_generator.grid_priors(SIZES, device="cpu")
    for ours, theirs in zip(
        head.get_targets(points, ground_truth()),
        plain.get_targets(points, ground_truth()),
        strict=True,
    ):
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)


def test_positives(levels):
    head, gts = make().train(), ground_truth()
    levels = [torch.cat([x, x[:1]]) for x in levels]
    outputs = head(levels)
    losses = head.loss_by_feat(*outputs, gts, [{}] * 3)
    assert set(losses) == {"loss_cls", "loss_bbox", "loss_centerness"}
    infos = head.get_positive_infos()
    assert head._raw_positive_infos == {}

    points = head.prior_generator.grid_priors(SIZES, device="cpu")
    labels, sides = head.get_targets(points, gts)
    expected = [[] for _ in gts]
    for level, (rows, cols) in enumerate(SIZES):
        top = head.top_layer(outputs[3][level])
        for place in (labels[level] < 4).nonzero()[:, 0].tolist():
            image, y, x = place // (rows * cols), place // cols % rows, place % cols
            left, up, right, down = (sides[level][place] * STRIDES[level]).tolist()
            px, py = points[level][y * cols + x].tolist()
            box = torch.tensor([px - left, py - up, px + right, py + down])
            centerness = min(left, right) / max(left, right) * min(up, down) / max(up, down)
            attention = top[image, :, y, x].reshape(3, 5, 5)
            expected[image].append((box, centerness**0.5, attention))
    assert [len(info) for info in infos] == [len(wanted) for wanted in expected]
    assert len(expected[0]) > 10 and len(expected[1]) > 5 and len(expected[2]) == 0
    for info, gt, wanted in zip(infos, gts, expected, strict=True):
        assert torch.equal(info.bboxes, gt.bboxes[info.gt_index])
        for i, (box, centerness, attention) in enumerate(wanted):
            torch.testing.assert_close(info.bboxes[i], box, atol=1e-3, rtol=0)
            assert float(info.centerness[i]) == pytest.approx(centerness, abs=1e-5)
            torch.testing.assert_close(info.attention[i], attention)
    assert infos[0].gt_index.unique().tolist() == [0, 1, 2]


def test_no_ground_truth_leaves_no_parameter_without_gradient(levels):
    head, nothing = make().train(), ground_truth()[2]
    losses = head.loss_by_feat(*head(levels), [nothing, nothing], [{}, {}])
    infos = head.get_positive_infos()
    total = sum(losses.values()) + sum(info.attention.sum() for info in infos)
    total.backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def one_level(products, boxes, stride=8):
    """Outputs of a head of one level with these class times centreness products (L, C)."""
    count, classes = products.shape
    scores = torch.logit(products / 0.5).T.reshape(1, classes, 1, count)
    points = (torch.arange(count) + 0.5) * stride
    x1, y1, x2, y2 = boxes.unbind(1)
    sides = torch.stack([points - x1, stride / 2 - y1, x2 - points, y2 - stride / 2])
    features = torch.arange(8.0 * count).reshape(1, 8, 1, count)
    return [scores], [sides[None, :, None]], [torch.zeros(1, 1, 1, count)], [features]


def detect(head, products, boxes, meta=None, **changes):
    cfg = copy.deepcopy(TEST)
    cfg.update(changes)
    outputs = one_level(torch.tensor(products), torch.tensor(boxes))
    (result,) = head.predict_by_feat(
        *outputs, batch_img_metas=[meta or dict(img_shape=(20, 20))], cfg=cfg
    )
    return result, outputs


@pytest.fixture
def single():
    return make(strides=[8], regress_ranges=((-1, 1e8),))


def test_the_threshold_is_on_the_product_and_the_score_is_its_root(single):
    products = [[0.04, 0.0501], [0.0499, 0.3]]
    boxes = [[-30.0, -20.0, 9.0, 9.0], [2.0, 1.0, 90.0, 70.0]]
    result, outputs = detect(single, products, boxes)
    assert result.labels.tolist() == [1, 1]
    torch.testing.assert_close(result.scores, torch.tensor([0.3, 0.0501]).sqrt())
    # Neither box is clipped to the image of 20 pixels.
    torch.testing.assert_close(result.bboxes, torch.tensor([boxes[1], boxes[0]]))
    expected = single.top_layer(outputs[3][0])[0, :, 0].T.reshape(-1, 3, 5, 5).flip(0)
    torch.testing.assert_close(result.attention, expected)
    assert set(result.keys()) == {"bboxes", "scores", "labels", "attention"}


def test_candidates_are_chosen_by_the_product(single):
    """Not by the class score alone, before the centreness counts."""
    scores, sides, centerness, features = one_level(
        torch.tensor([[0.4], [0.3]]), torch.tensor([[0.0, 0, 9, 9], [40.0, 0, 49, 9]])
    )
    centerness[0][..., 1] = 5.0
    (result,) = single.predict_by_feat(
        scores,
        sides,
        centerness,
        features,
        batch_img_metas=[dict(img_shape=(20, 20))],
        cfg=ConfigDict(TEST, nms_pre=1),
    )
    assert result.bboxes[:, 0].tolist() == [40.0]


def test_only_boxes_of_one_class_suppress_each_other(single):
    # mmcv's offset of a class is the largest coordinate + 1, and so nothing here.
    boxes = [[-20.0, -20, -1, -1], [-20.0, -20, -1, -2], [-20.0, -20, -1, -1]]
    products = [[0.4, 0.01], [0.3, 0.01], [0.01, 0.2]]
    result, _ = detect(single, products, boxes)
    assert result.labels.tolist() == [0, 1]
    torch.testing.assert_close(result.scores, torch.tensor([0.4, 0.2]).sqrt())


def test_overlap_of_less_than_the_threshold_stays(single):
    boxes = [[0.0, 0, 10, 10], [0.0, 0, 10, 5.9], [0.0, 0, 10, 6.1]]
    result, _ = detect(single, [[0.4], [0.3], [0.2]], boxes)
    assert result.bboxes[:, 3].tolist() == pytest.approx([10.0, 5.9])


def test_limits(single):
    boxes = [[20.0 * i, 0, 20.0 * i + 10, 10] for i in range(6)]
    products = [[0.1 * (i + 1) / 2] for i in range(6)]
    result, _ = detect(single, products, boxes, max_per_img=2)
    assert result.bboxes[:, 0].tolist() == [100.0, 80.0]
    result, _ = detect(single, products, boxes, nms_pre=3)
    assert len(result) == 3
    result, _ = detect(single, products, boxes, score_thr=0.9)
    assert len(result) == 0 and result.attention.shape == (0, 3, 5, 5)


def test_attention_is_that_of_its_image(levels):
    head = make()
    outputs = head(levels)
    metas = [dict(img_shape=(96, 128))] * 2
    cfg = ConfigDict(TEST, score_thr=0.2)
    both = head.predict_by_feat(*outputs, batch_img_metas=metas, cfg=cfg)
    for i, result in enumerate(both):
        alone = [[x[i : i + 1] for x in part] for part in outputs]
        (expected,) = head.predict_by_feat(*alone, batch_img_metas=metas[:1], cfg=cfg)
        assert len(result) > 5
        torch.testing.assert_close(result.attention, expected.attention)
        assert torch.equal(result.bboxes, expected.bboxes)
