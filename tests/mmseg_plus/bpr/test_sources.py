"""Instances of COCO's files, and finding out the format of results."""

import json
import pickle
import tracemalloc

import numpy as np
import pytest
import tiny_results
from tiny_results import CATEGORY_IDS, COUNTS, SIZES

from mmseg_plus.bpr.sources import (
    CityscapesResults,
    CocoGroundTruth,
    CocoResults,
    MMDetResults,
    find_format,
    open_results,
)
from mmseg_plus.common.errors import UserError


@pytest.fixture
def root(tmp_path):
    tiny_results.write_coco(tmp_path)
    return tmp_path


@pytest.fixture
def masks():
    return [
        tiny_results.make_masks(count, *size, seed=index)
        for index, (size, count) in enumerate(zip(SIZES, COUNTS, strict=True))
    ]


def results(root, **kwargs):
    return CocoResults(root / "coarse.json", root / "ann.json", root / "images", **kwargs)


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_results_come_by_image(root, masks):
    source = results(root)
    records = json.loads((root / "coarse.json").read_text())
    assert len(source) == len(SIZES)
    for index, item in enumerate(source):
        own = [record for record in records if record["image_id"] == 100 + index]
        assert source.count(index) == len(own) == COUNTS[index]
        assert item.image_id == 100 + index
        assert item.image_path == str(root / "images" / f"{index:03d}.png")
        assert (item.height, item.width) == SIZES[index]
        assert item.masks.shape == (COUNTS[index], *SIZES[index]) and item.masks.dtype == bool
        assert [records[place] for place in item.records] == own
        assert item.labels.tolist() == [record["category_id"] for record in own]
        assert item.labels.dtype == np.int64
        assert item.scores.tolist() == [record["score"] for record in own]
        assert not item.crowd.any() and item.crowd.shape == (COUNTS[index],)
        for mask, record in zip(item.masks, own, strict=True):
            number = int(record["note"].split("/")[1])
            assert np.array_equal(mask, masks[index][number])
    with pytest.raises(IndexError):
        source[len(SIZES)]


def test_a_source_survives_pickling(root):
    again = pickle.loads(pickle.dumps(results(root)))
    assert [again.image_id(i) for i in range(len(again))] == [item.image_id for item in again]
    assert np.array_equal(again[3].masks, results(root)[3].masks)


def test_no_results_at_all(root):
    (root / "coarse.json").write_text("[]")
    source = results(root)
    assert [source.count(index) for index in range(len(source))] == [0] * len(SIZES)
    assert source[0].masks.shape == (0, *SIZES[0])
    source.write(root / "out.json", lambda index: {})
    assert json.loads((root / "out.json").read_text()) == []


def test_masks_of_other_kinds(root):
    polygon = [5.0, 5.0, 20.0, 6.0, 14.0, 20.0]
    plain = [0, 40, 40 * 55]

    def change(records):
        records[0].update(image_id=100, segmentation=[polygon])
        records[1].update(image_id=100, segmentation={"size": list(SIZES[0]), "counts": plain})

    edit(root / "coarse.json", change)
    item = results(root)[0]
    first, second = (item.masks[item.records.index(place)] for place in (0, 1))
    assert 80 < first.sum() < 180 and first[8, 12]
    assert second[:, 0].all() and second.sum() == 40


def bad_record(**fields):
    return lambda records: records[2].update(fields)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (bad_record(image_id=5), r"record 2 \(image_id 5\): unknown image_id 5; .*ann.json has no"),
        (bad_record(image_id=None), "record 2 .*unknown image_id None"),
        (bad_record(image_id=[1]), "record 2 .*unknown image_id"),
        (bad_record(category_id=4), "record 2 .*unknown category_id 4; .*ann.json has no"),
        (bad_record(score="high"), "record 2 .*score 'high' is not a finite number"),
        (bad_record(score=float("nan")), "record 2 .*score nan"),
        (lambda records: records[2].pop("score"), "record 2 .*score None"),
        (lambda records: records[2].pop("segmentation"), "record 2 .*has no segmentation"),
        (
            bad_record(segmentation={"size": [9, 9], "counts": "9"}),
            r"record 2 .*size \[9, 9\] but the image is",
        ),
        (
            lambda records: records[2]["segmentation"].update(counts="zzz"),
            "record 2 .*counts of its RLE do not add up",
        ),
        (lambda records: records.insert(2, 5), "record 2: is a int, not an object"),
    ],
)
def test_a_bad_record_is_named(root, change, message):
    edit(root / "coarse.json", change)
    with pytest.raises(UserError, match=r"coarse\.json: " + message):
        results(root)


