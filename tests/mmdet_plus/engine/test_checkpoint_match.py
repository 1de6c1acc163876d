import pytest
import torch
from torch import nn

from mmdet_plus.engine import checkpoint_match


def model(width=4, extra=False):
    layers = dict(conv=nn.Conv2d(3, width, 1), bn=nn.BatchNorm2d(width))
    if extra:
        layers["head"] = nn.Linear(width, 2)
    return nn.ModuleDict(layers)


class Renamed(nn.Module):
    """Knows its weight by an older name and an older shape too."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if prefix + "old" in state_dict:
            state_dict[prefix + "weight"] = state_dict.pop(prefix + "old").reshape(4)
        super()._load_from_state_dict(state_dict, prefix, *args)


def test_own_weights_match():
    weights = model().state_dict()
    assert checkpoint_match.compare_weights(model(), dict(state_dict=weights)) == ([], [], [])
    assert checkpoint_match.compare_weights(model(), weights) == ([], [], [])
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    assert checkpoint_match.compare_weights(model(), dict(state_dict=wrapped)) == ([], [], [])


def test_old_counter_may_be_missing():
    weights = model().state_dict()
    del weights["bn.num_batches_tracked"]
    assert checkpoint_match.compare_weights(model(), weights) == ([], [], [])


def test_models_own_conversions_count():
    weights = dict(old=torch.ones(2, 2))
    assert checkpoint_match.compare_weights(Renamed(), weights) == ([], [], [])


def test_differences_are_found():
    missing, unexpected, reshaped = checkpoint_match.compare_weights(
        model(extra=True), model().state_dict()
    )
    assert sorted(missing) == ["head.bias", "head.weight"] and not unexpected and not reshaped
    missing, unexpected, reshaped = checkpoint_match.compare_weights(
        model(), model(extra=True).state_dict()
    )
    assert sorted(unexpected) == ["head.bias", "head.weight"] and not missing and not reshaped
    _, _, reshaped = checkpoint_match.compare_weights(model(4), model(8).state_dict())
    assert "conv.weight (8, 3, 1, 1) instead of (4, 3, 1, 1)" in reshaped


def test_message_tells_counts_names_and_origin():
    records = dict(
        experiment_name="mask-rcnn_r50_20260102_030405",
        cfg="x = 1\nmodel = dict(\n    backbone=dict(type='ResNet'),\n    type='MaskRCNN')\n",
    )
    names = dict(missing=[f"w{i}" for i in range(9)], unexpected=[])
    text = checkpoint_match.describe_mismatch("a.pth", dict(meta=records), "c.py", "Other", names)
    assert text.startswith("a.pth: these weights are not of c.py (Other): 9 missing (w0, w1")
    assert "w8" not in text and "unexpected" not in text and "\n" not in text
    assert "trained as mask-rcnn_r50 (MaskRCNN)" in text


@pytest.mark.parametrize("text", ["", "model = dict(", "model = 3", "model = build(kind)"])
def test_records_without_a_model_are_no_error(text):
    assert checkpoint_match.training_of(dict(meta=dict(cfg=text))) == ""
    assert checkpoint_match.training_of({}) == ""


def test_class_names():
    saved = dict(meta=dict(dataset_meta=dict(classes=("cat", "dog"))))
    assert checkpoint_match.compare_classes(saved, dict(classes=["cat", "dog"])) == ""
    assert checkpoint_match.compare_classes({}, dict(classes=["cat"])) == ""
    other = checkpoint_match.compare_classes(saved, dict(classes=("cat", "cow")))
    assert "label 1 is 'dog' there and 'cow' here" in other
    fewer = checkpoint_match.compare_classes(saved, dict(classes=("cat",)))
    assert "2 classes against 1" in fewer
    old = dict(meta=dict(CLASSES=("cat", "cow")))
    assert "label 1" in checkpoint_match.compare_classes(old, dict(classes=("cat", "dog")))
