"""Times taken in turn, and what the records say."""

import sys
import time

import pytest
import torch

from mmdet_plus.benchmark import ops
from mmdet_plus.benchmark.pipeline import shapes_speed
from mmdet_plus.benchmark.timing import environment, time_in_turn
from mmplus_ops import has_compiled_ops


def test_calls_take_turns_and_warm_up_does_not_count():
    order = []
    calls = {"slow": lambda: order.append("slow") or time.sleep(0.02), "fast": lambda: None}
    times = time_in_turn(calls | {"also": lambda: order.append("also")}, repeats=3, warm_up=2)
    assert order == ["slow", "also"] * 5
    assert [len(times[name]["seconds"]) for name in ("slow", "fast", "also")] == [3, 3, 3]
    assert times["slow"]["fastest"] >= 0.02 > times["fast"]["median"]
    assert times["slow"]["median"] == pytest.approx(sorted(times["slow"]["seconds"])[1], abs=1e-6)


def test_environment_names_what_was_measured_on():
    found = environment()
    assert found["cores"] >= 1 and found["threads"] >= 1 and found["processor"]
    assert found["versions"]["torch"]


def test_speed_of_shapes_counts_what_was_drawn():
    rows = shapes_speed(images=4, size=(64, 64))["shapes"]
    assert rows[0]["processes"] == 1 and all(row["images"] == 4 for row in rows)
    for row in rows:
        # Both figures are rounded.
        assert 4 / (row["seconds"] + 0.005) - 0.1 <= row["images_per_second"]
        assert row["images_per_second"] <= 4 / max(1e-9, row["seconds"] - 0.005) + 0.1


def test_each_case_of_the_ops_does_the_same_as_its_baseline():
    torch.manual_seed(0)
    for case in ops.cases("cpu"):
        if case.name.startswith(("blend_bases", "mask_inter", "roi_flatten")):
            ours, theirs = case.ours(), case.theirs()
            ours, theirs = (x if isinstance(x, tuple) else (x,) for x in (ours, theirs))
            for a, b in zip(ours, theirs, strict=True):
                torch.testing.assert_close(a.double(), b.double(), rtol=1e-3, atol=1e-3)
        if case.name.startswith("pair_areas"):
            (pairs, areas), (keys, counts) = case.ours(), case.theirs()
            assert len(areas) > 60 and areas.tolist() == counts.tolist()
            assert (pairs[:, 0] * 256**3 + pairs[:, 1]).tolist() == keys.tolist()


def test_measured_rows_and_tables():
    case = ops.Case("op", "base", lambda: time.sleep(0.01), lambda: time.sleep(0.03))
    row = ops.measure(case, repeats=2, threads=1, device="cpu")
    assert 2 < row["times_faster"] < 3.5 and len(row["rounds"]["ours"]) == 2
    growth = [{"operator": "op: one", "seconds": {"1": 0.001, "4": 0.004, "16": 0.016, "64": 1}}]
    table = ops.markdown({"rows": [row], "growth": growth})
    assert (
        "| op | 1 |" in table and "| op: one | 1.00 ms | 4.00 ms | 16.00 ms | 1000.00 ms |" in table
    )


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_memory_of_blending_is_that_of_the_call():
    memory = ops.blending_memory()
    # Five steps hold several tensors of 500 x 4 x 56 x 56 floats, 25 MB each.
    assert memory["unfused_mb"] > 75
    assert memory["ours_mb"] > 0
    if has_compiled_ops():
        assert memory["share"] < 0.25
