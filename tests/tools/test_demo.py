"""`make demo` in small: every step, a few iterations."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo.py"
SMALL = ["--iterations", "6", "--num-train", "4", "--num-val", "2", "--images", "1"]


def run(*arguments, cwd):
    command = [sys.executable, str(DEMO), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, timeout=400, text=True, capture_output=True)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    code, out, err = run("--root", "here", *SMALL, cwd=folder)
    assert code == 0, out + err
    return folder / "here", out


def test_it_writes_figures_and_pictures(demo):
    root, out = demo
    results = json.loads((root / "results.json").read_text())
    assert results["settings"] == dict(iterations=6, seed=0, num_train=4, num_val=2)
    assert results["iterations"] == dict(common=4, each=2)
    assert set(results["metrics"]) == {"train", "val"}
    assert set(results["metrics"]["val"]) == {"Mask R-CNN", "MR R-CNN"}
    assert len(results["stages"]) == 7
    assert results["cpu_seconds"] >= sum(stage["cpu_seconds"] for stage in results["stages"]) - 1
    assert results["continued"] is False
    assert results["command"].endswith(" ".join(SMALL))
    for name in results["pictures"]:
        assert (root / name).stat().st_size > 1000
    assert "box AP" in out and "change" in out
    assert os.path.join("here", "pictures", "val.png") in out
    assert "does not show which of the two is better" in out


def test_both_go_on_from_the_common_weights(demo):
    root, _ = demo
    for name in ("mask-rcnn", "mr-rcnn"):
        log = (root / "runs" / name / "log.txt").read_text()
        assert f"Load checkpoint from {root / 'runs' / 'common' / 'iter_4.pth'}" in log


def test_a_second_start_only_shows_the_results(demo):
    root, _ = demo
    stages = {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")}
    code, out, err = run("--root", root, *SMALL, cwd=root)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")} == stages
    assert "change" in out and "since it was started again" in out


def test_other_settings_need_another_folder(demo):
    root, _ = demo
    code, _, err = run("--root", root, *SMALL, "--seed", "1", cwd=root)
    assert code == 2
    assert err.startswith("error: ") and "choose another --root" in err


def test_a_training_that_fails_names_its_log(demo, tmp_path):
    root, _ = demo
    # A folder in which the trainings were done and lost their weights.
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(root), str(broken)], check=True)
    for name in ("stage.json", "last_checkpoint"):
        (broken / "runs" / "mr-rcnn" / name).unlink()
    (broken / "runs" / "common" / "iter_4.pth").unlink()
    code, out, err = run("--root", broken, *SMALL, cwd=tmp_path)
    assert code == 2, out
    log = broken / "runs" / "mr-rcnn" / "log.txt"
    assert str(log) in err and "there is no such checkpoint file" in err
