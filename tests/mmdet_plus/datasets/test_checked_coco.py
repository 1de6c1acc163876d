import copy
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import MMLogger
from pycocotools import mask as mask_utils

from mmdet_plus.datasets import AnnotationError, CheckedCocoDataset, MissingDataError
from mmseg_plus.common.coco_checks import check_instances
from mmseg_plus.common.errors import UserError


class Elsewhere(LocalBackend):
    """Stands for a store that is not this disk."""


register_backend("elsewhere", Elsewhere, force=True)

SHARED = Path(__file__).resolve().parents[4] / "shared"
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]
CONTENT = dict(
    images=[
        dict(id=7, file_name="a.png", height=20, width=30),
        dict(id=8, file_name="sub/b.png", height=20, width=30),
    ],
    annotations=[
        dict(
            id=70,
            image_id=7,
            category_id=1,
            bbox=[2, 2, 10, 10],
            area=100,
            iscrowd=0,
            segmentation=SQUARE,
        ),
        dict(
            id=80,
            image_id=8,
            category_id=5,
            bbox=[0, 0, 30, 20],
            area=600,
            iscrowd=1,
            segmentation=dict(size=[20, 30], counts=[0, 600]),
        ),
    ],
    categories=[dict(id=1, name="cat"), dict(id=5, name="dog")],
)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "img/sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        cv2.imwrite(str(tmp_path / "img" / name), np.zeros((20, 30, 3), np.uint8))
    return tmp_path


def build(root, content=CONTENT, **options):
    if content is not None:
        text = content if isinstance(content, str) else json.dumps(content)
        (root / "ann.json").write_text(text)
    config = dict(
        type="CheckedCocoDataset",
        data_root=str(root),
        ann_file="ann.json",
        data_prefix=dict(img="img/"),
        metainfo=dict(classes=("cat", "dog")),
    )
    return DATASETS.build({**config, **options})


def test_good_file_gives_what_upstream_gives(root):
    dataset = build(root)
    upstream = build(root, type="CocoDataset")
    assert isinstance(dataset, CheckedCocoDataset)
    assert [dataset.get_data_info(i) for i in range(2)] == [
        upstream.get_data_info(i) for i in range(2)
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"images": [', "not a JSON file"),
        ("\x00\x01", "not a JSON file"),
        ("[]", "holds a list"),
        (json.dumps({k: v for k, v in CONTENT.items() if k != "images"}), "lacks `images`"),
        (
            json.dumps({k: v for k, v in CONTENT.items() if k != "annotations"}),
            "lacks `annotations`.*require_annotations=False",
        ),
        (json.dumps({k: v for k, v in CONTENT.items() if k != "categories"}), "lacks `categories`"),
        (json.dumps({**CONTENT, "annotations": {"70": {}}}), "`annotations` must be a list"),
        (json.dumps({**CONTENT, "images": ["a.png"]}), "`images` must be a list of objects"),
    ],
)
def test_broken_file(root, content, words):
    with pytest.raises(AnnotationError, match=rf"ann\.json: .*{words}"):
        build(root, content)


def test_missing_file(root):
    with pytest.raises(FileNotFoundError, match=r"ann\.json: there is no such.*`data_root`"):
        build(root, None)


def change(place, index, key, value):
    content = copy.deepcopy(CONTENT)
    if value is None:
        del content[place][index][key]
    else:
        content[place][index][key] = value
    return content


A = r"annotation 70 of image 7 \(file_name 'a\.png', record 0 of `annotations`\)"
B = r"annotation 80 of image 8 \(file_name 'sub/b\.png', record 1 of `annotations`\)"
NAN = float("nan")
COMPRESSED = mask_utils.encode(np.ones((20, 30), np.uint8, order="F"))["counts"].decode()


