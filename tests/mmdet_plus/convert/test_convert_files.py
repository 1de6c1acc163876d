"""Checkpoint files converted, by the function and by the command."""

import copy
from functools import partial

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.runner import load_checkpoint

from mmdet_plus.convert import mask_rcnn_to_mr_rcnn
from mmdet_plus.convert.files import convert_file
from mmdet_plus.engine.errors import UserError


def build(repo_root, name):
    register_all_modules()
    cfg = Config.fromfile(repo_root / f"configs/shapes/{name}_r18_shapes.py")
    torch.manual_seed(len(name))
    return MODELS.build(copy.deepcopy(cfg.model))


@pytest.fixture(scope="module")
def mask_rcnn(repo_root):
    return build(repo_root, "mask-rcnn")


@pytest.fixture
def source(mask_rcnn, tmp_path):
    path = tmp_path / "mask_rcnn.pth"
    meta = dict(CLASSES=("a", "b"), iter=9, cfg="work_dir = '/home/somebody'")
    torch.save(dict(state_dict=mask_rcnn.state_dict(), meta=meta, optimizer={}), path)
    return path


def test_a_converted_file_is_the_whole_model(mask_rcnn, source, repo_root, tmp_path):
    target = tmp_path / "new" / "mr_rcnn.pth"
    number = convert_file("mask-rcnn", source, target)
    written = torch.load(target)
    assert written["meta"] == dict(CLASSES=("a", "b"), iter=9) and written.keys() == {
        "meta",
        "state_dict",
    }
    expected = mask_rcnn_to_mr_rcnn(mask_rcnn.state_dict())
    assert number == len(expected) == len(written["state_dict"])
    model = build(repo_root, "mr-rcnn")
    load_checkpoint(model, str(target), map_location="cpu", strict=True)
    for name, value in model.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_a_bare_state_dict_is_converted_as_well(mask_rcnn, tmp_path):
    torch.save(mask_rcnn.state_dict(), tmp_path / "bare.pth")
    convert_file("mask-rcnn", tmp_path / "bare.pth", tmp_path / "out.pth")
    assert torch.load(tmp_path / "out.pth")["meta"] == {}


def test_what_cannot_be_converted(source, tmp_path):
    target = tmp_path / "out.pth"
    convert_file("mask-rcnn", source, tmp_path / "mr.pth")
    torch.save(dict(epoch=1), tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    torch.save(dict(state_dict={"backbone.weight": torch.zeros(1)}), tmp_path / "part.pth")
    for name, message in (
        ("mr.pth", "none of a refining module"),
        ("other.pth", "it has no 'state_dict', nor is it one"),
        ("list.pth", "it holds a list"),
        ("part.pth", "found backbone.weight"),
        ("absent.pth", "can not be found"),
    ):
        with pytest.raises(UserError, match=f"{name}: .*{message}"):
            convert_file("mask-rcnn", tmp_path / name, target)
    assert not target.exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        convert_file("mask-rcnn", source, tmp_path / "file" / "out.pth")


def test_the_command(run_tool, source, tmp_path):
    target, again = tmp_path / "mr.pth", tmp_path / "again.pth"
    convert = partial(run_tool, "convert_checkpoint.py")
    code, out, _ = convert("mask-rcnn", source, target)
    assert code == 0 and out == f"{target}: {len(torch.load(target)['state_dict'])} tensors\n"
    code, _, error = convert("mask-rcnn", target, again)
    assert code == 2
    assert error.startswith(f"error: {target}: not a plain Mask R-CNN") and error.count("\n") == 1
    assert not again.exists()
    code, _, error = convert("faster-rcnn", source, again)
    assert code == 2 and "invalid choice: 'faster-rcnn'" in error
    code, out, _ = convert("--help")
    assert code == 0 and "mmdet's Mask R-CNN to MR R-CNN" in " ".join(out.split())
