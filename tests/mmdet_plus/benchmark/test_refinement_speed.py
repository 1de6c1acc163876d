"""Steps of refinement beside the authors' way: both do the same, and the record says what."""

import sys

import numpy as np
import pytest
import torch

from mmdet_plus.benchmark import refinement_speed as speed
from mmseg_plus.bpr import BoundaryRefiner
from mmseg_plus.bpr.refiner import DEFAULT_CONFIG, PARTS, load_refiner


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(speed, "_SIZE", (160, 320))
    monkeypatch.setattr(speed, "_BATCH", 2)


@pytest.fixture(scope="module")
def networks():
    plain = load_refiner(DEFAULT_CONFIG, fold=False).to(memory_format=torch.contiguous_format)
    return BoundaryRefiner(caution=0.0), plain


def test_both_ways_refine_the_same_masks(networks, tmp_path):
    refiner, plain = networks
    image, masks = speed.scene(2)
    # There is something to refine: instances that are seen, and masks that miss them by a bit.
    image[masks.any(axis=0)] = 255 - image[masks.any(axis=0)] // 4
    masks = np.roll(masks, 3, axis=2)
    rows = speed.time_steps(refiner, plain, image, masks, repeats=1, folder=tmp_path)
    assert [row["step"] for row in rows] == ["files", *PARTS, "all"]
    assert all(row["seconds"] > 0 and row["authors_seconds"] > 0 for row in rows)
    # All is measured by itself, and contains what lies between the steps.
    assert 0.7 < sum(row["share"] for row in rows[:-1]) <= 1.001 and rows[-1]["share"] == 1
    written = len(list(tmp_path.glob("*_mask.png")))
    assert written == len(list(tmp_path.glob("*_image.png"))) > 2
    # They keep other patches of those that overlap; the refined masks are nearly the same.
    assert abs(written - refiner.num_patches) <= 0.3 * written
    _, theirs = speed.refine_by_files(plain, tmp_path / "image.png", masks, tmp_path, 4)
    ours = refiner.refine(image, masks)
    assert theirs.shape == masks.shape and (ours != masks).any()
    assert (theirs.numpy() != ours).sum() < 0.5 * (theirs.numpy() != masks).sum()


def test_all_ways_of_the_network_give_the_same(networks, monkeypatch):
    refiner, plain = networks
    calls = {}

    def record(ways, repeats):
        calls.update(ways)
        return {way: dict(median=0.5, seconds=[0.5] * repeats) for way in ways}

    monkeypatch.setattr(speed, "time_in_turn", record)
    rows = speed.network_speed(refiner, plain, repeats=2, compiled=False)
    assert len(rows) == len(calls) == 4 and all(row["patches_per_second"] == 4 for row in rows)
    with torch.inference_mode():
        first, *others = [call() for call in calls.values()]
    for other in others[:-1]:
        torch.testing.assert_close(other, first, rtol=0, atol=1e-4)
    torch.testing.assert_close(others[-1].float(), first, rtol=0, atol=0.1)


def test_an_error_of_the_compiler_is_told(networks, monkeypatch):
    def broken(function):
        def fail(*args):
            raise RuntimeError("no compiler\nat all")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    rows = speed.network_speed(*networks, repeats=1)
    assert len(rows) == 5 and rows[-1]["way"] == "torch.compile"
    assert rows[-1]["error"].startswith("RuntimeError('no compiler")


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
def test_memory_is_that_of_many_instances(monkeypatch):
    # Here, not in a process of its own, which would not know of the small image.
    found = speed._refine_many(DEFAULT_CONFIG, 3)
    assert found["instances"] == 3 and found["patches"] > 3
    assert found["peak_mb"] >= found["before_mb"] > 100
    assert found["masks_mb"] == pytest.approx(3 * 160 * 320 / 2**20, abs=0.1)


def test_tables():
    record = dict(
        steps=[
            dict(step="network", seconds=0.5, authors_seconds=1, times_faster=2.0, share=0.97),
        ],
        network=[
            dict(way="channels-last", patches_per_second=99.6),
            dict(way="torch.compile", error="no compiler"),
        ],
        peak_memory=dict(instances=100, patches=2000, before_mb=1024, peak_mb=1536, masks_mb=204.8),
    )
    table = speed.markdown(record)
    assert "| network | 500.0 | 97.0 % | 1000.0 | 2.0 |" in table
    assert "| channels-last | 100 |" in table and "| torch.compile | no compiler |" in table
    assert "1.50 GiB at its peak, 1.00 GiB of which are held before (0.20 GiB" in table
    assert "GiB" not in speed.markdown({**record, "peak_memory": None})


def test_scene_is_the_same_every_time():
    image, masks = speed.scene(2)
    again, _ = speed.scene(2)
    assert image.shape == (160, 320, 3) and masks.shape == (2, 160, 320)
    assert masks.any(axis=(1, 2)).all() and np.array_equal(image, again) and image.std() > 10
