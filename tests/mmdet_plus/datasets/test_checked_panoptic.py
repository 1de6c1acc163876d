"""Panoptic data sets of one's own: what is a thing, which label a class has, which PNG an image."""

import copy
import json
import re

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.logging import MMLogger

from mmdet_plus.datasets import AnnotationError, MissingDataError, ShapesPanopticDataset
from mmdet_plus.datasets.panoptic_checks import png_size, things_told, without_pixels

SEGMENTS = [
    dict(id=3, category_id=1, bbox=[0, 0, 9, 9], area=81, iscrowd=0),
    dict(id=70000, category_id=5, bbox=[0, 10, 30, 10], area=300, iscrowd=0),
    dict(id=9, category_id=2, bbox=[10, 0, 9, 9], area=81, iscrowd=0),
]
# Things and stuff in turn.
CATEGORIES = [
    dict(id=1, name="cat", isthing=1),
    dict(id=5, name="sky", isthing=0),
    dict(id=2, name="dog", isthing=1),
]
THINGS_FIRST = ("cat", "dog", "sky")
META = dict(classes=THINGS_FIRST)


def content():
    return dict(
        images=[dict(id=7, file_name="sub/a.jpeg", height=20, width=30)],
        annotations=[dict(image_id=7, file_name="a_pan.png", segments_info=SEGMENTS)],
        categories=CATEGORIES,
    )


@pytest.fixture
def root(tmp_path):
    (tmp_path / "img/sub").mkdir(parents=True)
    (tmp_path / "pan").mkdir()
    cv2.imwrite(str(tmp_path / "img/sub/a.jpeg"), np.zeros((20, 30, 3), np.uint8))
    ids = np.zeros((20, 30), np.int64)
    ids[:9, :9], ids[10:], ids[:9, 10:19] = 3, 70000, 9
    write_png(tmp_path / "pan/a_pan.png", ids)
    return tmp_path


def write_png(path, ids):
    cv2.imwrite(str(path), np.stack([ids >> 16, ids >> 8 & 255, ids & 255], -1).astype(np.uint8))


def build(root, edit=None, metainfo=META, **options):
    data = copy.deepcopy(content())
    if edit:
        edit(data)
    (root / "ann.json").write_text(json.dumps(data))
    return DATASETS.build(
        dict(
            type="CheckedCocoPanopticDataset",
            data_root=str(root),
            ann_file="ann.json",
            metainfo=metainfo,
            **{"data_prefix": dict(img="img/", seg="pan/"), **options},
        )
    )


def no_kinds(data):
    for category in data["categories"]:
        del category["isthing"]


def expect(words, root, *args, error=AnnotationError, **kwargs):
    with pytest.raises(error, match=rf"(?s)ann\.json: .*{words}"):
        build(root, *args, **kwargs)


def test_labels_count_by_the_classes_not_by_the_file(root):
    dataset = build(root)
    info = dataset.get_data_info(0)
    assert info["segments_info"] == [
        dict(id=3, category=0, is_thing=1),
        dict(id=70000, category=2, is_thing=0),
        dict(id=9, category=1, is_thing=1),
    ]
    assert [instance["bbox_label"] for instance in info["instances"]] == [0, 1]
    assert dataset.metainfo["thing_classes"] == ("cat", "dog")
    assert dataset.metainfo["stuff_classes"] == ("sky",)
    assert dataset.metainfo["label_order"] == "classes"
    swapped = build(root, metainfo=dict(classes=("dog", "cat", "sky")))
    assert [s["category"] for s in swapped.get_data_info(0)["segments_info"]] == [1, 2, 0]


def test_loaded_maps_have_the_labels_of_the_classes(root):
    pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="mmdet.LoadPanopticAnnotations"),
        dict(type="mmdet.PackDetInputs"),
    ]
    sample = build(root, pipeline=pipeline)[0]["data_samples"]
    labels = sample.gt_sem_seg.sem_seg[0]
    assert [int(labels[5, 5]), int(labels[15, 5]), int(labels[5, 15]), int(labels[5, 25])] == [
        0,
        2,
        1,
        255,
    ]
    assert sample.gt_instances.labels.tolist() == [0, 1]
    assert sample.gt_instances.masks.masks.sum((1, 2)).tolist() == [81, 81]


