import time

import pytest
import tiny_zoo

from mmdet_plus.engine import prepare_train_cfg
from mmdet_plus.engine.training import build_runner


def test_runners_built_within_one_second_keep_their_scopes(tmp_path, monkeypatch):
    # mmengine keys its scopes and loggers by the experiment's name and the second.
    data = tiny_zoo.make_data(tmp_path / "data")
    now = time.time()
    monkeypatch.setattr("mmengine.runner.runner.time.time", lambda: now)
    for number, (kind, visualizer) in enumerate(
        [("fcn", "SegLocalVisualizer"), ("mask-rcnn", "DetLocalVisualizer")]
    ):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        config = tiny_zoo.write_config(folder / "c.py", data, kind)
        cfg = prepare_train_cfg(str(config), work_dir=str(tmp_path / f"w{number}"))
        runner = build_runner(cfg)
        assert type(runner.visualizer).__name__ == visualizer


@pytest.mark.parametrize("given", [None, "mine"])
def test_every_runner_of_a_process_has_a_name_of_its_own(tmp_path, given):
    data = tiny_zoo.make_data(tmp_path / "data")
    config = tiny_zoo.write_config(tmp_path / "c.py", data, "mask-rcnn")
    names = []
    for number in range(2):
        cfg = prepare_train_cfg(str(config), work_dir=str(tmp_path / f"w{number}"))
        if given:
            cfg.experiment_name = given
        names.append(build_runner(cfg).experiment_name.rsplit("_", 2)[0])
    assert (names[0] == names[1]) == (given is not None)
    assert given in (None, names[0])
