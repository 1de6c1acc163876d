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


def both_loaders(root, evaluator, kind="CocoDataset", **dataset):
    leaf = dict(type=kind, data_root=str(root), ann_file="ann.json", **dataset)
    return Config(
        dict(
            train_dataloader=dict(dataset=dict(type="RepeatDataset", times=2, dataset=leaf)),
            val_dataloader=dict(dataset=leaf),
            val_evaluator=evaluator,
        )
    )


BOTH = ("train_dataloader", "val_dataloader")


def test_evaluators_that_read_what_the_data_set_does_pass(root, monkeypatch):
    own = dict(type="CocoMetric", ann_file=str(root / "ann.json"))
    check_data(both_loaders(root, own), BOTH)
    check_data(both_loaders(root, dict(type="Evaluator", metrics=[own])), BOTH)
    check_data(both_loaders(root, [dict(own, ann_file=None), dict(type="IoUMetric")]), BOTH)
    # The same file by another name.
    (root / "link.json").symlink_to(root / "ann.json")
    check_data(both_loaders(root, dict(own, ann_file=str(root / "link.json"))), BOTH)
    monkeypatch.chdir(root)
    check_data(both_loaders(root, dict(own, ann_file="./ann.json")), BOTH)


@pytest.mark.parametrize(
    ("wrap", "key"),
    [
        (lambda metric: metric, "val_evaluator"),
        (lambda metric: [dict(type="IoUMetric"), metric], "val_evaluator.1"),
        (lambda metric: dict(type="Evaluator", metrics=[metric]), "val_evaluator.metrics.0"),
        (lambda metric: dict(type="Evaluator", metrics=metric), "val_evaluator.metrics"),
    ],
)
def test_files_of_evaluators_are_looked_for(root, wrap, key):
    absent = wrap(dict(type="CocoMetric", ann_file=str(root / "no.json")))
    message = rf"no\.json: there is no such file \({key}\.ann_file of .*{key}\.ann_file=FILE"
    with pytest.raises(UserError, match=message):
        check_data(both_loaders(root, absent), BOTH)
    panoptic = dict(type="CocoPanopticMetric", ann_file=None, seg_prefix=str(root / "no"))
    message = rf"no: there is no such folder \({key}\.seg_prefix of .*{key}\.seg_prefix=FOLDER"
    with pytest.raises(UserError, match=message):
        check_data(both_loaders(root, wrap(panoptic)), BOTH)
    # It is the validation's, and left alone where nothing is validated.
    check_data(both_loaders(root, absent), ("train_dataloader",))


def test_evaluator_of_other_ground_truth_is_refused(root):
    old = root.parent / "old.json"
    old.write_text("{}")
    metric = dict(type="CocoMetric", ann_file=str(old))
    message = rf"old\.json: val_evaluator\.ann_file .*val_evaluator\.ann_file={root / 'ann.json'}$"
    with pytest.raises(UserError, match=message):
        check_data(both_loaders(root, metric), BOTH)
    # Instances beside panoptic ground truth are two files.
    check_data(both_loaders(root, metric, kind="CocoPanopticDataset"), BOTH)
    # A file that is made of both parts' files is no part's.
    cfg = both_loaders(root, metric)
    leaf = cfg.val_dataloader.dataset
    cfg.val_dataloader.dataset = dict(type="ConcatDataset", datasets=[leaf, leaf])
    check_data(cfg, BOTH)


def test_hint_names_all_that_changes_with_the_root(root):
    metrics = [
        dict(type="CocoMetric", ann_file="nowhere/annotations/val.json"),
        dict(type="CocoPanopticMetric", ann_file=str(root / "ann.json"), seg_prefix="nowhere/seg"),
    ]
    with pytest.raises(UserError, match="nowhere: there is no such folder") as info:
        check_data(both_loaders("nowhere/", metrics), BOTH)
    assert str(info.value).endswith(
        "--cfg-options train_dataloader.dataset.dataset.data_root=DIR "
        "val_dataloader.dataset.data_root=DIR "
        "val_evaluator.0.ann_file=DIR/annotations/val.json val_evaluator.1.seg_prefix=DIR/seg"
    )


def test_files_behind_another_backend_are_not_looked_for():
    remote = dict(backend="petrel", path_mapping={"data/": "s3://bucket/"})
    metric = dict(type="CocoMetric", ann_file="nowhere/ann.json", backend_args=remote)
    check_data(both_loaders("nowhere/", metric, backend_args=remote), BOTH)
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        check_data(both_loaders("nowhere/", metric, backend_args=dict(backend="local")), BOTH)


def test_loaders_not_asked_for_are_left_alone(root):
    check_data(config(type="CocoDataset", data_root="nowhere"), ("test_dataloader",))
