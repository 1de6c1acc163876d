"""evaluate_masks against a slow computation from the definitions, and against pycocotools."""

import contextlib
import copy
import io
import json
import math

import numpy as np
import pytest
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from mmdet_plus.evaluation import evaluate_masks, evaluate_results
from mmdet_plus.evaluation.mask_quality import AF_ITEMS, AP_ITEMS, match_as_coco
from mmseg_plus.common.errors import UserError

THRESHOLDS = [0.5 + 0.05 * i for i in range(10)]
SIZES = {"": (0, 1e10), "_s": (0, 1024), "_m": (1024, 9216), "_l": (9216, 1e10)}


# ---- the slow way ----------------------------------------------------------------------------


def slow_inside(mask, y, x):
    return 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and bool(mask[y, x])


def slow_region(mask, ratio):
    """Pixels of a mask with something outside of it not more than d rows and columns away."""
    d = max(1, round(ratio * math.hypot(*mask.shape)))
    steps = range(-d, d + 1)
    region = np.zeros_like(mask)
    for y, x in np.argwhere(mask):
        region[y, x] = not all(slow_inside(mask, y + i, x + j) for i in steps for j in steps)
    return region


def slow_iou(det, gt, crowd):
    both = int((det & gt).sum())
    whole = int(det.sum()) if crowd else int((det | gt).sum())
    return both / whole if whole else 0.0


def slow_f(pred, gt, tolerance):
    def boundary(mask):
        sides = [(-1, 0), (1, 0), (0, -1), (0, 1)]
        return [
            (y, x)
            for y, x in np.argwhere(mask).tolist()
            if not all(slow_inside(mask, y + i, x + j) for i, j in sides)
        ]

    ours, theirs = boundary(pred), boundary(gt)

    def share(points, others):
        return sum(any(math.dist(p, o) <= tolerance for o in others) for p in points) / len(points)

    if not ours or not theirs:
        return 0.0
    p, r = share(ours, theirs), share(theirs, ours)
    return 2 * p * r / (p + r) if p + r else 0.0


def slow_matches(dets, gts, ious, ignored, threshold):
    """COCO's matching of one image and class: for each detection a ground truth or None."""
    order = sorted(range(len(gts)), key=lambda g: ignored[g])
    used, matches = set(), []
    for d in range(len(dets)):
        best, choice = threshold - 1e-12, None
        for g in order:
            if g in used and not gts[g]["iscrowd"]:
                continue
            if choice is not None and not ignored[choice] and ignored[g]:
                break
            if ious[d][g] >= best:
                best, choice = ious[d][g], g
        matches.append(choice)
        used.add(choice)
    return matches


