"""Predictions in pickles, harmless ones and others."""

import collections
import json
import os
import pickle
import types

import numpy as np
import pytest
import tiny_results
import torch
from mmdet.evaluation import DumpDetResults
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.structures import InstanceData
from tiny_results import CATEGORY_IDS, COUNTS, SIZES

from mmseg_plus.bpr.sources import MMDetResults
from mmseg_plus.bpr.sources_mmdet import load_predictions
from mmseg_plus.common.errors import UserError


@pytest.fixture
def masks(tmp_path):
    masks = tiny_results.make_images(tmp_path)
    tiny_results.write_mmdet(tmp_path, masks)
    return masks


def results(root, **kwargs):
    return MMDetResults(root / "coarse.pkl", root / "ann.json", root / "images", **kwargs)


def test_predictions_come_by_image(tmp_path, masks):
    source = results(tmp_path)
    assert len(source) == len(SIZES)
    for index, item in enumerate(source):
        count = COUNTS[index]
        assert source.count(index) == count
        assert item.image_id == source.image_id(index) == 100 + index
        assert item.image_path == str(tmp_path / "images" / f"{index:03d}.png")
        assert np.array_equal(item.masks, masks[index])
        assert item.labels.tolist() == [CATEGORY_IDS[n % 3] for n in range(count)]
        assert item.scores == pytest.approx(np.linspace(0.9, 0.3, count) if count > 1 else 0.9)
        assert list(item.records) == list(range(count))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[0].masks, source[0].masks)


def test_what_mmdet_dumps_can_be_read(tmp_path, masks):
    path = tmp_path / "dumped.pkl"
    metric = DumpDetResults(out_file_path=str(path))
    evaluator = Evaluator([metric])
    for index in (3, 2, 0):
        sample = DetDataSample(
            metainfo=dict(
                img_id=100 + index,
                img_path="elsewhere/x.png",
                ori_shape=SIZES[index],
                img_shape=(64, 64),
                # Newer and older versions write tuples, lists and arrays.
                scale_factor=np.array([1.5, 1.5, 1.5, 1.5], np.float32),
                flip=np.bool_(False),
            )
        )
        count = COUNTS[index]
        sample.pred_instances = InstanceData(
            bboxes=torch.rand(count, 4),
            labels=torch.arange(count) % 3,
            scores=torch.rand(count),
            masks=torch.from_numpy(masks[index]),
        )
        evaluator.process([sample], {})
    metric.compute_metrics(metric.results)
    source = MMDetResults(path, tmp_path / "ann.json", tmp_path / "images")
    assert [item.image_id for item in source] == [103, 102, 100]
    assert np.array_equal(source[0].masks, masks[3])
    assert source[1].masks.shape == (0, *SIZES[2])
    before, after = pickle.loads(path.read_bytes()), load_predictions(path)
    for old, new in zip(before, after, strict=True):
        assert old.keys() == new.keys()
        assert np.array_equal(old["scale_factor"], new["scale_factor"])
        for key in ("bboxes", "labels", "scores"):
            old_value, value = old["pred_instances"][key], new["pred_instances"][key]
            assert torch.equal(old_value, value) and old_value.dtype == value.dtype


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_pickles_of_other_protocols(tmp_path, masks, protocol):
    entries = tiny_results.predictions(masks)
    entries[0]["pred_instances"]["scores"] = np.array([0.5, 0.25, 0.125])
    entries[1]["pred_instances"]["scores"] = torch.tensor([[0.75, 0.5]]).t()[1]
    (tmp_path / "coarse.pkl").write_bytes(pickle.dumps(entries, protocol=protocol))
    source = results(tmp_path)
    assert source[0].scores.tolist() == [0.5, 0.25, 0.125]
    assert source[1].scores.tolist() == [0.5]


