"""Comparisons of configs over seeds, with a training that only writes its log."""

import json
import textwrap

import pytest

from mmdet_plus.engine.comparison import compare, markdown_table, read_scalars, summarise
from mmdet_plus.engine.errors import UserError

TRAIN = """
    import json, pathlib, sys
    work_dir = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1])
    seed = int(next(a for a in sys.argv if a.startswith("randomness.seed=")).split("=")[1])
    (work_dir / "calls").open("a").write("x")
    if (work_dir.parent / "fail").exists() and seed == 1:
        sys.exit("no luck")
    log = work_dir / "20260101_000000" / "vis_data"
    log.mkdir(parents=True, exist_ok=True)
    better = 0.25 if "better" in sys.argv[1] else 0.0
    lines = [
        {"loss": 2.0, "iter": 1, "step": 1},
        {"loss": 1.0, "iter": 2, "step": 2},
        {"coco/segm_mAP": 0.5 + seed / 10 + better, "coco/x": -1.0, "data_time": 0.1, "step": 2},
    ]
    if "silent" in sys.argv[1]:
        lines = lines[:2]
    (log / "scalars.json").write_text("\\n".join(json.dumps(line) for line in lines))
"""


@pytest.fixture
def scene(tmp_path):
    """Two configs and the training script."""
    for name in ("base", "better", "silent"):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(TRAIN))
    work_dirs = tmp_path / "work"
    work_dirs.mkdir()

    def run(*names, seeds=(0, 1)):
        lines = []
        summary = compare(
            [str(tmp_path / f"{name}.py") for name in names],
            seeds,
            str(tmp_path / "out"),
            script,
            work_dirs=str(work_dirs),
            jobs=2,
            say=lines.append,
        )
        return summary, lines

    run.root = tmp_path
    return run


def test_records_and_summary(scene):
    summary, _ = scene("base", "better")
    assert summary["base"]["coco/segm_mAP"]["mean"] == pytest.approx(0.55)
    assert summary["base"]["coco/segm_mAP"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert summary["better"]["coco/segm_mAP"]["values"] == {"0": 0.75, "1": 0.85}
    record = json.loads((scene.root / "out" / "better_seed1.json").read_text())
    assert record["seed"] == 1 and record["iterations"] == 2
    assert record["metrics"] == {"coco/segm_mAP": 0.85, "coco/x": -1.0}
    assert [entry["loss"] for entry in record["training"]] == [2.0, 1.0]
    assert "--cfg-options randomness.seed=1" in record["command"]
    assert not list((scene.root / "out").glob("*.part"))
    table = (scene.root / "out" / "summary.md").read_text()
    assert "| better | 0.800 ± 0.071 (+0.250) |" in table and "x" not in table.splitlines()[0]


def test_a_failed_run_is_named_and_finished_ones_are_kept(scene):
    (scene.root / "work" / "fail").touch()
    with pytest.raises(UserError, match=r"base seed 1 ended with code 1: .*train\.log"):
        scene("base")
    assert (scene.root / "out" / "base_seed0.json").exists()
    (scene.root / "work" / "fail").unlink()
    _, lines = scene("base")
    assert "1 of 2 runs have their record" in lines[0]
    assert (scene.root / "work" / "base_seed0" / "calls").read_text() == "x"
    assert (scene.root / "work" / "base_seed1" / "calls").read_text() == "xx"


def test_a_training_without_validation_is_an_error(scene):
    with pytest.raises(UserError, match="val_interval"):
        scene("silent")


def test_configs_of_one_name_are_refused(scene):
    (scene.root / "other").mkdir()
    (scene.root / "other" / "base.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="cannot be told apart"):
        scene("base", "other/base")


def test_parts_of_a_resumed_run_are_one_log(tmp_path):
    parts = {
        "20260101_000000": [
            {"loss": 3.0, "iter": 1, "step": 1},
            {"loss": 9.0, "iter": 2, "step": 2},
        ],
        "20260102_000000": [{"loss": 2.0, "iter": 2, "step": 2}, {"m/x": 1.0, "step": 2}],
    }
    for name, lines in parts.items():
        folder = tmp_path / name / "vis_data"
        folder.mkdir(parents=True)
        text = "\n".join(json.dumps(line) for line in lines)
        (folder / "scalars.json").write_text(text + '\n{"loss": 1.')
    training, validation = read_scalars(tmp_path)
    assert [entry["loss"] for entry in training] == [3.0, 2.0]
    assert validation == [{"m/x": 1.0, "step": 2}]


def test_one_seed_has_no_spread():
    summary = summarise([dict(config="a", seed=4, metrics={"coco/bbox_mAP": 0.3})])
    assert summary["a"]["coco/bbox_mAP"] == {"values": {"4": 0.3}, "mean": 0.3, "std": 0.0}
    assert "| a | 0.300 |" in markdown_table(summary, ["a"], ["coco/bbox_mAP"])
