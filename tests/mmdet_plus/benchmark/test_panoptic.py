"""Perturbed predictions, and the record of panoptic evaluation's speed."""

import json

import numpy as np
import pytest
from panopticapi.evaluation import PQStat

from mmdet_plus.benchmark import panoptic
from mmdet_plus.benchmark.panoptic import markdown, panoptic_speed, perturb
from mmdet_plus.datasets import make_shapes
from mmdet_plus.evaluation import pq_statistics
from mmdet_plus.evaluation.panoptic_quality import Counts
from mmplus_ops import has_compiled_ops


def grid(size=192, cell=24):
    ids = np.arange(1, (size // cell) ** 2 + 1).reshape(size // cell, -1)
    ids = ids.repeat(cell, 0).repeat(cell, 1) * 1000
    ids[:cell] = 0
    segments = [dict(id=i, category_id=i // 1000 % 5) for i in np.unique(ids).tolist() if i]
    return ids, segments


def test_perturbed_predictions_err_in_all_ways():
    gt, segments = grid()
    pred, found = perturb(gt, segments, seed=1)
    again, same = perturb(gt, segments, seed=1)
    np.testing.assert_array_equal(pred, again)
    assert found == same
    assert {record["id"] for record in found} == set(np.unique(pred[pred > 0]).tolist())
    assert pred.max() < 2**24 and (pred == 0).any()
    # The right segments are found, others are missed and invented.
    counts = np.array([own[:3] for own in pq_statistics(gt, pred, segments, found).values()])
    tp, fp, fn = counts.sum(0).tolist()
    assert tp > 20 and fn > 10 and fp > 10
    assert (pred != perturb(gt, segments, seed=2)[0]).any()


def test_record_of_drawn_and_given_data(tmp_path):
    root = make_shapes(tmp_path, num_train=1, num_val=2, image_size=(96, 64), progress=False)
    real = str(root / "annotations/panoptic_val.json"), str(root / "panoptic_val")
    record = panoptic_speed(images=3, size=(64, 80), repeats=2, real=real)
    rows = record["rows"]
    assert [(row["data"], row["images"]) for row in rows] == [
        *[("Shapes, 64x80", 3)] * 3,
        *[("panoptic_val", 2)] * 3,
    ]
    for row in rows:
        assert row["times_faster"] == pytest.approx(
            row["baseline_cpu_seconds"] / row["cpu_seconds"], rel=0.05, abs=0.01
        )
        assert len(row["rounds"]["ours"]) == len(row["rounds"]["theirs"]) == 2
    assert record["threads"] == 1 and str(tmp_path) not in json.dumps(record)
    table = markdown(record)
    assert table.count("\n") == 8 and "| panoptic_val, 2 images | PNGs of predictions |" in table


def test_the_plain_ops_are_measured_as_well(tmp_path, monkeypatch):
    root = make_shapes(tmp_path, num_train=1, num_val=1, image_size=(96, 64), progress=False)
    files = root / "annotations/panoptic_val.json", root / "panoptic_val", tmp_path / "maps"
    compiled = []

    def count(maps):
        compiled.append(has_compiled_ops())
        return {}

    monkeypatch.setattr(panoptic, "count_ours", count)
    for case, _ in panoptic._cases(*files):
        case.ours()
    assert compiled == [has_compiled_ops(), False]


def test_the_page_quotes_the_record(repo_root):
    record = json.loads((repo_root / "docs/results/panoptic/metric_speed.json").read_text())
    page = (repo_root / "docs/data.md").read_text()
    assert markdown(record) in page and record["command"] in page
    for row in record["rows"]:
        # Where this changes, the page's words change with it.
        assert row["times_faster"] > (1 if "without" in row["name"] else 5), row["name"]
    assert record["environment"]["threads"] == record["threads"] == 1


def test_other_counts_than_the_baselines_are_no_record():
    stat = PQStat()
    stat[4].tp, stat[4].iou = 1, 0.75
    stat[5].tp = 0
    panoptic._require_same({4: Counts(1, 0, 0, 0.75)}, stat)
    for wrong in ({4: Counts(1, 1, 0, 0.75)}, {4: Counts(1, 0, 0, 0.76)}, {}):
        with pytest.raises(RuntimeError, match="the baseline counts"):
            panoptic._require_same(wrong, stat)