class Slow:
    """All figures of a small world, from the definitions."""

    def __init__(self, world, max_dets=100, tolerance=1.0, ratio=0.02, class_average=False):
        self.world, self.max_dets, self.ratio = world, max_dets, ratio
        self.classes = [category["id"] for category in world["gt"]["categories"]]
        self.figures = {}
        for name in ("segm", "boundary"):
            table = self.ious(name)
            for suffix in SIZES:
                values = [self.ap(table, k, t, suffix) for t in THRESHOLDS for k in self.classes]
                self.figures[f"{name}_mAP{suffix}"] = self.mean(values)
            for suffix, threshold in (("_50", 0.5), ("_75", 0.75)):
                values = [self.ap(table, k, threshold, "") for k in self.classes]
                self.figures[f"{name}_mAP{suffix}"] = self.mean(values)
        for suffix in SIZES:
            self.figures[f"AF{suffix}"] = self.af(suffix, tolerance, class_average)

    @staticmethod
    def mean(values):
        values = [value for value in values if value is not None]
        return sum(values) / len(values) if values else -1

    def cells(self, category):
        """Detections, best first, and ground truth of a class, image by image."""
        for image in sorted(image["id"] for image in self.world["gt"]["images"]):
            key = (image, category)
            dets = [d for d in self.world["dets"] if (d["image_id"], d["category_id"]) == key]
            dets = sorted(dets, key=lambda d: -d["score"])[: self.max_dets]
            anns = self.world["gt"]["annotations"]
            yield dets, [a for a in anns if (a["image_id"], a["category_id"]) == key]

    def ious(self, name):
        region = {}

        def of(record):
            if id(record) not in region:
                region[id(record)] = slow_region(record["mask"], self.ratio)
            return region[id(record)]

        table = {}
        for category in self.classes:
            for dets, gts in self.cells(category):
                for det in dets:
                    for gt in gts:
                        iou = slow_iou(det["mask"], gt["mask"], gt["iscrowd"])
                        if name == "boundary" and not gt["iscrowd"]:
                            iou = min(iou, slow_iou(of(det), of(gt), False))
                        table[id(det), id(gt)] = iou
        return table

    def ap(self, table, category, threshold, size):
        low, high = SIZES[size]
        found, positives = [], 0
        for dets, gts in self.cells(category):
            ignored = [bool(a["iscrowd"]) or not low <= a["area"] <= high for a in gts]
            positives += ignored.count(False)
            ious = [[table[id(det), id(gt)] for gt in gts] for det in dets]
            for det, g in zip(dets, slow_matches(dets, gts, ious, ignored, threshold), strict=True):
                if g is None and not low <= det["mask"].sum() <= high:
                    continue
                if g is None or not ignored[g]:
                    found.append((det["score"], g is not None))
        if not positives:
            return None
        found.sort(key=lambda pair: -pair[0])
        true, curve = 0, []
        for rank, (_, hit) in enumerate(found, 1):
            true += hit
            curve.append((true / positives, true / rank))
        # Best precision at that recall or beyond, at 0, 0.01, ..., 1.
        levels = np.linspace(0, 1, 101)
        return sum(max((p for r, p in curve if r >= level), default=0) for level in levels) / 101

    def af(self, size, tolerance, class_average):
        low, high = SIZES[size]
        table = self.ious("segm")
        sums = {}
        for category in self.classes:
            for dets, gts in self.cells(category):
                for gt in gts:
                    if not gt["iscrowd"] and low <= gt["area"] <= high:
                        sums.setdefault(category, [])
                ious = [[table[id(det), id(gt)] for gt in gts] for det in dets]
                crowd = [bool(a["iscrowd"]) for a in gts]
                for threshold in THRESHOLDS:
                    matches = slow_matches(dets, gts, ious, crowd, threshold)
                    for det, g in zip(dets, matches, strict=True):
                        if g is not None and not crowd[g] and low <= gts[g]["area"] <= high:
                            f = slow_f(det["mask"], gts[g]["mask"], tolerance)
                            sums[category].append(f)
        if not sums:
            return -1
        if class_average:
            return self.mean([self.mean(values) if values else 0 for values in sums.values()])
        pooled = [f for values in sums.values() for f in values]
        return self.mean(pooled) if pooled else 0


# ---- worlds ----------------------------------------------------------------------------------


def rle(mask):
    encoded = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(encoded, counts=encoded["counts"].decode())


def blob(rng, height, width):
    """A disc or a bar, often across the border, sometimes with a hole."""
    y, x = np.mgrid[:height, :width]
    cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(3, 9)
    mask = (y - cy) ** 2 + (x - cx) ** 2 < r**2
    if rng.random() < 0.3:
        mask = (abs(y - cy) < r) & (abs(x - cx) < r / 2 + 1)
    if rng.random() < 0.2:
        mask &= (y - cy) ** 2 + (x - cx) ** 2 > (r / 3) ** 2
    return mask


