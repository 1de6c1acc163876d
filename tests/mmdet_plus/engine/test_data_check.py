import pytest
from mmengine.config import Config

from mmdet_plus.engine.data_check import check_data
from mmdet_plus.engine.errors import UserError


def config(**dataset):
    wrapped = dict(type="RepeatDataset", times=2, dataset=dataset)
    both = dict(type="ConcatDataset", datasets=[wrapped])
    return Config(dict(train_dataloader=dict(dataset=both)))


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "ann.json").write_text("{}")
    return tmp_path / "data"


def test_complete_data_pass(root):
    files = dict(ann_file="ann.json", data_prefix=dict(img="images"))
    check_data(config(type="CocoDataset", data_root=str(root), **files), ("train_dataloader",))
    check_data(config(type="CocoDataset", ann_file=str(root / "ann.json")), ("train_dataloader",))
    check_data(config(type="CocoDataset", data_root="s3://bucket/x"), ("train_dataloader",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data_root="nowhere/"), "nowhere: there is no such folder .*data_root"),
        (dict(ann_file="absent.json"), "absent.json: there is no such file .*ann_file"),
        (dict(data_prefix=dict(img="absent")), "absent: there is no such folder .*prefix.img"),
    ],
)
def test_missing_parts_are_named(root, change, message):
    dataset = dict(type="ShapesDataset", data_root=str(root), ann_file="ann.json")
    with pytest.raises(UserError, match=message) as info:
        check_data(config(**{**dataset, **change}), ("train_dataloader", "val_dataloader"))
    assert "python tools/make_shapes.py" in str(info.value)
    assert "train_dataloader.dataset.datasets.0.dataset" in str(info.value)


def test_loaders_not_asked_for_are_left_alone(root):
    check_data(config(type="CocoDataset", data_root="nowhere"), ("test_dataloader",))