@pytest.mark.parametrize(
    ("place", "index", "key", "value", "words"),
    [
        ("annotations", 0, "segmentation", [[1, 1, 5, 5]], f"{A}: polygon 0 .* has 4 numbers"),
        ("annotations", 0, "segmentation", SQUARE + [[1] * 7], f"{A}: polygon 1 .* has 7 numbers"),
        ("annotations", 0, "segmentation", [[1, 1, NAN, 5, 3, 3]], f"{A}: polygon 0 .*finite"),
        ("annotations", 0, "segmentation", [[1, 1, 9e999, 5, 3, 3]], f"{A}: polygon 0 .*finite"),
        ("annotations", 0, "segmentation", [[1, 1, "x", 5, 3, 3]], f"{A}: polygon 0 .*finite"),
        ("annotations", 0, "segmentation", [1, 1, 5, 1, 3, 3], f"{A}: polygon 0 .* has 1;"),
        ("annotations", 0, "segmentation", "abc", f"{A}: .*neither .*polygons nor an RLE"),
        ("annotations", 0, "segmentation", {"size": [20, 30]}, f"{A}: .*nor an RLE"),
        (
            "annotations",
            1,
            "segmentation",
            dict(size=[30, 20], counts=[0, 600]),
            rf"{B}: its RLE has size \[30, 20\] but the image is \[20, 30\].*encode the mask",
        ),
        (
            "annotations",
            1,
            "segmentation",
            dict(size=[40, 30], counts="0e12"),
            rf"{B}: its RLE has size \[40, 30\]",
        ),
        (
            "annotations",
            1,
            "segmentation",
            dict(size=[20, 30], counts=[0, 599]),
            f"{B}: the counts of its RLE do not add up",
        ),
        (
            "annotations",
            1,
            "segmentation",
            dict(size=[20, 30], counts=COMPRESSED[:-1]),
            rf"{B}: the counts of its RLE do not add up to its size \[20, 30\]; encode",
        ),
        (
            "annotations",
            1,
            "segmentation",
            dict(size=[20, 30], counts=""),
            f"{B}: the counts of its RLE do not add up",
        ),
        ("annotations", 0, "bbox", [1, 2, 3], rf"{A}: bbox \[1, 2, 3\] is not 4"),
        ("annotations", 0, "bbox", [1, 2, 3, NAN], f"{A}: bbox .* is not 4 finite"),
        ("annotations", 0, "bbox", None, f"{A}: bbox None"),
        ("annotations", 0, "area", None, f"{A}: area None"),
        ("annotations", 0, "iscrowd", "0", f"{A}: iscrowd '0' must be the number 0 or 1"),
        ("annotations", 1, "iscrowd", "1", f"{B}: iscrowd '1' must be the number 0 or 1"),
        ("annotations", 1, "iscrowd", 2, f"{B}: iscrowd 2 must be"),
        ("annotations", 1, "iscrowd", [0], rf"{B}: iscrowd \[0\] must be .* leave `iscrowd` out"),
        ("annotations", 1, "image_id", 9, "annotation 80 of image 9 .*unknown image_id 9; add"),
        ("annotations", 1, "category_id", 3, f"{B}: unknown category_id 3; add"),
        ("annotations", 1, "id", 70, "annotation 70 of image 8 .*`id` occurs twice"),
        ("annotations", 1, "id", None, "annotation None of image 8 .*no usable `id`"),
        ("images", 1, "id", 7, r"image 7 \(file_name 'sub/b\.png', record 1.*occurs twice"),
        ("images", 1, "file_name", None, "image 8 .*has no `file_name`"),
        ("images", 1, "file_name", "../b.png", r"image 8 .*'\.\./b\.png'.*leaves the image folder"),
        ("images", 1, "file_name", "sub/../../b.png", "image 8 .*leaves the image folder"),
        ("images", 1, "file_name", "/etc/b.png", "image 8 .*leaves the image folder"),
        ("images", 1, "file_name", "..\\b.png", "image 8 .*leaves the image folder"),
        ("images", 0, "height", 0, "image 7 .*height 0 and width 30 must be"),
        ("images", 0, "width", "30", "image 7 .*width '30' must be"),
        ("categories", 1, "name", None, "category 5 .*record 1 of `categories`"),
        ("categories", 1, "id", 1, "category 1 .*id or name occurs twice"),
    ],
)
def test_bad_record(root, place, index, key, value, words):
    with pytest.raises(AnnotationError, match=rf"(?s)ann\.json: .*{words}"):
        build(root, change(place, index, key, value))