def make_world(seed, max_size=26):
    """Images with crowds, twins, misses, false detections, ties and an empty mask.

    The last class has no ground truth; the recorded areas are drawn so that all sizes occur.
    """
    rng = np.random.default_rng(seed)
    categories = [dict(id=ident, name=f"c{ident}") for ident in (3, 5, 9, 11)]
    images, annotations, dets = [], [], []
    for ident in (7, 2, 4):
        height, width = rng.integers(12, max_size, 2).tolist()
        images.append(dict(id=ident, file_name=f"{ident}.png", height=height, width=width))
        for _ in range(rng.integers(2, 7)):
            mask = blob(rng, height, width)
            category = int(rng.choice([3, 5, 9]))
            twins = 2 if rng.random() < 0.2 else 1
            for _ in range(twins):
                crowd = int(rng.random() < 0.2)
                area = float(rng.choice([int(mask.sum()), 1024, 1050, 9100, 9216, 20000]))
                annotations.append(
                    dict(
                        id=len(annotations) + 1,
                        image_id=ident,
                        category_id=category,
                        iscrowd=crowd,
                        area=area,
                        bbox=mask_util.toBbox(rle(mask)).tolist(),
                        mask=mask,
                        segmentation=rle(mask),
                    )
                )
            for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
                shift = rng.integers(-2, 3, 2) if rng.random() < 0.7 else (0, 0)
                guess = np.roll(mask, shift, (0, 1))
                if rng.random() < 0.5:
                    guess[rng.integers(height) :][:3] = False
                if rng.random() < 0.2:
                    guess = guess & (rng.random(mask.shape) < 0.95)
                label = category if rng.random() < 0.9 else int(rng.choice([3, 5, 9, 11]))
                dets.append((ident, label, guess))
        dets.append((ident, int(rng.choice([3, 5, 9, 11])), blob(rng, height, width)))
    dets.append((2, 3, np.zeros_like(dets[-1][2], shape=[images[1]["height"], images[1]["width"]])))
    records = [
        dict(
            image_id=ident,
            category_id=label,
            score=float(rng.choice([0.2, 0.4, 0.6, 0.8])),
            mask=mask,
            segmentation=rle(mask),
        )
        for ident, label, mask in dets
    ]
    return dict(
        gt=dict(images=images, categories=categories, annotations=annotations), dets=records
    )


def evaluate(world, **options):
    return evaluate_masks(world["gt"], world["dets"], **options)


# ---- tests -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_equals_the_slow_computation(seed):
    options = [
        {},
        dict(tolerance=2.0, ratio=0.1),
        dict(max_dets=1),
        dict(class_average=True, tolerance=0.0),
    ][seed % 4]
    world = make_world(seed)
    slow = Slow(world, **options)
    names = dict(tolerance="boundary_tolerance", ratio="boundary_dilation_ratio")
    found = evaluate(world, **{names.get(name, name): value for name, value in options.items()})
    assert found == pytest.approx(slow.figures, abs=1e-9)
    assert set(found) == {
        f"{kind}_{item}" for kind in ("segm", "boundary") for item in AP_ITEMS
    } | {*AF_ITEMS}
    # The world must be able to tell mistakes apart.
    assert 0 < found["segm_mAP"] < 1
    assert 0 < found["AF"] < 1 or "tolerance" in options
    assert found["boundary_mAP"] != found["segm_mAP"]


@pytest.mark.parametrize("seed", range(20, 50))
def test_mask_ap_equals_that_of_pycocotools(seed):
    world = make_world(seed, max_size=60)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(world["gt"])
        gt.createIndex()
        dt = gt.loadRes([{k: v for k, v in d.items() if k != "mask"} for d in world["dets"]])
        evaluator = COCOeval(gt, dt, "segm")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    found = evaluate(world)
    expected = dict(zip(AP_ITEMS, evaluator.stats[:6].tolist(), strict=True))
    assert {item: found[f"segm_{item}"] for item in AP_ITEMS} == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(200))
def test_matching_by_itself(seed):
    """Many ties and crowds, against COCO's loop."""
    rng = np.random.default_rng(seed)
    ious = rng.choice([0, 0.5, 0.6, 0.75, 0.75, 1], size=rng.integers(1, 7, 2))
    gts = [dict(iscrowd=bool(rng.random() < 0.3)) for _ in range(ious.shape[1])]
    crowd = [gt["iscrowd"] for gt in gts]
    thresholds = [0.5, 0.55, 0.75, 0.8, 1.0]
    found = match_as_coco(ious, crowd, thresholds)
    for row, threshold in zip(found.tolist(), thresholds, strict=True):
        expected = slow_matches(range(len(ious)), gts, ious.tolist(), crowd, threshold)
        assert row == [-1 if g is None else g for g in expected]


