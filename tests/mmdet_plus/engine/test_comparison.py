"""Comparisons of configs over seeds, with a training that only writes its log."""

import io
import json
import textwrap

import pytest

from mmdet_plus.engine.comparison import compare, config_digest, markdown_table, summarise
from mmdet_plus.engine.errors import UserError
from mmseg_plus.common.progress import ProgressLine

TRAIN = """
    import json, pathlib, sys
    work_dir = pathlib.Path(sys.argv[sys.argv.index("--work-dir") + 1])
    seed = int(next(a for a in sys.argv if a.startswith("randomness.seed=")).split("=")[1])
    options = sys.argv[sys.argv.index("--cfg-options") + 1 :]
    bonus = sum(float(a.split("=")[1]) for a in options if a.startswith("bonus="))
    (work_dir / "calls").open("a").write("x")
    if (work_dir.parent / "fail").exists() and seed == 1:
        sys.exit("no luck")
    log = work_dir / "20260101_000000" / "vis_data"
    log.mkdir(parents=True, exist_ok=True)
    better = 0.25 if "better" in sys.argv[1] else 0.0
    lines = [
        {"loss": 2.0, "iter": 1, "step": 1},
        {"loss": 1.0, "iter": 2, "step": 2},
        {"coco/segm_mAP": 0.5 + seed / 10 + better + bonus, "coco/x": -1.0, "mIoU": 1.0,
         "data_time": 0.1, "step": 2},
    ]
    # As train.py, which goes on from what is there and repeats no finished training.
    if (log / "scalars.json").exists() and "--resume" in sys.argv:
        sys.exit()
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

    def run(*names, seeds=(0, 1), out="out", jobs=2, options=()):
        shown = io.StringIO()
        summary = compare(
            [str(tmp_path / f"{name}.py") for name in names],
            seeds,
            str(tmp_path / out),
            script,
            work_dirs=str(work_dirs),
            jobs=jobs,
            options=options,
            line=ProgressLine(shown),
        )
        return summary, shown.getvalue()

    run.root = tmp_path
    return run


def test_records_and_summary(scene):
    summary, _ = scene("base", "better")
    assert summary["base"]["coco/segm_mAP"]["mean"] == pytest.approx(0.55)
    assert summary["base"]["coco/segm_mAP"]["std"] == pytest.approx(0.1 / 2**0.5)
    assert summary["better"]["coco/segm_mAP"]["values"] == {"0": 0.75, "1": 0.85}
    record = json.loads((scene.root / "out" / "better_seed1.json").read_text())
    assert record["seed"] == 1 and record["iterations"] == 2
    assert record["metrics"] == {"coco/segm_mAP": 0.85, "mIoU": 1.0, "coco/x": -1.0}
    assert [entry["loss"] for entry in record["training"]] == [2.0, 1.0]
    assert "--cfg-options randomness.seed=1" in record["command"]
    assert not list((scene.root / "out").glob("*.part"))
    table = (scene.root / "out" / "summary.md").read_text()
    assert "| better | 0.800 ± 0.071 (+0.250) |" in table and "x" not in table.splitlines()[0]


def test_a_failed_run_is_named_and_finished_ones_are_kept(scene):
    (scene.root / "work" / "fail").touch()
    with pytest.raises(UserError, match=r"base seed 1 ended with code 1; its log is .*log\.txt"):
        scene("base", jobs=1)
    assert (scene.root / "out" / "base_seed0.json").exists()
    (scene.root / "work" / "fail").unlink()
    _, said = scene("base", jobs=1)
    assert said.startswith("1 of 2 runs have their record")
    calls = {path.parent.name[:10]: path.read_text() for path in scene.root.glob("work/*/calls")}
    assert calls == {"base_seed0": "x", "base_seed1": "xx"}


def test_other_settings_are_another_run(scene):
    scene("base")
    summary, _ = scene("base", out="other", options=["bonus=0.2"])
    assert summary["base"]["coco/segm_mAP"]["values"] == {"0": 0.7, "1": pytest.approx(0.8)}
    with pytest.raises(UserError, match=r"base_seed0\.json: made with .* choose another --out"):
        scene("base", options=["bonus=0.2"])
    (scene.root / "base.py").write_text("x = 2\n")
    with pytest.raises(UserError, match=r"base_seed0\.json: made with"):
        scene("base")
    (scene.root / "out" / "base_seed0.json").write_text("[]")
    with pytest.raises(UserError, match=r"base_seed0\.json: not a record"):
        scene("base")


def test_a_digest_does_not_tell_where_the_clone_lies(tmp_path):
    for clone in ("here", "there"):
        folder = tmp_path / clone / "configs" / "x"
        folder.mkdir(parents=True)
        (folder / "base.py").write_text("a = 1\n")
        text = "_base_ = './base.py'\nload_from = '{{ fileDirname }}/w.pth'\n"
        (folder / "c.py").write_text(text)
    here, there = (tmp_path / clone / "configs" / "x" / "c.py" for clone in ("here", "there"))
    assert config_digest(here) == config_digest(there) != config_digest(here, ["a=2"])
    assert config_digest(here, ["a=2", "b=3"]) == config_digest(here, ["b=3", "a=2"])
    (there.parent / "base.py").write_text("a = 2\n")
    assert config_digest(here) != config_digest(there)


def test_a_run_whose_record_was_not_written_is_not_repeated(scene):
    first, _ = scene("base", seeds=(0,))
    (scene.root / "out" / "base_seed0.json").unlink()
    assert scene("base", seeds=(0,))[0] == first
    assert [path.read_text() for path in scene.root.glob("work/*/calls")] == ["x"]


@pytest.mark.parametrize(
    ("choice", "message"), [(dict(jobs=0), "--jobs: at least 1"), (dict(seeds=(0, 0)), "--seeds")]
)
def test_choices_without_meaning(scene, choice, message):
    with pytest.raises(UserError, match=message):
        scene("base", **choice)
    assert not list((scene.root / "work").iterdir())


def test_a_training_without_validation_is_an_error(scene):
    with pytest.raises(UserError, match="val_interval"):
        scene("silent")


def test_configs_of_one_name_are_refused(scene):
    (scene.root / "other").mkdir()
    (scene.root / "other" / "base.py").write_text("x = 1\n")
    with pytest.raises(UserError, match="cannot be told apart"):
        scene("base", "other/base")


def test_one_seed_has_no_spread():
    summary = summarise([dict(config="a", seed=4, metrics={"coco/bbox_mAP": 0.3})])
    assert summary["a"]["coco/bbox_mAP"] == {"values": {"4": 0.3}, "mean": 0.3, "std": 0.0}
    assert "| a | 0.300 |" in markdown_table(summary, ["a"], ["coco/bbox_mAP"])


def test_a_digest_is_of_settings_not_of_what_is_imported(tmp_path):
    config = tmp_path / "c.py"
    config.write_text("a = 1\ncustom_imports = dict(imports=['json'])\n")
    digest = config_digest(config)
    config.write_text("a = 1\ncustom_imports = dict(imports=['json', 'csv'])\n")
    assert config_digest(config) == digest
    config.write_text("a = 2\ncustom_imports = dict(imports=['json'])\n")
    assert config_digest(config) != digest