@pytest.mark.parametrize("crowd", [0, 1, False, True, 1.0])
def test_flags_of_crowds_pass(root, crowd):
    instances = build(root, change("annotations", 0, "iscrowd", crowd)).get_data_info(0)[
        "instances"
    ]
    assert [instance["ignore_flag"] for instance in instances] == [int(crowd)]


def test_compressed_masks_pass(root):
    content = change("annotations", 1, "segmentation", dict(size=[20, 30], counts=COMPRESSED))
    assert len(build(root, content)) == 2


def test_faults_of_all_kinds_are_the_user_s(root):
    (root / "img/sub/b.png").unlink()
    for content in ("[]", CONTENT):
        with pytest.raises(UserError):
            build(root, content)
    assert issubclass(MissingDataError, FileNotFoundError)
    assert issubclass(AnnotationError, ValueError)


def test_missing_image(root):
    (root / "img/sub/b.png").unlink()
    with pytest.raises(MissingDataError, match=r"ann\.json: image 8: image file .*b\.png does no"):
        build(root)
    (root / "img/sub").rmdir()
    with pytest.raises(FileNotFoundError, match=r"image 8: the folder .*check `data_root`"):
        build(root)


def test_missing_segmentation_map(root):
    (root / "seg/sub").mkdir(parents=True)
    (root / "seg/a.png").touch()
    with pytest.raises(FileNotFoundError, match=r"image 8: segmentation map file .*b\.png"):
        build(root, data_prefix=dict(img="img/", seg="seg/"))


def test_images_behind_another_backend_are_not_looked_for(root):
    (root / "img/a.png").unlink()
    with pytest.raises(FileNotFoundError):
        build(root, backend_args=dict(backend="local"))
    assert len(build(root, backend_args=dict(backend="elsewhere"))) == 2


def test_many_faults_are_counted_and_a_few_shown(root):
    content = copy.deepcopy(CONTENT)
    for number in range(20):
        content["annotations"].append(dict(content["annotations"][0], id=100 + number, bbox=[]))
    with pytest.raises(AnnotationError, match="20 faults") as error:
        build(root, content)
    assert str(error.value).count("bbox []") == 5 and "and 15 more" in str(error.value)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (("cat", "horse"), r"no category is called 'horse'.*the file has 'cat', 'dog'.*metainfo"),
        (("dog", "cat"), "another order.*'cat', 'dog'"),
        ("cat", "is the text 'cat'"),
    ],
)
def test_classes_that_do_not_fit(root, classes, words):
    with pytest.raises(AnnotationError, match=rf"ann\.json: .*{words}"):
        build(root, metainfo=dict(classes=classes))


def test_default_classes_of_another_data_set(root):
    with pytest.raises(AnnotationError, match="'person', .* more, which `metainfo.classes` lists"):
        build(root, metainfo=None)


def test_a_subset_of_the_classes(root):
    dataset = build(root, metainfo=dict(classes=("dog",)))
    assert [len(dataset.get_data_info(i)["instances"]) for i in range(2)] == [0, 1]


def test_test_images_without_annotations(root):
    content = {key: value for key, value in CONTENT.items() if key != "annotations"}
    dataset = build(root, content, require_annotations=False, test_mode=True)
    assert [d["img_id"] for d in (dataset.get_data_info(0), dataset.get_data_info(1))] == [7, 8]


BOXES = [dict(type="LoadImageFromFile"), dict(type="mmdet.LoadAnnotations", with_bbox=True)]
MASKS = [BOXES[0], dict(BOXES[1], with_mask=True)]


@pytest.fixture
def box_only():
    """The test file without masks, in both ways to write none."""
    content = change("annotations", 0, "segmentation", None)
    content["annotations"][1]["segmentation"] = []
    return content


def test_box_only_annotations_are_fine_for_boxes(root, box_only):
    dataset = build(root, box_only, pipeline=BOXES)
    assert [len(dataset[i]["gt_bboxes"]) for i in range(2)] == [1, 1]


