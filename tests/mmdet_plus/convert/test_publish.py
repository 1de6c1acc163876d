"""Checkpoints made small to be given away."""

import hashlib
import pickle

import pytest
import torch
from mmengine.logging import HistoryBuffer
from mmengine.runner import load_checkpoint
from torch import nn

from mmdet_plus.convert.publish import publish, published
from mmdet_plus.engine.errors import UserError


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4))


@pytest.fixture
def checkpoint(model):
    model[1].running_var.fill_(1e-9)  # below what float16 can tell from zero
    return dict(
        state_dict=model.state_dict(),
        optimizer=dict(state={0: dict(exp_avg=torch.ones(100_000))}, param_groups=[]),
        message_hub=dict(log_scalars={"loss": HistoryBuffer([1.0], [1])}),
        meta=dict(
            cfg="work_dir = '/home/somebody'", iter=9, seed=3, dataset_meta=dict(classes=("a",))
        ),
    )


def test_only_weights_and_classes_stay(model, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "source.pth")
    digest = publish(tmp_path / "source.pth", tmp_path / "small.pth")
    content = (tmp_path / "small.pth").read_bytes()
    assert hashlib.sha256(content).hexdigest().startswith(digest) and len(digest) == 8
    assert b"somebody" not in content and len(content) < 20_000
    small = torch.load(tmp_path / "small.pth")
    assert small["meta"] == dict(iter=9, seed=3, dataset_meta=dict(classes=("a",)))
    for name, value in model.state_dict().items():
        assert torch.equal(small["state_dict"][name], value)


def test_half_leaves_statistics_and_biases_alone(model, checkpoint, tmp_path):
    torch.save(checkpoint, tmp_path / "source.pth")
    publish(tmp_path / "source.pth", tmp_path / "half.pth", half=True)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data.zero_()
    load_checkpoint(model, str(tmp_path / "half.pth"), map_location="cpu", strict=True)
    for name, value in model.state_dict().items():
        assert value.dtype == trained[name].dtype
        if name in ("0.weight", "2.weight"):
            torch.testing.assert_close(value, trained[name], rtol=1e-3, atol=1e-6)
            assert not torch.equal(value, trained[name])
        else:
            assert torch.equal(value, trained[name]), name


def test_nothing_is_shared_with_the_source(checkpoint):
    small = published(checkpoint)
    small["state_dict"]["0.weight"].zero_()
    assert checkpoint["state_dict"]["0.weight"].abs().sum() > 0


def test_what_cannot_be_published(checkpoint, tmp_path):
    checkpoint["state_dict"]["0.weight"][0, 0, 0, 0] = 1e6
    with pytest.raises(ValueError, match=r"0\.weight: values up to 1e\+06 do not fit float16"):
        published(checkpoint, half=True)
    torch.save(checkpoint, tmp_path / "large.pth")
    with pytest.raises(UserError, match=r"large\.pth: 0\.weight"):
        publish(tmp_path / "large.pth", tmp_path / "small.pth", half=True)
    torch.save({"epoch": 1}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"other\.pth: not a checkpoint of a training"):
        publish(tmp_path / "other.pth", tmp_path / "small.pth")
    with pytest.raises(UserError, match=r"none\.pth can not be found"):
        publish(tmp_path / "none.pth", tmp_path / "small.pth")
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(pickle.UnpicklingError, match=r"text\.pth: not loaded"):
        publish(tmp_path / "text.pth", tmp_path / "small.pth")
    assert not (tmp_path / "small.pth").exists()
