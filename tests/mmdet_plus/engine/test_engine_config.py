import argparse

import pytest
from mmengine.config import Config

from mmdet_plus.engine import config as engine_config
from mmdet_plus.engine.errors import UserError, run_command
from mmseg_plus.common import config as zoo_config

TEXT = """
model = dict(type='M', roi_head=dict(mask_head=dict(num_classes=3, loss=None)))
pipeline = [dict(type='A'), dict(type='B', scale=(1, 2))]
train_cfg = dict(max_iters=6)
default_scope = 'mmdet'
"""


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    folder = tmp_path / "repo" / "configs" / "family"
    folder.mkdir(parents=True)
    (folder / "some-model_r50.py").write_text(TEXT)
    monkeypatch.setattr(zoo_config, "config_folders", lambda: [tmp_path / "repo" / "configs"])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return folder / "some-model_r50.py"


@pytest.mark.parametrize(
    "name", ["configs/family/some-model_r50.py", "some-model_r50", "some-model_r50.py"]
)
def test_config_is_found_from_any_folder(zoo, name):
    assert zoo_config.resolve_config(name) == zoo
    assert zoo_config.resolve_config(str(zoo)) == zoo


def test_missing_config_suggests_names(zoo):
    with pytest.raises(UserError, match="some-model_r5.py: .* did you mean some-model_r50"):
        zoo_config.resolve_config("some-model_r5.py")
    with pytest.raises(UserError, match="zzz: there is no such config file; check the path"):
        zoo_config.resolve_config("zzz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict(\nx = = 3", "broken.py"),
        ("_base_ = './absent.py'", "absent.py"),
        ("custom_imports = dict(imports=['no_such_module'])", "no_such_module"),
        ("a = 1 / 0", "division by zero"),
    ],
)
def test_unreadable_config_is_named(tmp_path, text, message):
    (tmp_path / "broken.py").write_text(text)
    with pytest.raises(UserError, match=message) as info:
        engine_config.load_config(str(tmp_path / "broken.py"))
    assert "broken.py" in str(info.value) and "\n" not in str(info.value)


def test_options_change_the_config(zoo):
    options = {
        "model.roi_head.mask_head.num_classes": 5,
        "model.roi_head.mask_head.loss.type": "L",
        "model.roi_head.mask_head.dropout": 0.5,
        "pipeline.1.scale": (3, 4),
        "randomness.seed": 1,
    }
    cfg = engine_config.load_config(str(zoo), options)
    head = cfg.model.roi_head.mask_head
    assert (head.num_classes, head.loss.type, head.dropout) == (5, "L", 0.5)
    assert cfg.pipeline[1].scale == (3, 4) and cfg.pipeline[1].type == "B"
    assert cfg.randomness.seed == 1


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("modle.type", "did you mean model"),
        ("model.roi_head.mask_head.num_clases", "did you mean num_classes"),
        ("train_config.max_iters", "has no key train_config"),
        ("something", "has no key something"),
        ("pipeline.2.type", "is a list of 2"),
        ("pipeline.scale", "is a list of 2"),
        ("train_cfg.max_iters.x", "is 6, which has no keys"),
    ],
)
def test_options_that_do_not_fit(zoo, key, message):
    with pytest.raises(UserError, match=message):
        engine_config.load_config(str(zoo), {key: 1})


@pytest.mark.parametrize(
    ("pair", "message"), [("novalue", "key=value"), ("=3", "key=value"), ("a=[(1,2", "value of a")]
)
def test_malformed_options(capsys, pair, message):
    parser = argparse.ArgumentParser()
    engine_config.add_common_arguments(parser)
    with pytest.raises(SystemExit) as info:
        parser.parse_args(["--cfg-options", pair])
    assert info.value.code == 2
    assert message in capsys.readouterr().err


def test_work_dir(zoo):
    cfg = engine_config.load_config(str(zoo))
    engine_config.set_work_dir(cfg, None)
    assert cfg.work_dir == "work_dirs/some-model_r50"
    engine_config.set_work_dir(cfg, "given")
    assert cfg.work_dir == "given"


def test_added_import_is_kept_once():
    cfg = Config(dict(custom_imports=dict(imports="a", allow_failed_imports=True)))
    for _ in range(2):
        engine_config.add_import(cfg, "b")
    assert cfg.custom_imports == dict(imports=["a", "b"], allow_failed_imports=True)


def test_mistakes_are_one_line_and_bugs_are_not_hidden(capsys, monkeypatch):
    def mistake():
        raise UserError("file x: mend it")

    monkeypatch.delenv("RANK", raising=False)
    assert run_command(lambda: None) == 0
    assert run_command(mistake) == 2
    assert capsys.readouterr().err == "error: file x: mend it\n"
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)
    monkeypatch.setenv("MMPLUS_DEBUG", "1")
    with pytest.raises(UserError):
        run_command(mistake)