@pytest.mark.parametrize(
    "pipeline",
    [
        MASKS,
        [MASKS[0], dict(type="RandomChoice", transforms=[[BOXES[1]], [MASKS[1]]])],
        [MASKS[0], dict(type="TestTimeAug", transforms=[[MASKS[1]]])],
        [MASKS[0], dict(type="mmdet.MultiBranch", branch_field=["a"], a=[MASKS[1]])],
    ],
    ids=["plain", "choice", "tta", "branches"],
)
def test_annotations_without_a_mask_are_named_where_masks_are_loaded(root, box_only, pipeline):
    assert len(build(root, pipeline=pipeline)) == 2
    words = r"annotation 80 of image 8 \(file_name 'sub/b\.png'\): has no segmentation.*remove"
    content = change("annotations", 1, "segmentation", None)
    content["annotations"].append(dict(CONTENT["annotations"][1], id=81))
    with pytest.raises(AnnotationError, match=rf"ann\.json: {words}"):
        build(root, content, pipeline=pipeline)
    with pytest.raises(AnnotationError, match=r"(?s)2 faults:.*annotation 70 .*annotation 80 "):
        build(root, box_only, pipeline=pipeline)


def test_masks_are_not_missed_where_mmdet_drops_the_annotation(root):
    content = copy.deepcopy(CONTENT)
    base = {k: v for k, v in content["annotations"][0].items() if k != "segmentation"}
    content["annotations"] += [
        dict(base, id=71, ignore=1),
        dict(base, id=72, area=0),
        dict(base, id=73, bbox=[90, 90, 5, 5]),
        dict(base, id=74, category_id=5),
    ]
    dataset = build(root, content, pipeline=MASKS, metainfo=dict(classes=("cat",)))
    assert dataset[0]["gt_masks"].masks.sum(axis=(1, 2)).tolist() == [100]