def test_stuff_before_things_is_refused(root):
    in_file = tuple(category["name"] for category in CATEGORIES)
    expect(
        r"stuff before things.*classes=\('cat', 'dog', 'sky'\)",
        root,
        metainfo=dict(classes=in_file),
    )
    dataset = build(root, metainfo=dict(classes=in_file), things_first=False)
    assert [s["category"] for s in dataset.get_data_info(0)["segments_info"]] == [0, 1, 2]
    assert dataset.metainfo["thing_classes"] == ("cat", "dog")


def test_classes_that_do_not_fit_the_file(root):
    mend = r"set `metainfo=dict\(classes=\('cat', 'dog', 'sky'\)\)`"
    # COCO's, where none were given.
    expect(rf"no category is called 'person', .*{mend}", root, metainfo=None)
    expect("called 'cow', which", root, metainfo=dict(classes=("cat", "cow", "sky")))
    expect("lists 'cat' 2 times", root, metainfo=dict(classes=(*THINGS_FIRST, "cat")))
    expect(r"plain|is the text 'cat'", root, metainfo=dict(classes="cat"))
    expect(
        r"category 2 \(name 'dog'\): has 1 segments, the first in image 7",
        root,
        metainfo=dict(classes=("cat", "sky")),
    )


def test_a_class_without_segments_may_be_left_out(root):
    def edit(data):
        del data["annotations"][0]["segments_info"][2]

    dataset = build(root, edit, metainfo=dict(classes=("cat", "sky")))
    assert [s["category"] for s in dataset.get_data_info(0)["segments_info"]] == [0, 1]


@pytest.mark.parametrize(
    "told",
    [
        dict(thing_classes=("dog", "cat")),
        dict(stuff_classes=["sky"]),
        dict(thing_classes=["cat", "dog"], stuff_classes=("sky",)),
    ],
)
def test_things_that_only_the_config_tells(root, told):
    dataset = build(root, no_kinds, metainfo=dict(classes=THINGS_FIRST, **told))
    assert dataset.metainfo["thing_classes"] == ("cat", "dog")
    assert dataset.metainfo["stuff_classes"] == ("sky",)
    assert [s["is_thing"] for s in dataset.get_data_info(0)["segments_info"]] == [1, 0, 1]


def test_things_that_nobody_tells(root):
    expect(
        r"category 1 \(name 'cat'\) \(and 2 more of 3\): lacks `isthing`; write 1 .*thing_classes=",
        root,
        no_kinds,
    )
    # One is enough, and so is a thing of COCO's.
    expect(
        r"category 5 \(name 'sky'\): lacks", root, lambda data: data["categories"][1].pop("isthing")
    )


def test_things_told_twice(root):
    metainfo = dict(classes=THINGS_FIRST, thing_classes=("cat", "sky"))
    expect(
        r"2 faults:.*category 5 \(name 'sky'\): its isthing is 0, but the config calls it thing;.*"
        r"category 2 \(name 'dog'\): its isthing is 1, but the config calls it stuff",
        root,
        metainfo=metainfo,
        things_first=False,
    )
    expect(
        "`metainfo.thing_classes` lists 'cow', which `metainfo.classes` lacks",
        root,
        metainfo=dict(classes=THINGS_FIRST, thing_classes=("cow",)),
    )


def test_what_metainfo_tells():
    classes = dict(classes=("a", "b", "c"))
    assert things_told(classes) == {}
    expected = dict(a=True, b=False, c=True)
    assert things_told(dict(classes, thing_classes=["c", "a"])) == expected
    assert things_told(dict(classes, stuff_classes=("b",))) == expected
    with pytest.raises(AnnotationError, match="lists 'b', 'c' in both or neither"):
        things_told(dict(classes, thing_classes=("a", "b"), stuff_classes=("b",)))
    with pytest.raises(AnnotationError, match=r"`metainfo.stuff_classes` is the text 'b'"):
        things_told(dict(classes, stuff_classes="b"))