def test_an_iou_of_one_up_to_rounding_meets_a_threshold_of_one():
    assert match_as_coco(np.array([[1 - 1e-11], [1 - 1e-9]]), [False], [1.0]).tolist() == [[0, -1]]
    assert match_as_coco(np.array([[1 - 1e-9]]), [False], [1.0]).tolist() == [[-1]]


def square(shape, y, x, height, width):
    mask = np.zeros(shape, bool)
    mask[y : y + height, x : x + width] = True
    return mask


def a_case_by_hand():
    """IoU 24/36, found at 4 thresholds with F 7/9; and one of another class, perfect."""
    shape = (20, 30)
    truth = [(1, square(shape, 2, 3, 6, 6)), (2, square(shape, 10, 10, 5, 7))]
    found = [(1, square(shape, 2, 3, 6, 4)), (2, square(shape, 10, 10, 5, 7))]
    return dict(
        gt=dict(
            images=[dict(id=1, file_name="a.png", height=20, width=30)],
            categories=[dict(id=1, name="one"), dict(id=2, name="two")],
            annotations=[
                dict(
                    id=i,
                    image_id=1,
                    category_id=category,
                    iscrowd=0,
                    area=int(mask.sum()),
                    bbox=[0, 0, 1, 1],
                    segmentation=rle(mask),
                )
                for i, (category, mask) in enumerate(truth)  # from id 0
            ],
        ),
        dets=[
            dict(image_id=1, category_id=category, score=0.9, segmentation=rle(mask))
            for category, mask in found
        ],
    )


def test_a_case_by_hand():
    world = a_case_by_hand()
    found = evaluate(world, classwise=True)
    assert found["AF"] == pytest.approx((4 * 7 / 9 + 10 * 1) / 14)
    assert found["AF_s"] == found["AF"] and found["AF_m"] == found["AF_l"] == -1
    assert found["segm_mAP"] == pytest.approx((0.4 + 1) / 2)
    assert found["segm_mAP_50"] == 1 and found["segm_mAP_75"] == 0.5
    # d = 1: of 20 and 16 boundary pixels 12 are shared, an IoU of 12/24.
    assert found["boundary_mAP"] == pytest.approx((0.1 + 1) / 2)
    assert [found[f"one_{name}"] for name in ("precision", "boundary_precision", "AF")] == (
        pytest.approx([0.4, 0.1, 7 / 9])
    )
    assert [found[f"two_{name}"] for name in ("precision", "boundary_precision", "AF")] == [1, 1, 1]
    averaged = evaluate(world, class_average=True)
    assert averaged["AF"] == pytest.approx((7 / 9 + 1) / 2)
    assert evaluate(world, iou_thrs=[0.5])["AF"] == pytest.approx((7 / 9 + 1) / 2)
    assert evaluate(world, iou_thrs=[0.75])["segm_mAP_50"] == -1


def test_nothing_detected_is_zero_and_nothing_to_detect_minus_one():
    world = a_case_by_hand()
    found = evaluate(dict(world, dets=[]), classwise=True)
    undefined = {name for name in found if name.endswith(("_m", "_l"))}
    assert len(undefined) == 6
    assert all(found[name] == (-1 if name in undefined else 0) for name in found)
    assert found["one_AF"] == found["two_boundary_precision"] == 0
    for dets in (world["dets"], []):
        bare = dict(world["gt"], annotations=[])
        assert set(evaluate_masks(bare, dets, classwise=True).values()) == {-1}
    # Without a list of annotations at all, as mmdet writes it.
    del bare["annotations"]
    assert set(evaluate_masks(bare, world["dets"]).values()) == {-1}


def test_one_class_without_detections_counts_in_the_average_of_classes():
    world = a_case_by_hand()
    world["dets"] = world["dets"][1:]
    assert evaluate(world)["AF"] == 1
    assert evaluate(world, class_average=True)["AF"] == 0.5
    # And one without ground truth does not.
    world["gt"]["annotations"] = world["gt"]["annotations"][1:]
    assert evaluate(world, class_average=True)["AF"] == 1


def test_a_detection_of_a_crowd_is_no_true_positive():
    world = a_case_by_hand()
    world["gt"]["annotations"][1]["iscrowd"] = 1
    found = evaluate(world)
    assert found["AF"] == pytest.approx(7 / 9)
    assert found["segm_mAP"] == pytest.approx(0.4)