class Evil:
    """Runs something when it is unpickled."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


class Assembled(bytes):
    """Marks bytes that are a pickle by themselves."""


def storage_within(path):
    """A tensor whose memory is an evil pickle, which torch's own function would run."""
    inner = pickle.dumps(Evil(os.mkdir, str(path)), protocol=2)
    return Evil(torch.storage._load_from_bytes, inner)


def changed_function():
    """Names an allowed function and sets an attribute of it: protocol 2 by hand."""
    return Assembled(b"\x80\x02]c_codecs\nencode\n(N}X\x05\x00\x00\x00note1K\x05stba.")


@pytest.mark.parametrize(
    "make",
    [
        lambda path: Evil(os.mkdir, str(path)),
        lambda path: Evil(eval, f"__import__('os').mkdir({str(path)!r})"),
        lambda path: Evil(getattr, "text", "upper"),
        lambda path: Evil(np.load, str(path)),
        storage_within,
        lambda path: types.SimpleNamespace(a=1),
        lambda path: collections.Counter("aa"),
        lambda path: Evil(torch._utils._rebuild_tensor_v2, None, 0, (), (), False, {}),
        lambda path: DetDataSample(),
        lambda path: changed_function(),
    ],
)
def test_nothing_else_is_unpickled(tmp_path, masks, make):
    path = tmp_path / "made by the pickle"
    evil = make(path)
    content = evil
    if not isinstance(evil, Assembled):
        entries = tiny_results.predictions(masks)
        entries[0]["extra"] = evil
        content = pickle.dumps(entries, protocol=2)
    (tmp_path / "coarse.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"coarse\.pkl: (not loaded|not a pickle)"):
        results(tmp_path)
    assert not path.exists()


def test_a_tensor_does_not_reach_beyond_its_memory(tmp_path, masks):
    storage = torch.zeros(4)._typed_storage()
    entries = tiny_results.predictions(masks)
    for size, stride, offset in (((5,), (1,), 0), ((2,), (1,), 3), ((2,), (-1,), 1)):
        entries[0]["extra"] = Evil(
            torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, {}
        )
        (tmp_path / "coarse.pkl").write_bytes(pickle.dumps(entries, protocol=2))
        with pytest.raises(UserError, match="reaches beyond its memory"):
            results(tmp_path)


def test_damaged_and_other_files(tmp_path, masks):
    path = tmp_path / "coarse.pkl"
    whole = path.read_bytes()
    for size in (0, 1, 20, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"coarse\.pkl: not"):
            results(tmp_path)
    path.write_bytes(b"[{}]\n")
    with pytest.raises(UserError, match=r"coarse\.pkl: not"):
        results(tmp_path)
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UserError, match="holds a dict of something else"):
        results(tmp_path)
    path.unlink()
    with pytest.raises(UserError, match=r"coarse\.pkl: there is no such file"):
        results(tmp_path)


def change(root, place, update):
    entries = tiny_results.predictions(
        [
            tiny_results.make_masks(count, *size, seed=index)
            for index, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True))
        ]
    )
    update(entries[place])
    (root / "coarse.pkl").write_bytes(pickle.dumps(entries, protocol=2))


def predicted(**fields):
    return lambda entry: entry["pred_instances"].update(fields)


