"""The refiner that ships: found by itself, small, and of use on pictures it has not seen."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mmdet_plus.datasets import make_shapes
from mmdet_plus.evaluation import boundary_f
from mmseg_plus.bpr import BoundaryRefiner
from mmseg_plus.bpr.coarse_masks import degrade
from mmseg_plus.bpr.refiner import DEFAULT_CONFIG
from mmseg_plus.bpr.sources import CocoGroundTruth
from mmseg_plus.common.config import resolve_config


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes")
    make_shapes(root, num_train=0, num_val=3, seed=777, progress=False)
    return root


def test_it_brings_boundaries_nearer_to_the_truth(shapes):
    refiner = BoundaryRefiner()
    source = CocoGroundTruth(shapes / "annotations" / "instances_val.json", shapes / "val")
    rng, before, after = np.random.default_rng(0), [], []
    for item in source:
        image = item.read_image()
        truth = item.masks[item.masks.sum(axis=(1, 2)) > 400]
        coarse = np.array([degrade(mask, rng) for mask in truth])
        refined = refiner.refine(image, coarse)
        for masks, scores in ((coarse, before), (refined, after)):
            scores += [boundary_f(m, t) for m, t in zip(masks, truth, strict=True)]
    assert len(before) > 10
    # A quarter of what is missing to a perfect boundary, at least.
    assert 1 - np.mean(after) < 0.75 * (1 - np.mean(before))


def test_it_is_a_few_megabytes():
    weights = Path(resolve_config(DEFAULT_CONFIG)).with_suffix(".pth")
    assert 0.5e6 < weights.stat().st_size < 8e6


def test_three_lines_in_a_program_of_its_own(tmp_path):
    code = (
        "import numpy as np\n"
        "from mmseg_plus.bpr import BoundaryRefiner\n"
        "refiner = BoundaryRefiner()\n"
        "image, masks = np.zeros((90, 80, 3), np.uint8), np.zeros((2, 90, 80), bool)\n"
        "image[20:60, 30:70] = 200; masks[:, 22:58, 30:66] = True\n"
        "refined = refiner.refine(image, masks)\n"
        "print(refined.shape, refined.dtype, int(refined[0].sum()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=True,
    )
    # The maintained forks say more before.
    shape, area = done.stdout.splitlines()[-1].rsplit(" ", 1)
    assert shape == "(2, 90, 80) bool"
    # The square is 1600 pixels, the coarse mask 1296.
    assert abs(int(area) - 1600) < 200
    assert done.stderr == ""