def test_hidden_damage_is_named_when_it_is_met(root):
    # Its counts add up to the image's size.
    height, width = SIZES[0]
    text = tiny_results.coded(-2, height * width + 2)

    def change(records):
        records[2].update(image_id=100, segmentation={"size": [height, width], "counts": text})

    edit(root / "coarse.json", change)
    source = results(root)
    with pytest.raises(UserError, match=r"coarse.json: record 2 \(image_id 100\): the counts"):
        source[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[{", "not a JSON file"),
        ('{"images": [], "annotations": []}', "holds a dict, not a list.*looks like ground truth"),
        ("5", "holds a int, not a list"),
    ],
)
def test_a_file_that_is_no_list_of_results(root, text, message):
    (root / "coarse.json").write_text(text)
    with pytest.raises(UserError, match=message):
        results(root)


def test_missing_files_and_folders(root):
    with pytest.raises(UserError, match="absent.json: there is no such file of results"):
        CocoResults(root / "absent.json", root / "ann.json", root / "images")
    with pytest.raises(UserError, match="absent.json: there is no such annotation file"):
        CocoResults(root / "coarse.json", root / "absent.json", root / "images")
    with pytest.raises(UserError, match="absent: there is no such folder of images"):
        CocoResults(root / "coarse.json", root / "ann.json", root / "absent")
    # Of images that have results, and unless told otherwise.
    (root / "images" / "002.png").unlink()
    results(root)
    (root / "images" / "003.png").unlink()
    with pytest.raises(UserError, match=r"image 103: image file .*003\.png does not exist"):
        results(root)
    assert len(results(root, check_files=False)) == len(SIZES)


def test_an_image_must_not_leave_its_folder(root):
    edit(root / "ann.json", lambda content: content["images"][1].update(file_name="../x.png"))
    with pytest.raises(UserError, match="leaves the image folder"):
        results(root)


def test_written_results_differ_in_the_changed_masks_alone(root):
    source = results(root)
    before = json.loads((root / "coarse.json").read_text())
    item = source[3]
    new = np.zeros(SIZES[3], bool)
    new[4:10, 6:20] = True
    counts = {
        item.records[0]: tiny_results.rle(new)["counts"],
        item.records[1]: tiny_results.rle(np.zeros_like(new))["counts"],
    }
    source.write(root / "out.json", lambda index: counts if index == 3 else {})
    after = json.loads((root / "out.json").read_text())
    assert len(after) == len(before)
    for place, (old, record) in enumerate(zip(before, after, strict=True)):
        if place == item.records[0]:
            assert record == {
                **old,
                "segmentation": {"size": list(SIZES[3]), "counts": counts[place]},
                "bbox": [6, 4, 14, 6],
            }
        elif place == item.records[1]:
            assert not tiny_results.decode(record).any() and record["bbox"] == old["bbox"]
        else:
            assert record == old


def test_boxes_and_areas_are_written_where_the_record_had_them(root):
    def change(records):
        records[0].pop("bbox")
        records[0]["area"] = 5

    edit(root / "coarse.json", change)
    source = results(root)
    index = next(i for i in range(len(source)) if 0 in source[i].records)
    new = np.zeros(SIZES[index], bool)
    new[:3, :4] = True
    counts = {0: tiny_results.rle(new)["counts"]}
    source.write(root / "out.json", lambda i: counts if i == index else {})
    record = json.loads((root / "out.json").read_text())[0]
    assert "bbox" not in record and record["area"] == 12


def test_memory_does_not_follow_the_number_of_images(tmp_path):
    size = (200, 300)
    counts = {}
    for number in (5, 50):
        root = tmp_path / str(number)
        masks = tiny_results.make_images(root, [size] * number, [2] * number)
        tiny_results.write_coco(root, masks)
        source = results(root)
        tracemalloc.start()
        for item in source:
            assert item.masks.shape == (2, *size)
        counts[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert counts[50] < 1.5 * counts[5]


def ground_truth(root):
    """Add annotations with polygons, an RLE and a crowd."""
    height, width = SIZES[0]
    segmentations = [
        [[5.0, 5.0, 20.0, 6.0, 14.0, 20.0]],
        tiny_results.rle(np.eye(height, width, dtype=bool)),
        {"size": [height, width], "counts": [0, height, height * (width - 1)]},
    ]

    def change(content):
        content["annotations"] = [
            dict(
                id=10 + place,
                image_id=100,
                category_id=CATEGORY_IDS[place],
                segmentation=segmentation,
                bbox=[0, 0, 9, 9],
                area=9,
                iscrowd=int(place == 2),
            )
            for place, segmentation in enumerate(segmentations)
        ]

    edit(root / "ann.json", change)
    return root / "ann.json"


def test_ground_truth(root):
    source = CocoGroundTruth(ground_truth(root), root / "images")
    assert len(source) == len(SIZES) and source.count(0) == 3
    item = source[0]
    assert source.image_id(0) == item.image_id
    assert item.labels.tolist() == CATEGORY_IDS
    assert item.crowd.tolist() == [False, False, True]
    assert item.scores.tolist() == [1, 1, 1]
    assert item.masks[0, 8, 12] and not item.masks[0, 30, 30]
    assert np.array_equal(item.masks[1], np.eye(*SIZES[0], dtype=bool))
    assert item.masks[2, :, 0].all() and item.masks[2].sum() == SIZES[0][0]
    assert source[1].masks.shape == (0, *SIZES[1])
    assert len(pickle.loads(pickle.dumps(source))) == len(SIZES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("annotations"), "lacks `annotations`"),
        (lambda c: c["annotations"][1].update(image_id=9), "annotation 11 .*unknown image_id 9"),
        (
            lambda c: c["annotations"][1].update(segmentation=[]),
            r"annotation 11 \(record 1 of `annotations`\): has no segmentation",
        ),
    ],
)
def test_bad_ground_truth(root, change, message):
    edit(ground_truth(root), change)
    with pytest.raises(UserError, match=message):
        CocoGroundTruth(root / "ann.json", root / "images")