def test_all_forms_of_masks_mean_the_same():
    world = a_case_by_hand()
    expected = evaluate(world)
    first, second = world["gt"]["annotations"]
    first["segmentation"] = [[3, 2, 9, 2, 9, 8, 3, 8]]
    counts = mask_util.decode(second["segmentation"]).T.reshape(-1)
    ends = np.flatnonzero(np.diff(counts)) + 1
    second["segmentation"] = dict(
        size=[20, 30], counts=np.diff([0, *ends.tolist(), counts.size]).tolist()
    )
    assert evaluate(world) == expected
    first["segmentation"] = mask_util.encode(
        np.asfortranarray(square((20, 30), 2, 3, 6, 6).astype(np.uint8))
    )
    assert isinstance(first["segmentation"]["counts"], bytes)
    world["dets"][0]["segmentation"] = dict(
        world["dets"][0]["segmentation"],
        counts=world["dets"][0]["segmentation"]["counts"].encode(),
    )
    assert evaluate(world) == expected


def test_nothing_given_is_changed():
    world = make_world(3)
    before = copy.deepcopy(world)
    index = COCO()
    index.dataset = world["gt"]
    first = evaluate_masks(index, world["dets"])
    for kind in ("images", "categories"):
        assert world["gt"][kind] == before["gt"][kind]
    for kind, old in (("annotations", before["gt"]["annotations"]), (None, before["dets"])):
        new = world["dets"] if kind is None else world["gt"][kind]
        for ours, theirs in zip(new, old, strict=True):
            assert ours.keys() == theirs.keys()
            assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert evaluate(world) == first


def test_names_instead_of_numbers_as_image_ids_and_an_annotation_of_id_zero():
    world = make_world(1)
    expected = evaluate(world)
    # In the same order as the numbers.
    for record in (*world["gt"]["annotations"], *world["dets"]):
        record["image_id"] = f"image {record['image_id']}"
    for image in world["gt"]["images"]:
        image["id"] = f"image {image['id']}"
    for ann in world["gt"]["annotations"]:
        ann["id"] -= 1
    assert evaluate(world) == expected


def test_a_choice_of_images_and_classes():
    world = make_world(5)
    part = dict(
        gt=dict(
            images=[image for image in world["gt"]["images"] if image["id"] != 7],
            categories=[c for c in world["gt"]["categories"] if c["id"] in (3, 9)],
            annotations=[
                a
                for a in world["gt"]["annotations"]
                if a["image_id"] != 7 and a["category_id"] in (3, 9)
            ],
        ),
        dets=[d for d in world["dets"] if d["image_id"] != 7 and d["category_id"] in (3, 9)],
    )
    chosen = evaluate(world, img_ids=[4, 2], cat_ids=[9, 3], classwise=True)
    assert chosen == pytest.approx(evaluate(part, classwise=True))
    assert chosen != evaluate(world)
    assert list(chosen)[-6:-3] == ["c9_precision", "c9_boundary_precision", "c9_AF"]


def test_items():
    world = make_world(6)
    everything = evaluate(world)
    some = evaluate(world, items=["mAP_75", "AF_s"])
    assert some == {k: everything[k] for k in ("segm_mAP_75", "boundary_mAP_75", "AF_s")}
    assert evaluate(world, items=["AF"]) == {"AF": everything["AF"]}
    assert set(evaluate(world, items=["mAP"])) == {"segm_mAP", "boundary_mAP"}


def test_areas_from_masks():
    world = a_case_by_hand()
    for ann in world["gt"]["annotations"]:
        ann["area"] = 5000
    found = evaluate(world)
    assert found["AF_s"] == -1 and found["AF_m"] == found["AF"]
    counted = evaluate(world, areas_from_masks=True)
    assert counted["AF_s"] == counted["AF"] and counted["segm_mAP_m"] == -1


