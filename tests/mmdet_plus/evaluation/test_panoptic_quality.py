"""Panoptic quality against panopticapi's own counting, on drawn maps and on real ones."""

import json

import numpy as np
import pytest
from panopticapi.evaluation import PQStat, pq_compute_single_core
from panopticapi.utils import id2rgb
from PIL import Image

from mmdet_plus.benchmark.panoptic import perturb
from mmdet_plus.evaluation import pq_statistics
from mmdet_plus.evaluation.id_maps import read_id_map
from mmdet_plus.evaluation.panoptic_quality import (
    Counts,
    Overlaps,
    Segments,
    add_counts,
    category_quality,
    contradictions,
    count_segments,
    overlap_areas,
    panoptic_figures,
)
from mmseg_plus.common.coco_checks import AnnotationError

CATEGORIES = {
    ident: dict(id=ident, name=str(ident), isthing=int(ident % 2)) for ident in (1, 2, 3, 8, 200)
}
NAMES = ("PQ", "SQ", "RQ")


def theirs(folder, cases, categories=CATEGORIES):
    """panopticapi's statistics of (gt, pred, gt records, predicted records)."""
    annotations = []
    for number, (gt, pred, gt_segments, pred_segments) in enumerate(cases):
        pair = []
        for kind, ids, segments in (("gt", gt, gt_segments), ("pred", pred, pred_segments)):
            (folder / kind).mkdir(exist_ok=True)
            Image.fromarray(id2rgb(ids.copy())).save(folder / kind / f"{number}.png")
            records = [dict(record) for record in segments]
            pair.append(dict(image_id=number, file_name=f"{number}.png", segments_info=records))
        annotations.append(tuple(pair))
    return pq_compute_single_core(
        0, annotations, str(folder / "gt"), str(folder / "pred"), categories
    )


def assert_same(ours, stat):
    expected = {
        category: (own.tp, own.fp, own.fn)
        for category, own in stat.pq_per_cat.items()
        if own.tp + own.fp + own.fn
    }
    assert {category: own[:3] for category, own in ours.items()} == expected
    for category, own in ours.items():
        assert own.iou == pytest.approx(stat[category].iou, rel=1e-12, abs=1e-12)