@pytest.fixture
def warnings(caplog):
    """What is logged as a warning; mmengine's loggers do not pass records on."""
    logger = MMLogger.get_instance("checked-coco")
    logger.addHandler(caplog.handler)
    yield lambda: [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    logger.removeHandler(caplog.handler)


def test_annotations_that_mmdet_drops_are_counted(root, warnings):
    content = copy.deepcopy(CONTENT)
    first = content["annotations"][0]
    content["annotations"] += [
        dict(first, id=71, area=0),
        dict(first, id=72, bbox=[3, 3, 0.5, 9]),
        dict(first, id=73, ignore=1),
    ]
    build(root, content)
    (line,) = warnings()
    assert line.startswith(f"{root / 'ann.json'}: 2 of 4 annotations are left out of the training")
    assert "annotation 71 of image 7 (file_name 'a.png'): bbox [2, 2, 10, 10], area 0" in line
    build(root, content, test_mode=True)
    build(root, content, metainfo=dict(classes=("dog",)))
    build(root)
    assert len(warnings()) == 1


def test_boxes_of_two_corners_are_told(root, warnings):
    content = copy.deepcopy(CONTENT)
    first = content["annotations"][0]
    content["annotations"] += [
        dict(first, id=71, bbox=[20, 10, 28, 18]),
        dict(first, id=72, bbox=[-1, -1, 32, 22]),
        dict(first, id=73, bbox=[-2, 0, 9, 9]),
        dict(first, id=74, bbox=[0, 5, 9, 16.5]),
    ]
    build(root, content)
    (line,) = warnings()
    assert "3 of 6 annotations have a bbox that reaches beyond the image; it must be" in line
    assert "annotation 71 of image 7 (file_name 'a.png'): bbox [20, 10, 28, 18]" in line


def test_image_that_cannot_be_used_is_named(root):
    dataset = build(root, pipeline=MASKS)
    path = root / "img/sub/b.png"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(AnnotationError, match=r"ann\.json: image 8: .*b\.png cannot be read"):
        dataset[1]
    cv2.imwrite(str(path), np.zeros((20, 40, 3), np.uint8))
    with pytest.raises(AnnotationError, match=r"b\.png is \[20, 40\] .*says \[20, 30\]"):
        dataset[1]
    path.unlink()
    with pytest.raises(AnnotationError, match=r"image 8: .*b\.png does not exist any more"):
        dataset[1]


def test_other_failures_of_a_pipeline_stay_what_they_are(root):
    def broken(results):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build(root, pipeline=[broken])[0]


def test_checks_are_cheap():
    polygon = [float(i) for i in range(40)]
    annotation = dict(image_id=1, category_id=1, bbox=[1.0, 2.0, 3.0, 4.0], area=5.0)
    content = dict(
        images=[dict(id=1, file_name="a", height=9, width=9)],
        categories=[dict(id=1, name="cat")],
        annotations=[dict(annotation, id=i, segmentation=[polygon]) for i in range(50_000)],
    )
    start = time.process_time()
    assert list(check_instances(content)) == []
    # 860,000 annotations of COCO then cost less than 17 s; measured are about 2 s.
    assert time.process_time() - start < 1.0


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the shared data")
@pytest.mark.parametrize(
    ("folder", "ann", "img", "classes", "count"),
    [
        ("coco_tiny", "annotations/instances_train2017.json", "train2017/", None, 80),
        ("nuclei", "annotations/val.json", "val/", ("nucleus",), 70),
    ],
)
def test_real_files_pass(folder, ann, img, classes, count):
    dataset = DATASETS.build(
        dict(
            type="CheckedCocoDataset",
            data_root=str(SHARED / "data" / folder),
            ann_file=ann,
            data_prefix=dict(img=img),
            metainfo=classes and dict(classes=classes),
        )
    )
    assert len(dataset) == count


def panoptic_content():
    return dict(
        images=[dict(id=7, file_name="a.png", height=20, width=30)],
        annotations=[
            dict(
                image_id=7,
                file_name="a.png",
                segments_info=[
                    dict(id=3, category_id=1, bbox=[0, 0, 9, 9], area=81, iscrowd=0),
                ],
            )
        ],
        categories=[dict(id=1, name="cat", isthing=1), dict(id=5, name="sky", isthing=0)],
    )


def build_panoptic(root, content):
    (root / "pan").mkdir(exist_ok=True)
    cv2.imwrite(str(root / "pan/a.png"), np.zeros((20, 30, 3), np.uint8))
    return build(
        root,
        content,
        type="CheckedCocoPanopticDataset",
        data_prefix=dict(img="img/", seg="pan/"),
        metainfo=dict(classes=("cat", "sky"), thing_classes=("cat",), stuff_classes=("sky",)),
    )


def test_panoptic_good(root):
    info = build_panoptic(root, panoptic_content()).get_data_info(0)
    assert info["segments_info"] == [dict(id=3, category=0, is_thing=1)]


def test_panoptic_faults(root):
    who = r"annotation of image 7 \(file_name 'a\.png', record 0"

    def expect(words, edit):
        content = panoptic_content()
        edit(content)
        with pytest.raises(AnnotationError, match=rf"(?s)ann\.json: .*{words}"):
            build_panoptic(root, content)

    def segment(**changes):
        return lambda content: content["annotations"][0]["segments_info"][0].update(changes)

    expect(f"{who}.*segment 3: unknown category_id 9", segment(category_id=9))
    expect(f"{who}.*segment 3: bbox", segment(bbox=[0, 0, 1]))
    expect(f"{who}.*segment 0: its `id`", segment(id=0))
    expect(f"{who}.*segment 3: area", segment(area="big"))
    expect("image 4 .*unknown image_id", lambda c: c["annotations"][0].update(image_id=4))
    expect("leaves its folder", lambda c: c["annotations"][0].update(file_name="../a.png"))
    expect("segments_info", lambda c: c["annotations"][0].pop("segments_info"))


def test_panoptic_missing_png(root):
    build_panoptic(root, panoptic_content())
    (root / "pan/a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"image 7: segmentation map file .*pan/a\.png"):
        build(
            root,
            panoptic_content(),
            type="CheckedCocoPanopticDataset",
            data_prefix=dict(img="img/", seg="pan/"),
            metainfo=dict(classes=("cat", "sky"), thing_classes=("cat",), stuff_classes=("sky",)),
        )