@pytest.mark.parametrize(
    ("update", "message"),
    [
        (lambda entry: entry.update(img_id=5), r"\(img_id 5\): .*has no such image"),
        (lambda entry: entry.update(img_id=100), r"\(img_id 100\): the image occurs twice"),
        (lambda entry: entry.pop("pred_instances"), "has no pred_instances"),
        (predicted(masks=torch.zeros(4, 48, 40)), "no list of masks as RLEs"),
        (predicted(scores=torch.zeros(3)), "scores are not one number for each of 4"),
        (predicted(labels=[0, 0, 0, 0]), "labels are not one number"),
        (predicted(labels=torch.zeros(4)), "labels are not whole numbers"),
        (predicted(labels=torch.tensor([0, 1, 2, 3])), "labels 0 to 3, but .* has 3 categories"),
        (predicted(labels=torch.tensor([0, 1, 2, -1])), "labels -1 to 2"),
        (predicted(scores=torch.tensor([0, 1, float("nan"), 0])), "not a finite number"),
        (predicted(bboxes=torch.zeros(4, 5)), "bboxes are not 4 numbers"),
        (lambda entry: entry.update(ori_shape=(9, 9)), r"ori_shape \(9, 9\) is not the \(48, 40\)"),
        (
            lambda entry: entry["pred_instances"]["masks"][2].update(counts=b"zz"),
            r"\(img_id 103\), mask 2: the counts of its RLE",
        ),
        (
            lambda entry: entry["pred_instances"]["masks"][2].update(size=[3, 3]),
            r"\(img_id 103\), mask 2: its RLE has size",
        ),
    ],
)
def test_a_bad_entry_is_named(tmp_path, masks, update, message):
    change(tmp_path, 3, update)
    with pytest.raises(UserError, match=r"coarse\.pkl: entry 3 .*" + message):
        results(tmp_path)


def refined_masks():
    new = np.zeros(SIZES[3], bool)
    new[4:10, 6:20] = True
    return {2: tiny_results.rle(new)["counts"], 0: tiny_results.rle(np.zeros_like(new))["counts"]}


def test_written_predictions_differ_in_the_changed_masks_alone(tmp_path, masks):
    source = results(tmp_path)
    counts = refined_masks()
    source.write(tmp_path / "out.pkl", lambda index: counts if index == 3 else {})
    before = tiny_results.predictions(masks)
    # Plain pickles, as they were.
    after = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert len(after) == len(before)
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        old, new = dict(old), dict(new)
        old_predicted, new_predicted = old.pop("pred_instances"), new.pop("pred_instances")
        assert old == new
        if index == 3:
            old_predicted["masks"][2]["counts"] = counts[2].encode()
            old_predicted["masks"][0]["counts"] = counts[0].encode()
            # The box of an empty mask stays.
            old_predicted["bboxes"][2] = torch.tensor([6.0, 4, 20, 10])
        assert old_predicted["masks"] == new_predicted["masks"]
        for key in ("bboxes", "labels", "scores"):
            assert torch.equal(old_predicted[key], new_predicted[key])
    # The source itself is as it was.
    assert np.array_equal(source[3].masks, masks[3])
    source.write(tmp_path / "same.pkl", lambda index: {})
    same = pickle.loads((tmp_path / "same.pkl").read_bytes())[3]["pred_instances"]
    assert (same["bboxes"] == 2).all()


def test_predictions_written_as_coco_results(tmp_path, masks):
    source = results(tmp_path)
    counts = refined_masks()
    source.write(tmp_path / "out.json", lambda index: counts if index == 3 else {})
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["image_id"] for record in records] == [
        100 + index for index, count in enumerate(COUNTS) for _ in range(count)
    ]
    first, changed = records[0], records[COUNTS[0] + COUNTS[1] + 2]
    assert first == dict(
        image_id=100,
        category_id=CATEGORY_IDS[0],
        score=pytest.approx(0.9),
        bbox=[2, 2, 0, 0],
        segmentation=tiny_results.rle(masks[0][0]),
    )
    assert changed["segmentation"]["counts"] == counts[2] and changed["bbox"] == [6, 4, 14, 6]
    (tmp_path / "coarse.pkl").write_bytes(pickle.dumps([]))
    results(tmp_path).write(tmp_path / "none.json", lambda index: {})
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_predictions_without_boxes(tmp_path, masks):
    change(tmp_path, 3, lambda entry: entry["pred_instances"].pop("bboxes"))
    source = results(tmp_path)
    for name in ("out.pkl", "out.json"):
        source.write(tmp_path / name, lambda index: refined_masks() if index == 3 else {})
    records = json.loads((tmp_path / "out.json").read_text())
    assert [("bbox" in record) for record in records if record["image_id"] == 103] == [False] * 4
