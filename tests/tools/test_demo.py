"""`make demo` in small: every step, a few iterations."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

DEMO = Path(__file__).resolve().parents[2] / "tools" / "demo.py"
SMALL = ["--iterations", "2", "--num-train", "4", "--num-val", "2", "--images", "1"]


def run(*arguments, cwd):
    command = [sys.executable, str(DEMO), *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, timeout=1200, text=True, capture_output=True)
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
    assert results["settings"] == dict(iterations=2, seed=0, num_train=4, num_val=2)
    rows = ["Mask R-CNN", "Mask R-CNN + BPR", "MR R-CNN", "MR R-CNN + BPR"]
    assert list(results["metrics"]) == rows
    assert len(results["stages"]) == 6
    assert results["cpu_seconds"] >= sum(stage["cpu_seconds"] for stage in results["stages"]) - 1
    assert results["continued"] is False
    assert results["command"].endswith(" ".join(SMALL))
    for name in results["pictures"]:
        assert (root / name).stat().st_size > 1000
        # Ground truth, both models, and one of them refined: 256 pixels, enlarged twice.
        with Image.open(root / name) as picture:
            assert picture.width == 8 + 4 * (2 * 256 + 8)
    assert "boundary AP" in out and all(f"\n{row}  " in out for row in rows)
    assert os.path.join("here", "pictures", "overview.png") in out


def test_both_go_on_from_trained_weights(demo):
    root, out = demo
    for name in ("mask-rcnn", "mr-rcnn"):
        log = (root / "runs" / name / "log.txt").read_text()
        assert re.search(r"Load checkpoint from .*mask-rcnn_r18-w16_10k_shapes\.pth", log)
        assert "do not match" not in log and "unexpected key" not in log
    # Two iterations at warm-up's small rate leave what the weights can do.
    results = json.loads((root / "results.json").read_text())
    assert results["metrics"]["Mask R-CNN"]["bbox_mAP"] > 0.2


def test_boundaries_are_refined_and_measured_again(demo):
    root, _ = demo
    metrics = json.loads((root / "results.json").read_text())["metrics"]
    for name, folder in (("Mask R-CNN", "mask-rcnn"), ("MR R-CNN", "mr-rcnn")):
        test = root / "runs" / folder / "test"
        coarse, refined = (
            json.loads((path / "coco.segm.json").read_text()) for path in (test, test / "refined")
        )
        assert [item["score"] for item in refined] == [item["score"] for item in coarse]
        assert metrics[f"{name} + BPR"]["boundary_mAP"] > metrics[name]["boundary_mAP"] + 0.02
        assert metrics[f"{name} + BPR"]["AF"] > metrics[name]["AF"]
        # The test has measured the coarse ones itself.
        (log,) = test.glob("2*/2*.json")
        for figure in ("bbox_mAP", "segm_mAP", "segm_mAP_75"):
            measured = json.loads(log.read_text())[f"coco/{figure}"]
            assert metrics[name][figure] == pytest.approx(measured, abs=6e-4)


def test_a_second_start_only_shows_the_results(demo):
    root, _ = demo
    stages = {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")}
    code, out, err = run("--root", root, *SMALL, cwd=root)
    assert code == 0, err
    assert {path: path.stat().st_mtime_ns for path in root.rglob("stage.json")} == stages
    assert "MR R-CNN + BPR" in out and "since it was started again" in out


def test_an_interrupted_refinement_goes_on(demo, tmp_path):
    root, _ = demo
    copy = tmp_path / "copy"
    shutil.copytree(root, copy)
    # One model's has not begun, as in a demo of an older version; the other's was killed between
    # its output and its record.
    shutil.rmtree(copy / "runs" / "mask-rcnn" / "test" / "refined")
    (copy / "runs" / "mr-rcnn" / "test" / "refined" / "stage.json").unlink()
    (copy / "results.json").unlink()
    code, out, err = run("--root", copy, *SMALL, cwd=tmp_path)
    assert code == 0, err
    assert len(re.findall("done in", out)) == len(re.findall("boundaries refined: done", out)) == 2
    before, after = (json.loads((path / "results.json").read_text()) for path in (root, copy))
    assert after["metrics"] == before["metrics"] and after["continued"]


def test_other_settings_need_another_folder(demo):
    root, _ = demo
    code, _, err = run("--root", root, *SMALL, "--seed", "1", cwd=root)
    assert code == 2
    assert err.startswith("error: ") and "choose another --root" in err


def test_a_stage_that_fails_names_its_log(demo, tmp_path):
    root, _ = demo
    # A folder in which a training was done and lost its weights.
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", str(root), str(broken)], check=True)
    training = broken / "runs" / "mr-rcnn"
    (training / "test" / "stage.json").unlink()
    (training / "iter_2.pth").unlink()
    code, out, err = run("--root", broken, *SMALL, cwd=tmp_path)
    assert code == 2, out
    assert str(training / "test" / "log.txt") in err and "there is no such checkpoint file" in err


@pytest.mark.slow
def test_the_whole_demo_finds_new_shapes(tmp_path):
    code, out, err = run("--root", tmp_path / "whole", cwd=tmp_path)
    assert code == 0, out + err
    results = json.loads((tmp_path / "whole" / "results.json").read_text())
    for name, metrics in results["metrics"].items():
        assert metrics["bbox_mAP"] > 0.35 and metrics["segm_mAP"] > 0.2, name
    for name in ("Mask R-CNN", "MR R-CNN"):
        before, after = results["metrics"][name], results["metrics"][f"{name} + BPR"]
        assert after["boundary_mAP"] > before["boundary_mAP"] + 0.03, name