def test_a_data_sets_own_things_hold_with_its_own_classes(root):
    metainfo = ShapesPanopticDataset._load_metainfo(dict(palette=[]))
    assert len(metainfo["thing_classes"]) == 8
    metainfo = ShapesPanopticDataset._load_metainfo(dict(classes=("a",), stuff_classes=("a",)))
    assert "thing_classes" not in metainfo and metainfo["stuff_classes"] == ("a",)


@pytest.mark.parametrize("kind", ["1", 2, None, "thing"])
def test_isthing_that_is_no_flag(root, kind):
    def edit(data):
        data["categories"][0]["isthing"] = kind

    expect(rf"category 1 \(name 'cat'\): isthing {kind!r} must be 1", root, edit)


def test_a_file_of_instances(root):
    def edit(data):
        no_kinds(data)
        data["annotations"] = [
            dict(id=n, image_id=7, category_id=1, bbox=[0, 0, 5, 5], area=25, segmentation=[])
            for n in (1, 2, 3)
        ]

    expect(r"it is a file of instances .*give the panoptic file", root, edit)


@pytest.mark.parametrize("crowd", ["0", "1", None, 2, [1]])
def test_crowds_that_are_no_flag(root, crowd):
    def edit(data):
        data["annotations"][0]["segments_info"][2]["iscrowd"] = crowd

    words = rf"a_pan\.png', record 0 .*, segment 9: iscrowd {re.escape(repr(crowd))} must be the"
    expect(words, root, edit)


def test_records_that_occur_twice(root):
    def annotation(data):
        data["annotations"] *= 2

    def segment(data):
        data["annotations"][0]["segments_info"][1]["id"] = 3

    expect(r"image 7 \(record 1\): the image has one already", root, annotation)
    expect(r"image 7 \(record 0\): 2 segments have the id 3", root, segment)


def test_png_is_the_annotations(root):
    assert build(root).get_data_info(0)["seg_map_path"] == str(root / "pan/a_pan.png")
    # Without a name of its own it is called as the image, whatever the image's ending.
    expect(
        r"segmentation map file .*pan/sub/a\.png does not exist",
        root,
        lambda data: data["annotations"][0].pop("file_name"),
        error=MissingDataError,
    )
    (root / "pan/a_pan.png").unlink()
    expect(
        r"image 7: segmentation map file .*a_pan\.png does not exist", root, error=FileNotFoundError
    )


def test_png_that_cannot_be_used_is_told_when_its_turn_comes(root):
    pipeline = [dict(type="LoadImageFromFile"), dict(type="mmdet.LoadPanopticAnnotations")]
    dataset = build(root, pipeline=pipeline)
    path = root / "pan/a_pan.png"
    whole = path.read_bytes()
    who = r"ann\.json: image 7: segmentation map file .*a_pan\.png"
    # As many pixels, but turned: mmdet would load these.
    write_png(path, np.full((30, 20), 3))
    with pytest.raises(AnnotationError, match=rf"{who} is \[30, 20\] .* says \[20, 30\]"):
        dataset[0]
    path.write_bytes(whole[:40])
    with pytest.raises(AnnotationError, match=f"{who} cannot be read as a picture"):
        dataset[0]
    path.unlink()
    with pytest.raises(AnnotationError, match=f"{who} does not exist any more"):
        dataset[0]
    path.write_bytes(whole)
    assert dataset[0]["gt_seg_map"].shape == (20, 30)
    (root / "img/sub/a.jpeg").write_bytes(b"")
    with pytest.raises(AnnotationError, match=r"image file .*a\.jpeg cannot be read"):
        dataset[0]


LOADING = [dict(type="LoadImageFromFile"), dict(type="mmdet.LoadPanopticAnnotations")]


def grey(ids):
    return (ids % 256).astype(np.uint8)


def sixteen_bits(ids):
    return (ids % 65536).astype(np.uint16)


def swapped(ids):
    return np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)


def of_another_image(ids):
    return swapped(np.full_like(ids, 77))


