import pytest
import torch

from mmdet_plus.convert.files import convert_file
from mmdet_plus.engine.errors import UserError
from mmseg_plus.bpr.checkpoints import without_prefix

NAMES = ("backbone.conv1.weight", "backbone.conv_mask.weight", "decode_head.conv_seg.bias")


@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_prefixes_are_taken_off(prefix):
    tensors = {prefix + name: torch.tensor(float(i)) for i, name in enumerate(NAMES)}
    converted = without_prefix(tensors)
    assert list(converted) == list(NAMES)
    assert [float(value) for value in converted.values()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "not a refinement network"),
        (("backbone.conv1.weight",), "first is backbone.conv1.weight"),
        (("module." + NAMES[1], NAMES[0]), "backbone.conv1.weight is no part"),
        ((*NAMES, "auxiliary_head.x"), "auxiliary_head.x is no part"),
        ((NAMES[1], "module." + NAMES[1]), "found 2"),
    ],
)
def test_other_checkpoints_are_refused(names, message):
    with pytest.raises(ValueError, match=message):
        without_prefix({name: torch.zeros(1) for name in names})


def test_files_are_converted(tmp_path):
    torch.save({"module." + name: torch.zeros(1) for name in NAMES}, tmp_path / "a.pth")
    assert convert_file("bpr", tmp_path / "a.pth", tmp_path / "b.pth") == 3
    assert list(torch.load(tmp_path / "b.pth")["state_dict"]) == list(NAMES)
    torch.save({"x": torch.zeros(1)}, tmp_path / "c.pth")
    with pytest.raises(UserError, match=r"c\.pth: not a refinement network"):
        convert_file("bpr", tmp_path / "c.pth", tmp_path / "d.pth")
    assert not (tmp_path / "d.pth").exists()
