import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.registry import DATASETS
from mmseg.structures import SegDataSample
from pycocotools import mask as mask_utils

from mmseg_plus.bpr import BoundaryPatchDataset, BoundaryPatchMetric, collate_patches
from mmseg_plus.bpr.patch_metric import boundary_f_scores
from mmseg_plus.bpr.patches import crop_training_patches, match
from mmseg_plus.common.errors import UserError

PIPELINE = [
    dict(type="RandomFlip", prob=0.5),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackPatchInputs"),
]


def encode(mask):
    rle = mask_utils.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=rle["size"], counts=rle["counts"].decode())


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three images: two with two instances each, of which one is a crowd, and an empty one."""
    init_default_scope("mmseg")
    root = tmp_path_factory.mktemp("patches")
    (root / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations, results = [], [], []
    for i in range(3):
        image = rng.integers(0, 100, (120, 160, 3), dtype=np.uint8)
        for k in range(2 if i < 2 else 0):
            mask = np.zeros((120, 160), bool)
            mask[20 + 30 * i : 70 + 20 * i, 15 + 75 * k : 70 + 75 * k] = True
            image[mask] += 120
            annotations.append(
                dict(
                    id=len(annotations) + 1,
                    image_id=i + 1,
                    category_id=k + 1,
                    bbox=[15 + 75 * k, 20 + 30 * i, 55, 50],
                    area=int(mask.sum()),
                    iscrowd=int(i == 1 and k == 1),
                    segmentation=encode(mask),
                )
            )
            moved = np.roll(mask, 4, axis=1)
            results.append(
                dict(image_id=i + 1, category_id=k + 1, score=0.9, segmentation=encode(moved))
            )
        name = f"{i}.png"
        cv2.imwrite(str(root / "images" / name), image)
        images.append(dict(id=i + 1, file_name=name, height=120, width=160))
    results.append(dict(results[0], category_id=2))  # nothing of its class is there
    content = dict(
        images=images,
        annotations=annotations,
        categories=[dict(id=1, name="a"), dict(id=2, name="b")],
    )
    (root / "gt.json").write_text(json.dumps(content))
    (root / "results.json").write_text(json.dumps(results))
    return root


def make(root, **kwargs):
    settings = dict(
        type="BoundaryPatchDataset",
        data_root=str(root),
        ann_file="gt.json",
        data_prefix=dict(img="images"),
        pipeline=PIPELINE,
    )
    return DATASETS.build({**settings, **kwargs})


def planes(item):
    return (
        item["inputs"][:3],
        item["inputs"][3],
        item["data_samples"].gt_sem_seg.data[0],
    )


def test_patches_come_from_images_and_ground_truth(root):
    np.random.seed(0)
    dataset = make(root, patches_per_image=4)
    assert len(dataset) == 2  # the empty image gives nothing
    assert isinstance(pickle.loads(pickle.dumps(dataset)), BoundaryPatchDataset)
    items = dataset[0]
    assert len(items) == 4
    for item in items:
        image, coarse, target = planes(item)
        assert item["inputs"].shape == (4, 64, 64) and item["inputs"].dtype == torch.uint8
        assert set(coarse.unique().tolist()) <= {0, 255}
        assert set(target.unique().tolist()) == {0, 1}
        # Target and image lie on each other, flipped or not: the instance is bright.
        assert image.float().mean(0)[target > 0].mean() > image.float().mean(0)[target == 0].mean()
    assert any((coarse / 255 != target).any() for _, coarse, target in map(planes, items))


@pytest.mark.parametrize("even", [False, True])
def test_small_instances_count_as_much_as_large_ones(tmp_path, even):
    init_default_scope("mmseg")
    masks = np.zeros((2, 160, 240), bool)
    masks[0, 10:150, 10:150], masks[1, 70:86, 200:216] = True, True
    (tmp_path / "images").mkdir()
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.zeros((160, 240, 3), np.uint8))
    records = [
        dict(id=k, image_id=0, category_id=1, area=1, iscrowd=0, bbox=[0, 0, 9, 9])
        | dict(segmentation=encode(mask))
        for k, mask in enumerate(masks)
    ]
    content = dict(
        images=[dict(id=0, file_name="0.png", height=160, width=240)],
        annotations=records,
        categories=[dict(id=1, name="a")],
    )
    (tmp_path / "gt.json").write_text(json.dumps(content))
    results = [dict(record, score=1) for record in records]
    (tmp_path / "results.json").write_text(json.dumps(results))
    dataset = make(
        tmp_path,
        coarse=str(tmp_path / "results.json"),
        pipeline=[dict(type="PackPatchInputs")],
        patch_size=32,
        patches_per_image=1,
        even_instances=even,
    )
    np.random.seed(0)
    small = np.mean([planes(dataset[0][0])[2].sum().item() == 16 * 16 for _ in range(60)])
    # By the length of boundaries it would be one patch in some twenty.
    assert 0.3 < small < 0.7 if even else small < 0.2


def test_crowds_are_never_a_target(root):
    dataset = make(root, patches_per_image=0, pipeline=[dict(type="PackPatchInputs")])
    # The crowd of the second image is the bright part in its right half.
    image = cv2.imread(str(root / "images" / "1.png"))
    for item in dataset[1]:
        pixels, _, target = planes(item)
        found = (pixels.permute(1, 2, 0)[target > 0]).numpy()
        assert len(found) and found.min() >= image[60:80, 20:60].min()
        assert target.sum() > 0
    truth = dataset._truth[1]
    coarse, target = dataset._pairs(1, truth, np.random.default_rng(0))
    assert len(target) == 1 and np.array_equal(target[0], truth.masks[0])


def test_results_are_matched_by_class_and_iou(root):
    dataset = make(root, coarse=str(root / "results.json"), test_mode=True)
    truth = dataset._truth[0]
    coarse, target = dataset._pairs(0, truth, np.random.default_rng(0))
    assert len(coarse) == 2
    for mask, true in zip(coarse, target, strict=True):
        assert np.array_equal(mask, np.roll(true, 4, axis=1))
    strict = make(root, coarse=str(root / "results.json"), min_iou=0.95)
    assert len(strict._pairs(0, truth, np.random.default_rng(0))[0]) == 0
    with pytest.raises(Exception, match="Cannot find valid image"):
        strict.max_refetch = 2
        strict[0]


def test_training_draws_anew_and_testing_does_not(root):
    train, test = make(root, patches_per_image=3), make(root, patches_per_image=3, test_mode=True)
    test.pipeline.transforms = test.pipeline.transforms[2:]

    def look(dataset):
        return torch.stack([item["inputs"] for item in dataset[0]])

    np.random.seed(1)
    first, second = look(train), look(train)
    assert not torch.equal(first, second)
    np.random.seed(1)
    assert torch.equal(look(train), first)
    assert torch.equal(look(test), look(test))


def test_limits(root):
    all_of_them = make(root, patches_per_image=0, instances_per_image=0)[0]
    one = make(root, patches_per_image=0, instances_per_image=1)[0]
    assert len(make(root, patches_per_image=2)[0]) == 2 < len(one) < len(all_of_them)


def test_batches_are_of_patches(root):
    dataset = make(root, patches_per_image=3)
    batch = collate_patches([dataset[0], dataset[1][0], []])
    assert len(batch["inputs"]) == len(batch["data_samples"]) == 4


def test_either_store_or_annotations(root):
    for wrong in (dict(ann_file=""), dict(store="a.sqlite")):
        with pytest.raises(UserError, match="either `store` or `ann_file`"):
            make(root, **wrong)


def test_unreadable_and_resized_images_are_named(root, tmp_path):
    for name in ("gt.json", "images"):
        (tmp_path / name).symlink_to(root / name)
    dataset = make(tmp_path)
    (tmp_path / "images").unlink()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_text("no image")
    with pytest.raises(UserError, match=r"0\.png cannot be read"):
        dataset[0]
    cv2.imwrite(str(tmp_path / "images" / "0.png"), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(UserError, match=r"0\.png is \[10, 20\] .*\[120, 160\]"):
        dataset[0]


def test_crops_are_padded_with_zeros():
    image = np.full((10, 12, 3), 7, np.uint8)
    coarse = np.ones((1, 10, 12), bool)
    target = coarse.copy()
    target[0, :, 6:] = False
    boxes, index = torch.tensor([[0, 0, 8, 8], [4, 2, 12, 10]]), torch.tensor([0, 0])
    (first, first_coarse, _), (second, _, second_target) = crop_training_patches(
        image, coarse, target, boxes, index, padding=3
    )
    assert first.shape == (14, 14, 3) and first_coarse.shape == (14, 14)
    assert not first[:3].any() and not first[:, :3].any() and (first[3:13, 3:] == 7).all()
    assert not first[13:].any()
    # Rows -1 to 12 and columns 1 to 14 of the image; those below 6 are in the target.
    assert second[1:11, :11].all() and second[1:11, :11].size * 7 == second.sum()
    assert second_target[1:11, :5].all() and second_target.sum() == 50


def test_match_takes_the_best_of_the_class():
    truth = np.zeros((3, 10, 10), bool)
    truth[0, :, :5] = truth[1, :, 5:] = truth[2, :, :6] = True
    mostly_first = truth[0].copy()
    mostly_first[:, 6:8] = True
    coarse = np.stack([truth[0], truth[1], mostly_first, np.zeros((10, 10), bool)])
    labels = np.array([1, 1, 1])
    found = match(coarse, np.array([1, 2, 1, 1]), truth, labels, np.zeros(3, bool))
    # The third lies on columns 0 to 4, 6 and 7: 5/7 of it and the first, 5/8 and the last.
    assert found.tolist() == [0, -1, 0, -1]
    crowd = np.array([True, False, False])
    assert match(coarse[:1], np.array([1]), truth, labels, crowd).tolist() == [2]
    assert match(coarse[:0], np.array([]), truth, labels, crowd).shape == (0,)


def brute_force_f(mask, target):
    height, width = mask.shape

    def edge(plane):
        found = []
        for y in range(height):
            for x in range(width):
                around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
                inside = [(j, i) for j, i in around if 0 <= j < height and 0 <= i < width]
                if plane[y, x] and not all(plane[j, i] for j, i in inside):
                    found.append((y, x))
        return found

    ours, theirs = edge(mask), edge(target)
    if not ours and not theirs:
        return np.nan

    def share(these, those):
        near = [any((y - j) ** 2 + (x - i) ** 2 <= 1 for j, i in those) for y, x in these]
        return sum(near) / max(len(near), 1)

    precision, recall = share(ours, theirs), share(theirs, ours)
    return 2 * precision * recall / max(precision + recall, 1e-12)


def test_boundary_f_of_patches_by_brute_force():
    rng = np.random.default_rng(0)
    masks = np.array([cv2.blur(rng.random((12, 9)), (3, 3)) > 0.5 for _ in range(20)])
    targets = np.array([cv2.blur(rng.random((12, 9)), (3, 3)) > 0.5 for _ in range(20)])
    masks[0], targets[0] = True, True
    masks[1] = False
    targets[2] = masks[2]
    scores = boundary_f_scores(torch.from_numpy(masks), torch.from_numpy(targets)).numpy()
    expected = [brute_force_f(m, t) for m, t in zip(masks, targets, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    assert np.isnan(scores[0]) and scores[1] == 0 and scores[2] == 1


def test_metric_reports_refined_and_coarse():
    def sample(refined, coarse, target):
        data = SegDataSample()
        data.pred_sem_seg = PixelData(data=torch.from_numpy(refined)[None].long())
        data.coarse_mask = PixelData(data=torch.from_numpy(coarse)[None].to(torch.uint8))
        data.gt_sem_seg = PixelData(data=torch.from_numpy(target)[None].long())
        return data.to_dict()

    target = np.zeros((8, 8), bool)
    target[:, :4] = True
    coarse = np.zeros((8, 8), bool)
    coarse[:, :2] = True
    metric = BoundaryPatchMetric()
    metric.process({}, [sample(target, coarse, target), sample(coarse, coarse, target)])
    figures = metric.evaluate(2)
    assert figures["patch/coarse_mIoU"] == pytest.approx(100 * (0.5 + 32 / 48) / 2)
    assert figures["patch/mIoU"] == pytest.approx(100 * (48 / 64 + 64 / 80) / 2)
    assert figures["patch/coarse_boundary_F"] == 0
    assert figures["patch/boundary_F"] == 50