def all_void(ids):
    return np.zeros_like(ids, np.uint8)


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            grey,
            r"3 \(and 2 more of 3\) has .*; it is grey with 8 bits, but ids stand in three",
        ),
        (sixteen_bits, "it is grey with 16 bits"),
        (swapped, r"3 \(and 2 more of 3\) has .*its red and blue are swapped .*panopticapi"),
        (of_another_image, "; ids stand in three colours .*If it is the right PNG, take the segm"),
        (all_void, "it is grey"),
    ],
)
def test_pngs_that_contradict_the_file_are_not_trained_on(root, write, words):
    path = root / "pan/a_pan.png"
    ids = np.zeros((20, 30), np.int64)
    ids[:9, :9], ids[10:], ids[:9, 10:19] = 3, 70000, 9
    cv2.imwrite(str(path), write(ids))
    crop = dict(type="mmdet.RandomCrop", crop_size=(4, 4))
    dataset = build(root, pipeline=[*LOADING, crop])
    who = (
        r"ann\.json: image 7: segment \d+.* has no pixel in the segmentation map file .*a_pan\.png"
    )
    with pytest.raises(AnnotationError, match=f"^.*{who}") as caught:
        dataset[0]
    assert re.search(words, str(caught.value)), caught.value
    assert str(caught.value).count("strict=False") == (write is of_another_image)
    # The metric has its own check, and its own strict=False.
    for options in (dict(strict=False), dict(test_mode=True)):
        sample = build(root, pipeline=LOADING, **options)[0]
        assert not sample["gt_masks"].masks.any() and len(sample["gt_bboxes"]) == 2


@pytest.mark.parametrize("lost", [3, 70000, 9])
def test_one_segment_without_pixels_is_enough(root, lost):
    path = root / "pan/a_pan.png"
    ids = np.zeros((20, 30), np.int64)
    ids[:9, :9], ids[10:], ids[:9, 10:19] = 3, 70000, 9
    write_png(path, np.where(ids == lost, 0, ids))
    with pytest.raises(AnnotationError, match=rf"image 7: segment {lost} has no pixel in"):
        build(root, pipeline=LOADING)[0]
    steps = [LOADING[0], dict(LOADING[1], with_mask=False)]
    with pytest.raises(AnnotationError, match=rf"image 7: segment {lost} has no pixel in"):
        build(root, pipeline=steps)[0]


def test_more_classes_than_a_map_of_bytes_holds():
    """Looked at by themselves, without what mmdet makes of such."""
    segments = [dict(id=5, category=300, is_thing=False), dict(id=6, category=2, is_thing=False)]
    results = dict(segments_info=segments, gt_seg_map=np.full((2, 3), 2))
    assert without_pixels(results) == [5]
    assert without_pixels(dict(segments_info=segments)) == []


def test_crops_may_leave_nothing_of_a_segment(root):
    crop = dict(type="mmdet.RandomCrop", crop_size=(4, 4), allow_negative_crop=True)
    dataset = build(root, pipeline=[*LOADING, crop])
    for _ in range(5):
        assert dataset[0]["gt_seg_map"].shape == (4, 4)


def test_images_of_nothing_but_void(root):
    def edit(data):
        data["annotations"][0]["segments_info"] = []

    write_png(root / "pan/a_pan.png", np.zeros((20, 30), int))
    assert (build(root, edit, pipeline=LOADING)[0]["gt_seg_map"] == 255).all()


def test_sizes_of_pngs_from_their_first_bytes(root):
    assert png_size((root / "pan/a_pan.png").read_bytes()[:24]) == (20, 30)
    assert png_size((root / "img/sub/a.jpeg").read_bytes()[:24]) is None
    assert png_size(b"\x89PNG") is None


def test_segments_that_mmdet_drops_are_told(root, caplog):
    def edit(data):
        data["annotations"][0]["segments_info"][0]["area"] = 0

    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        assert len(build(root, edit).get_data_info(0)["segments_info"]) == 2
        assert "1 of 3 annotations are left out" in caplog.text
        assert "annotation 3 of image 7" in caplog.text
        caplog.clear()
        build(root)
        build(root, edit, test_mode=True)
        assert "left out" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_images_without_ground_truth(root):
    def edit(data):
        del data["annotations"]

    expect("lacks `annotations`.*require_annotations=False", root, edit)
    options = dict(require_annotations=False, test_mode=True, data_prefix=dict(img="img/"))
    info = build(root, edit, **options).get_data_info(0)
    assert info["seg_map_path"] is None and not info["segments_info"]
