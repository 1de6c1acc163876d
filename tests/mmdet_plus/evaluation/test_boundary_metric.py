"""BoundaryMetric as mmdet's evaluator calls it."""

import json

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from mmdet.structures.mask import encode_mask_results
from pycocotools import mask as mask_util

from mmdet_plus.evaluation import BoundaryMetric, evaluate_results
from mmdet_plus.evaluation.mask_quality import AF_ITEMS, AP_ITEMS
from mmseg_plus.common.errors import UserError

META = dict(classes=("cat", "dog"))
NAMES = [
    *(f"{kind}_{item}" for kind in ("segm", "boundary") for item in AP_ITEMS),
    *AF_ITEMS,
]


def disc(shape, y, x, radius):
    ys, xs = np.mgrid[: shape[0], : shape[1]]
    return (ys - y) ** 2 + (xs - x) ** 2 <= radius**2


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(encoded, counts=encoded["counts"].decode())


def box(mask):
    """x1, y1, x2, y2."""
    x, y, width, height = mask_util.toBbox(rle(mask)).tolist()
    return [x, y, x + width, y + height]


class World:
    """Four images of different sizes: discs of two classes, a crowd, an image with nothing."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.truth, self.found = {}, {}
        for ident in (11, 12, 13, 14):
            shape = (60 + 10 * (ident - 11), 140 - 10 * (ident - 11))
            discs = [
                (disc(shape, *rng.uniform(10, 60, 2), rng.uniform(5, 24)), k % 2, 0)
                for k in range(5 if ident != 13 else 0)
            ]
            if ident == 11:
                # Small, but not its box.
                discs.append((disc(shape, 30, 70, 17), 0, 0))
            if ident == 12:
                discs.append((disc(shape, 30, 100, 25), 1, 1))
            self.truth[ident] = shape, discs
            self.found[ident] = [
                (np.roll(mask, rng.integers(-2, 3, 2), (0, 1)), label, float(rng.random()))
                for mask, label, _ in discs[1:]
            ]
            self.found[ident].append((disc(shape, 20, 110, 9), 0, 0.5))
        self.found[14] = []

    def content(self):
        """As a COCO data set; labels 0 and 1 have ids 4 and 2."""
        images = [
            dict(id=ident, file_name=f"{ident}.png", height=shape[0], width=shape[1])
            for ident, (shape, _) in self.truth.items()
        ]
        annotations = []
        for ident, (_, masks) in self.truth.items():
            for mask, label, crowd in masks:
                x1, y1, x2, y2 = box(mask)
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=ident,
                        category_id=(4, 2)[label],
                        iscrowd=crowd,
                        area=int(mask.sum()),
                        bbox=[x1, y1, x2 - x1, y2 - y1],
                        segmentation=rle(mask),
                    )
                )
        categories = [dict(id=4, name="cat"), dict(id=2, name="dog")]
        return dict(images=images, annotations=annotations, categories=categories)

    def results(self):
        return [
            dict(image_id=ident, category_id=(4, 2)[label], score=score, segmentation=rle(mask))
            for ident, found in self.found.items()
            for mask, label, score in found
        ]

    def sample(self, ident, encoded=False):
        shape, truth = self.truth[ident]
        found = self.found[ident]
        masks = torch.zeros(len(found), *shape, dtype=torch.bool)
        for row, (mask, _, _) in zip(masks, found, strict=True):
            row[:] = torch.from_numpy(mask)
        return dict(
            img_id=ident,
            img_path=f"images/{ident}.png",
            ori_shape=shape,
            pred_instances=dict(
                bboxes=torch.tensor([box(mask) for mask, _, _ in found]).view(-1, 4),
                labels=torch.tensor([label for _, label, _ in found], dtype=torch.long),
                # As doubles, so that the results below have the same scores.
                scores=torch.tensor([score for _, _, score in found], dtype=torch.float64),
                masks=encode_mask_results(masks.numpy()) if encoded else masks,
            ),
            instances=[
                dict(bbox=box(mask), bbox_label=label, ignore_flag=crowd, mask=rle(mask))
                for mask, label, crowd in truth
            ],
        )


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def ann_file(world, tmp_path_factory):
    path = tmp_path_factory.mktemp("gt") / "gt.json"
    path.write_text(json.dumps(world.content()))
    return str(path)


def build(**options):
    metric = METRICS.build(dict(type="BoundaryMetric", **options))
    metric.dataset_meta = META
    return metric


def run(metric, samples):
    for start in range(0, len(samples), 3):
        metric.process({}, samples[start : start + 3])
    return metric.evaluate(len(samples))


def all_samples(world, **kwargs):
    return [world.sample(ident, **kwargs) for ident in world.truth]


def unprefixed(figures, prefix="coco"):
    assert all(name.startswith(f"{prefix}/") for name in figures)
    return {name.partition("/")[2]: value for name, value in figures.items()}


def test_figures_are_those_of_the_results(world, ann_file):
    figures = unprefixed(run(build(ann_file=ann_file), all_samples(world)))
    assert list(figures) == NAMES
    assert figures == pytest.approx(evaluate_results(ann_file, world.results()))
    assert 0 < figures["boundary_mAP"] < figures["segm_mAP"] < 1 and 0 < figures["AF"] < 1
    assert figures["segm_mAP_l"] == figures["AF_l"] == -1


def test_mask_ap_is_that_of_coco_metric(world, ann_file):
    theirs = CocoMetric(ann_file=ann_file, metric=["bbox", "segm"])
    theirs.dataset_meta = META
    expected = run(theirs, all_samples(world))
    ours = run(build(ann_file=ann_file, metric=["bbox", "segm"]), all_samples(world))
    assert len(expected) == 12
    # Theirs are rounded.
    assert {name: ours[name] for name in expected} == pytest.approx(expected, abs=5.1e-4)


def test_ground_truth_of_the_samples(world, ann_file):
    with_file = run(build(ann_file=ann_file), all_samples(world))
    without = run(build(), all_samples(world, encoded=True))
    # Sizes as well: they are counted from the masks, not from boxes.
    assert without == pytest.approx(with_file)


def test_polygons_in_the_samples(world):
    sample = world.sample(11)
    sample["pred_instances"] = dict(
        bboxes=torch.tensor([[10.0, 10, 30, 30]]),
        labels=torch.tensor([0]),
        scores=torch.tensor([0.9]),
        masks=torch.zeros(1, *sample["ori_shape"], dtype=torch.bool),
    )
    sample["pred_instances"]["masks"][:, 10:30, 10:30] = True
    polygon = [10, 10, 30, 10, 30, 30, 10, 30]
    sample["instances"] = [dict(bbox=[10, 10, 30, 30], bbox_label=0, ignore_flag=0, mask=[polygon])]
    figures = run(build(), [sample])
    assert figures["coco/AF"] == figures["coco/segm_mAP"] == figures["coco/boundary_mAP"] == 1


def test_results_of_two_processes_together(world, ann_file):
    samples = all_samples(world)
    metrics = [build(ann_file=ann_file), build(ann_file=ann_file)]
    metrics[0].process({}, samples[0::2])
    metrics[1].process({}, samples[1::2])
    together = metrics[0].compute_metrics(metrics[0].results + metrics[1].results)
    assert together == pytest.approx(unprefixed(run(build(ann_file=ann_file), samples)))


def test_epoch_after_epoch(world, ann_file):
    for options in (dict(ann_file=ann_file), {}):
        metric = build(**options)
        first = run(metric, all_samples(world))
        worse = all_samples(world)
        for sample in worse:
            sample["pred_instances"]["masks"] = sample["pred_instances"]["masks"].roll(3, 2)
        second = run(metric, worse)
        assert second["coco/AF"] < first["coco/AF"]
        assert run(metric, all_samples(world)) == first


def test_nothing_detected(world, ann_file):
    samples = all_samples(world)
    for sample in samples:
        none = sample["pred_instances"]
        sample["pred_instances"] = {name: value[:0] for name, value in none.items()}
    for metric in (build(ann_file=ann_file), build(), build(ann_file=ann_file, metric="bbox")):
        figures = unprefixed(run(metric, samples))
        large = {"segm_mAP_l", "boundary_mAP_l", "AF_l"}
        assert figures == {name: -1 if name in large else 0 for name in NAMES}


def test_nothing_to_detect(world):
    figures = run(build(), [world.sample(13)])
    assert set(figures.values()) == {-1}


def test_a_part_of_the_images(world, ann_file):
    samples = [world.sample(12), world.sample(13)]
    missed = unprefixed(run(build(ann_file=ann_file), samples))
    results = [r for r in world.results() if r["image_id"] in (12, 13)]
    assert missed == pytest.approx(evaluate_results(ann_file, results))
    alone = unprefixed(run(build(ann_file=ann_file, processed_only=True), samples))
    assert alone == pytest.approx(evaluate_results(ann_file, results, img_ids=[13, 12]))
    assert missed["segm_mAP"] < alone["segm_mAP"]
    # AF looks at what was found, which is the same.
    assert missed["AF"] == alone["AF"]


def test_options_reach_the_figures(world, ann_file):
    results = world.results()
    options = dict(
        boundary_tolerance=0.0, boundary_dilation_ratio=0.05, class_average=True, max_dets=2
    )
    figures = unprefixed(run(build(ann_file=ann_file, **options), all_samples(world)))
    assert figures == pytest.approx(evaluate_results(ann_file, results, **options))
    default = evaluate_results(ann_file, results)
    for name in ("AF", "boundary_mAP", "segm_mAP"):
        assert figures[name] != pytest.approx(default[name])
    at_half = unprefixed(run(build(ann_file=ann_file, iou_thrs=[0.5]), all_samples(world)))
    assert at_half["segm_mAP"] == at_half["segm_mAP_50"] == pytest.approx(default["segm_mAP_50"])
    assert at_half["segm_mAP_75"] == -1


def test_items_and_classes(world, ann_file):
    metric = build(
        ann_file=ann_file,
        metric=["bbox", "segm"],
        metric_items=["mAP_50", "AF"],
        classwise=True,
        prefix="val",
    )
    figures = unprefixed(run(metric, all_samples(world)), "val")
    # The parent's ones of boxes come with names of their own.
    names = [f"{name}_{kind}" for name in ("cat", "dog") for kind in ("precision", "AF")]
    names += ["cat_boundary_precision", "dog_boundary_precision"]
    expected = {"bbox_mAP_50", "segm_mAP_50", "boundary_mAP_50", "AF", *names}
    assert set(figures) == expected
    own = evaluate_results(ann_file, world.results(), classwise=True)
    for name in expected - {"bbox_mAP_50"}:
        assert figures[name] == pytest.approx(own[name])


def test_classes_in_another_order_than_their_ids(world, ann_file):
    """Labels follow the file, which lists id 4 before id 2."""
    own = evaluate_results(ann_file, world.results(), classwise=True, cat_ids=[2])
    metric = build(ann_file=ann_file, classwise=True)
    figures = unprefixed(run(metric, all_samples(world)))
    for kind in ("precision", "boundary_precision", "AF"):
        assert figures[f"dog_{kind}"] == pytest.approx(own[f"dog_{kind}"])
        assert figures[f"dog_{kind}"] != pytest.approx(figures[f"cat_{kind}"])


def test_some_of_the_classes(world, ann_file):
    metric = build(ann_file=ann_file)
    metric.dataset_meta = dict(classes=("dog",))
    samples = all_samples(world)
    for sample in samples:
        found = sample["pred_instances"]
        dogs = found["labels"] == 1
        sample["pred_instances"] = {name: value[dogs] for name, value in found.items()}
        sample["pred_instances"]["labels"] -= 1
    expected = evaluate_results(ann_file, world.results(), cat_ids=[2])
    assert unprefixed(run(metric, samples)) == pytest.approx(expected)


def test_written_results(world, ann_file, tmp_path):
    prefix = tmp_path / "out" / "run"
    prefix.parent.mkdir()
    figures = run(build(ann_file=ann_file, outfile_prefix=str(prefix)), all_samples(world))
    assert evaluate_results(ann_file, f"{prefix}.segm.json") == pytest.approx(unprefixed(figures))
    only = tmp_path / "only"
    metric = build(ann_file=ann_file, outfile_prefix=str(only), format_only=True)
    assert run(metric, all_samples(world)) == {}
    written = only.with_suffix(".segm.json").read_text()
    assert written == prefix.with_suffix(".segm.json").read_text()


def test_mask_scores_rank_masks(world, ann_file):
    samples = all_samples(world)
    for sample in samples:
        scores = sample["pred_instances"]["scores"]
        sample["pred_instances"]["mask_scores"] = 1 - scores
    figures = unprefixed(run(build(ann_file=ann_file), samples))
    turned = [dict(r, score=1 - r["score"]) for r in world.results()]
    assert figures == pytest.approx(evaluate_results(ann_file, turned))
    default = evaluate_results(ann_file, world.results())
    assert figures["segm_mAP"] != pytest.approx(default["segm_mAP"])


def test_predictions_that_cannot_be_evaluated(world, ann_file):
    metric = build(ann_file=ann_file)
    sample = world.sample(12)
    del sample["pred_instances"]["masks"]
    with pytest.raises(UserError, match="image 12 .*12.png.* has no masks"):
        metric.process({}, [world.sample(11), sample])
    for encoded in (True, False):
        sample = world.sample(12, encoded=encoded)
        sample["ori_shape"] = (71, 130)
        message = r"image 12 .*\[70, 130\] but the original image has \[71, 130\]"
        with pytest.raises(UserError, match=message):
            metric.process({}, [sample])
    assert not metric.results
    with pytest.raises(UserError, match="no image was processed"):
        metric.compute_metrics([])


def test_an_annotation_file_that_does_not_fit(world, tmp_path):
    content = world.content()
    content["images"][1]["width"] += 1
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 12]
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"(?s)predictions: .*image 12 .*12\.png.*\[70, 131\]"):
        run(build(ann_file=str(path)), all_samples(world))
    content["annotations"][0]["segmentation"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"other\.json: annotation 1 of image 11 .*segmentation"):
        run(build(ann_file=str(path)), all_samples(world))


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (dict(metric_items=["AR@100"]), ValueError),
        (dict(boundary_tolerance=-1), ValueError),
        (dict(boundary_dilation_ratio=2), ValueError),
        (dict(max_dets=0), ValueError),
        (dict(iou_thrs=[1.5]), ValueError),
        (dict(metric="masks"), KeyError),
    ],
)
def test_wrong_options_are_told_before_the_test_runs(options, error):
    with pytest.raises(error, match=next(iter(options)).replace("metric_items", "items")):
        BoundaryMetric(**options)


def test_real_nuclei(shared_data):
    """Ground truth as predictions, whole and eaten away at the right side."""
    ann_file = shared_data / "nuclei" / "annotations" / "val.json"
    if not ann_file.is_file():
        pytest.skip("needs the nuclei")
    content = json.loads(ann_file.read_text())
    ids = [image["id"] for image in content["images"]][:4]
    chosen = [a for a in content["annotations"] if a["image_id"] in ids]

    def results(change):
        masks = [mask_util.decode(a["segmentation"]).astype(bool) for a in chosen]
        return [
            dict(
                image_id=a["image_id"],
                category_id=a["category_id"],
                score=0.5 + i / 1e4,
                segmentation=rle(change(mask)),
            )
            for i, (a, mask) in enumerate(zip(chosen, masks, strict=True))
        ]

    options = dict(img_ids=ids, max_dets=1000)
    perfect = evaluate_results(str(ann_file), results(lambda mask: mask), **options)
    assert {v for v in perfect.values() if v != -1} == {1.0}
    eaten = evaluate_results(
        str(ann_file), results(lambda mask: mask & np.roll(mask, -3, 1)), **options
    )
    assert 0 < eaten["boundary_mAP"] <= eaten["segm_mAP"] < 1
    assert 0.5 < eaten["AF"] < 1