def test_the_format_is_found(tmp_path):
    masks = tiny_results.write_cityscapes(tmp_path)
    tiny_results.write_coco(tmp_path, masks)
    tiny_results.write_mmdet(tmp_path, masks)
    kinds = {"coarse.json": CocoResults, "coarse.pkl": MMDetResults, "coarse": CityscapesResults}
    for name, kind in kinds.items():
        source = open_results(tmp_path / name, tmp_path / "ann.json", tmp_path / "images")
        assert isinstance(source, kind)
    # Cityscapes results alone do without annotations.
    open_results(tmp_path / "coarse", None, tmp_path / "images")
    with pytest.raises(UserError, match=r"coarse\.json: these results need the annotation file"):
        open_results(tmp_path / "coarse.json", None, tmp_path / "images")
    (tmp_path / "coarse.json").rename(tmp_path / "coarse.txt")
    with pytest.raises(UserError, match=r"coarse\.txt: the format cannot be told"):
        find_format(tmp_path / "coarse.txt")
    source = open_results(
        tmp_path / "coarse.txt", tmp_path / "ann.json", tmp_path / "images", format="coco"
    )
    assert isinstance(source, CocoResults)
    with pytest.raises(UserError, match=r"images: holds no file \*_pred\.txt"):
        find_format(tmp_path / "images")
    with pytest.raises(UserError, match="absent: there is no such file or folder"):
        find_format(tmp_path / "absent")