def draw_ids(rng, shape, count):
    """Blocks of some pixels with few ids of all sizes; 0 is among them."""
    ids = np.concatenate([[0], rng.choice(2**24 - 1, count, replace=False) + 1])
    coarse = rng.choice(ids, (shape[0] // 4, shape[1] // 4), p=rng.dirichlet(np.ones(count + 1)))
    return coarse.repeat(4, 0).repeat(4, 1)


def draw_case(rng):
    """A true and a predicted map: void on both sides, crowds, categories confused, pixels moved."""
    shape = (24, 32)
    gt = draw_ids(rng, shape, rng.integers(1, 9))
    pred = np.roll(gt, rng.integers(-2, 3, 2), (0, 1))
    # Ids of their own, some segments apart or gone.
    for ident in np.unique(pred[pred > 0]):
        pred[pred == ident] = rng.choice([ident, 0, ident ^ 1 or 7], p=(0.7, 0.1, 0.2))
    extra = draw_ids(rng, shape, 4)
    pred = np.where(rng.random((6, 8)).repeat(4, 0).repeat(4, 1) < 0.1, extra, pred)
    kinds = list(CATEGORIES)
    category = {ident: kinds[ident % len(kinds)] for ident in range(16)}
    gt_ids = np.unique(gt[gt > 0]).tolist()
    gt_segments = [
        dict(
            id=ident,
            category_id=category[ident // 2 % 16],
            iscrowd=int(rng.random() < 0.25),
            area=int((gt == ident).sum()),
        )
        for ident in rng.permutation(gt_ids).tolist()
        # What is not listed is neither void nor a segment.
        if rng.random() < 0.9
    ]
    pred_segments = [
        dict(
            id=ident,
            category_id=category[ident // 2 % 16]
            if rng.random() < 0.85
            else int(rng.choice(kinds)),
        )
        for ident in np.unique(pred[pred > 0]).tolist()
    ]
    return gt, pred, gt_segments, pred_segments


def test_random_maps_are_counted_as_by_panopticapi(tmp_path):
    rng = np.random.default_rng(0)
    cases = [draw_case(rng) for _ in range(150)]
    parts = [pq_statistics(*case) for case in cases]
    for case, ours in zip(cases[:50], parts[:50], strict=True):
        assert_same(ours, theirs(tmp_path, [case]))
    total, stat = add_counts(parts), theirs(tmp_path, cases)
    assert_same(total, stat)
    # All that there is to tell apart occurs.
    assert all(min(own[:3]) > 10 for own in total.values())
    crowds = [record for case in cases for record in case[2] if record["iscrowd"]]
    assert len(crowds) > 50


@pytest.mark.parametrize("area", [-5, 0, 1, 60, None])
def test_areas_of_the_records_do_not_count(tmp_path, area):
    gt = np.zeros((8, 8), np.int64)
    gt[:, :4] = 5
    pred = np.zeros_like(gt)
    pred[:, 1:6] = 9
    segments = [dict(id=5, category_id=1, iscrowd=0, area=32)], [dict(id=9, category_id=1)]
    right = {1: Counts(1, 0, 0, 24 / 32)}
    assert pq_statistics(gt, pred, *segments) == right
    assert_same(right, theirs(tmp_path, [(gt, pred, *segments)]))
    segments[0][0]["area"] = area
    if area is None:
        del segments[0][0]["area"]
    assert pq_statistics(gt, pred, *segments) == right
    if area == 1:
        # panopticapi believes the JSON: why this differs from it.
        assert theirs(tmp_path, [(gt, pred, *segments)])[1].iou > 2


def one_row(*runs):
    return np.concatenate([np.full(length, ident) for ident, length in runs])[None]


@pytest.mark.parametrize(
    ("gt", "pred", "crowd", "expected"),
    [
        # IoU of 0.5 is no match.
        ([(1, 10), (2, 10)], [(0, 5), (1, 5), (0, 10)], [], (0, 1, 2)),
        ([(1, 9), (2, 11)], [(0, 4), (1, 5), (0, 11)], [], (1, 0, 1)),
        # Half on void is a false positive, more is not.
        ([(1, 10), (0, 10)], [(0, 9), (7, 2), (0, 9)], [], (0, 1, 1)),
        ([(1, 10), (0, 10)], [(0, 9), (7, 3), (0, 8)], [], (0, 0, 1)),
        # The same on a crowd, which itself is never missed and never matched.
        ([(1, 10), (3, 10)], [(0, 9), (7, 2), (0, 9)], [3], (0, 1, 1)),
        ([(1, 10), (3, 10)], [(0, 9), (7, 3), (0, 8)], [3], (0, 0, 1)),
        ([(1, 10), (3, 10)], [(0, 10), (7, 10)], [3], (0, 0, 1)),
        # Void and crowd together.
        ([(1, 10), (3, 5), (0, 5)], [(0, 8), (7, 2), (0, 4), (7, 2), (0, 4)], [3], (0, 1, 1)),
        (
            [(1, 10), (3, 5), (0, 5)],
            [(0, 9), (7, 1), (7, 1), (0, 3), (7, 1), (0, 5)],
            [3],
            (0, 0, 1),
        ),
        # Of two crowds only the last counts.
        ([(3, 10), (4, 10)], [(7, 10), (0, 10)], [3, 4], (0, 1, 0)),
        ([(3, 10), (4, 10)], [(0, 10), (7, 10)], [3, 4], (0, 0, 0)),
    ],
)
def test_rules_one_by_one(tmp_path, gt, pred, crowd, expected):
    gt, pred = one_row(*gt), one_row(*pred)
    gt_segments = [
        dict(id=ident, category_id=1, iscrowd=int(ident in crowd), area=int((gt == ident).sum()))
        for ident in np.unique(gt[gt > 0]).tolist()
    ]
    pred_segments = [dict(id=ident, category_id=1) for ident in np.unique(pred[pred > 0]).tolist()]
    ours = pq_statistics(gt, pred, gt_segments, pred_segments)
    assert ours.get(1, Counts(0, 0, 0, 0.0))[:3] == expected
    assert_same(ours, theirs(tmp_path, [(gt, pred, gt_segments, pred_segments)]))


def test_nothing_on_either_side():
    void = np.zeros((4, 5), np.int32)
    some = np.full((4, 5), 6)
    record = [dict(id=6, category_id=3)]
    assert pq_statistics(void, void, [], []) == {}
    assert pq_statistics(void, some, [], record) == {}
    assert pq_statistics(some, void, record, []) == {3: Counts(0, 0, 1, 0.0)}
    # Not listed is not void.
    assert pq_statistics(some, some, [], record) == {3: Counts(0, 1, 0, 0.0)}
    assert pq_statistics(void[:0], some[:0], [], []) == {}


def test_overlaps_of_any_integer_type():
    rng = np.random.default_rng(1)
    maps = rng.integers(0, 4, (2, 30, 20))
    expected = None
    for dtype in (np.uint8, np.int32, np.uint32, np.int64):
        gt, pred = maps.astype(dtype)
        found = overlap_areas(gt, pred.T.copy().T)
        columns = (found.gt_ids, found.pred_ids, found.areas)
        triples = list(zip(*(column.tolist() for column in columns), strict=True))
        expected = expected or triples
        assert triples == expected
    pairs, areas = np.unique(maps.reshape(2, -1), axis=1, return_counts=True)
    assert expected == [(*pair, area) for pair, area in zip(pairs.T.tolist(), areas, strict=True)]


def test_maps_that_cannot_be_compared():
    with pytest.raises(ValueError, match=r"\(4, 5\) and \(5, 4\)"):
        overlap_areas(np.zeros((4, 5), int), np.zeros((5, 4), int))
    for wrong in (-1, 2**31):
        with pytest.raises(ValueError, match=rf"\[0, 2\^31\), found .*{wrong}"):
            overlap_areas(np.zeros((1, 2), int), np.array([[1, wrong]]))


def test_contradictions_between_map_and_records():
    ids, areas = np.array([0, 3, 3, 4]), np.array([9, 1, 2, 4])
    pixels = Overlaps(ids, ids[::-1], areas).gt_areas
    listed = Segments(np.array([3, 5]), np.array([1, 1]), None, np.array([4, 1]))
    faults = list(contradictions(pixels, listed))
    assert len(faults) == 3
    assert faults[0].startswith("segment 4 (4 pixels) is in the PNG but not in")
    assert faults[1].startswith("segment 3 has the area 4 in `segments_info` but 3 pixels")
    assert faults[2].startswith("segment 5 is in `segments_info` but has no pixel")
    agreed = Segments(np.array([3, 4]), np.array([1, 1]), None, np.array([3, 4]))
    assert not list(contradictions(pixels, agreed))
    assert not list(contradictions(pixels, agreed._replace(areas=None)))


def test_predictions_that_contradict_themselves():
    gt, pred = np.ones((2, 3), int), np.full((2, 3), 5)
    segments = [dict(id=1, category_id=1)]
    with pytest.raises(AnnotationError, match=r"(?s)predictions: .*segment 5 .*segment 6 "):
        pq_statistics(gt, pred, segments, [dict(id=6, category_id=1)])


@pytest.mark.parametrize("crowd", ["0", "1", None, 2])
def test_crowds_that_are_no_flag(crowd):
    ids = np.ones((2, 3), int)
    gt, pred = [dict(id=1, category_id=1, iscrowd=crowd)], [dict(id=1, category_id=1)]
    with pytest.raises(AnnotationError, match=f"truth: segment 1: iscrowd {crowd!r} must be"):
        pq_statistics(ids, ids, gt, pred)
    # What a prediction calls a crowd is never asked.
    assert pq_statistics(ids, ids, pred, gt) == {1: Counts(1, 0, 0, 1.0)}
    gt[0]["iscrowd"] = np.True_
    assert pq_statistics(ids, ids, gt, pred) == {}


def test_figures_are_panopticapis():
    rng = np.random.default_rng(2)
    stat, counts = PQStat(), {}
    for category in (1, 2, 8):
        tp, fp, fn = rng.integers(0, 9, 3).tolist()
        counts[category] = Counts(tp, fp, fn, tp * 0.83)
        own = stat[category]
        own.tp, own.fp, own.fn, own.iou = counts[category]
    counts[3] = Counts(0, 2, 1, 0.0)
    stat[3].fp, stat[3].fn = 2, 1
    things = [ident for ident, category in CATEGORIES.items() if category["isthing"]]
    stuff = [ident for ident in CATEGORIES if ident not in things]
    figures = panoptic_figures(counts, things, stuff)
    for suffix, isthing in (("", None), ("_th", True), ("_st", False)):
        expected, classes = stat.pq_average(CATEGORIES, isthing)
        for name in NAMES:
            assert figures[name + suffix] == pytest.approx(100 * expected[name.lower()], rel=1e-12)
        if isthing is None:
            assert category_quality(counts.get(200)) is None
            for ident, own in counts.items():
                expected = {name: classes[ident][name.lower()] for name in NAMES}
                assert category_quality(own) == pytest.approx(expected, rel=1e-12)


def test_groups_that_do_not_occur():
    figures = panoptic_figures({1: Counts(1, 0, 0, 0.75)}, [1], [2])
    assert figures == {
        **dict(PQ=75, SQ=75, RQ=100, PQ_th=75, SQ_th=75, RQ_th=100),
        **dict(PQ_st=-1, SQ_st=-1, RQ_st=-1),
    }


def test_real_pictures_with_perturbed_predictions(tmp_path, shared_data):
    root = shared_data / "panoptic_sample"
    content = json.loads((root / "panoptic_examples.json").read_text())
    cases = []
    for seed in range(3):
        for ann in content["annotations"]:
            path = root / "panoptic_examples" / ann["file_name"]
            gt = read_id_map(str(path), "sample").astype(np.int64)
            pred, segments = perturb(gt, ann["segments_info"], seed)
            cases.append((gt, pred, ann["segments_info"], segments))
    categories = {category["id"]: category for category in content["categories"]}
    stat = theirs(tmp_path, cases, categories)
    total = add_counts(pq_statistics(*case) for case in cases)
    assert_same(total, stat)
    expected, _ = stat.pq_average(categories, None)
    things = [ident for ident, category in categories.items() if category["isthing"]]
    stuff = [ident for ident in categories if ident not in things]
    figures = panoptic_figures(total, things, stuff)
    assert 20 < figures["PQ"] < 90
    assert figures["PQ"] == pytest.approx(100 * expected["pq"], rel=1e-12)


def test_a_segment_without_pixels_is_missed():
    """What ``strict=False`` leads to."""
    overlaps = overlap_areas(np.array([[1, 0]]), np.array([[3, 0]]))
    truth = Segments(np.array([1, 2]), np.array([4, 4]), None, np.array([1, 5]))
    found = Segments(np.array([3]), np.array([4]))
    assert count_segments(overlaps, truth, found) == {4: Counts(1, 0, 1, 1.0)}
