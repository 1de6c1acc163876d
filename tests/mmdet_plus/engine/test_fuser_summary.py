"""Fusers over seeds."""

import pytest

from mmdet_plus.engine import UserError
from mmdet_plus.engine.fuser_summary import over_seeds, table_over_seeds


def record(plain, soft, pairs=None):
    figures = {name: dict(metrics=dict(PQ=value)) for name, value in (("a", plain), ("b", soft))}
    found = dict(fusers=figures)
    if pairs:
        found["overlapping_pairs"] = dict(
            zip(("number", "right_by_network", "right_by_score"), pairs, strict=True)
        )
    return found


def test_means_spreads_and_differences():
    table = over_seeds([record(40.0, 42.0), record(42.0, 45.0)], ["PQ"])
    assert table.splitlines()[2:] == ["| a | 41.000 ± 1.414 |", "| b | 43.500 ± 2.121 (+2.500) |"]
    assert "± " not in over_seeds([record(1.0, 2.0)], ["PQ"])


def test_rows_of_several_models():
    rows = {"before": [dict(PQ=1.0), dict(PQ=3.0)], "after": [dict(PQ=4.0), dict(PQ=5.0)]}
    table = table_over_seeds(rows, ["PQ"])
    assert table.splitlines()[2:] == [
        "| before | 2.000 ± 1.414 |",
        "| after | 4.500 ± 0.707 (+2.500) |",
    ]


def test_pairs_of_all_seeds_are_counted():
    table = over_seeds([record(1.0, 2.0, (10, 9, 5)), record(1.0, 2.0, (30, 20, 15))], ["PQ"])
    assert "Of 40 overlapping pairs" in table and "72.5 % by the network, in 50.0 %" in table
    assert "overlapping" not in over_seeds([record(1.0, 2.0, (0, 0, 0))], ["PQ"])


def test_other_fusers_do_not_go_into_one_table():
    with pytest.raises(UserError, match="same fusers"):
        over_seeds([record(1.0, 2.0), dict(fusers=dict(a=dict(metrics=dict(PQ=1.0))))], ["PQ"])
    with pytest.raises(UserError, match="same fusers"):
        over_seeds([])