def test_files(tmp_path):
    world = a_case_by_hand()
    ann_file, results = tmp_path / "gt.json", tmp_path / "results.json"
    ann_file.write_text(json.dumps(world["gt"]))
    results.write_text(json.dumps(world["dets"]))
    expected = evaluate(world)
    assert evaluate_results(str(ann_file), str(results)) == expected
    assert evaluate_results(str(ann_file), world["dets"]) == expected
    assert evaluate_results(str(ann_file), str(results), max_dets=1, items=["AF"]) == {
        "AF": expected["AF"]
    }
    with pytest.raises(UserError, match="absent.json: there is no such file of results"):
        evaluate_results(str(ann_file), str(tmp_path / "absent.json"))
    with pytest.raises(UserError, match="absent.json: there is no such annotation file"):
        evaluate_results(str(tmp_path / "absent.json"), str(results))
    with pytest.raises(UserError, match="gt.json: holds a dict, not a list of COCO results"):
        evaluate_results(str(ann_file), str(ann_file))
    results.write_text("[{")
    with pytest.raises(UserError, match="results.json: not a JSON file"):
        evaluate_results(str(ann_file), str(results))
    results.write_text(json.dumps([dict(world["dets"][0], image_id=77)]))
    with pytest.raises(UserError, match=r"results.json: detection on image 77 \(record 0\)"):
        evaluate_results(str(ann_file), str(results))


OTHER = rle(np.ones((30, 20), bool))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_id=[1]), r"image \[1\] .*has no such image"),
        (dict(category_id=4), "image 1 .*no category 4 but 1, 2"),
        (dict(score=math.nan), "image 1 .*score nan"),
        (dict(score="0.5"), "image 1 .*score '0.5'"),
        (dict(segmentation=None), "image 1 .*boxes alone have no masks"),
        (dict(segmentation=[[0, 0, 3, 0, 3, 3]]), "image 1 .*is not an RLE"),
        (dict(segmentation=OTHER), r"image 1 .*a\.png.*size \[30, 20\].*record says \[20, 30\]"),
        (dict(segmentation=dict(OTHER, size=[20, 30], counts="0a")), ".*do not add up"),
        (dict(segmentation=dict(size=[20, 30], counts=[500, 99])), ".*do not add up"),
        (dict(segmentation=dict(size=[20, 30], counts=[500, -1, 101])), ".*do not add up"),
    ],
)
def test_faulty_detections(change, message):
    world = a_case_by_hand()
    world["dets"][1].update(change)
    with pytest.raises(UserError, match=f"detections: detection on {message}"):
        evaluate(world)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("annotations", dict(segmentation=[]), "annotation 0 of image 1 .*no `segmentation`"),
        ("annotations", dict(segmentation=OTHER), r"annotation 0 of image 1 .*size \[30, 20\]"),
        ("annotations", dict(image_id=8), "annotation 0 of image 8 .*unknown image_id"),
        ("annotations", dict(area=None), "annotation 0 of image 1 .*area None"),
        ("images", dict(height=0), "image 1 .*height 0"),
        ("images", dict(id=None), "image None .*needs an `id`"),
        ("categories", dict(id=2), "category 2 .*occurs twice"),
    ],
)
def test_faulty_ground_truth(kind, change, message):
    world = a_case_by_hand()
    world["gt"][kind][0].update(change)
    with pytest.raises(UserError, match=f"(?s)ground truth: .*{message}"):
        evaluate(world)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(max_dets=0), ValueError, "max_dets: 0"),
        (dict(iou_thrs=[]), ValueError, "iou_thrs"),
        (dict(iou_thrs=[0.5, 0]), ValueError, "iou_thrs"),
        (dict(boundary_tolerance=-1), ValueError, "boundary_tolerance: -1"),
        (dict(boundary_dilation_ratio=0), ValueError, "boundary_dilation_ratio: 0"),
        (dict(items=["AR"]), ValueError, "AR"),
        (dict(img_ids=[1, 6]), UserError, "no image 6; it has 1"),
        (dict(img_ids=[]), UserError, "no image to evaluate"),
        (dict(cat_ids=["one"]), UserError, "no category 'one'; it has 1, 2"),
    ],
)
def test_wrong_options(options, error, message):
    with pytest.raises(error, match=message):
        evaluate(a_case_by_hand(), **options)
