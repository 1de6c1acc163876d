"""Panoptic predictions in files, of whatever model, beside panopticapi."""

import copy
import json
import re

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute_single_core

from mmdet_plus.benchmark.panoptic import perturb
from mmdet_plus.evaluation import pq_from_files
from mmdet_plus.evaluation.id_maps import encode_id_map, read_id_map
from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError

GROUPS = (("", None), ("_th", True), ("_st", False))


class Files:
    """Ground truth and predictions in a folder; edited before they are written."""

    def __init__(self, root, gt, pred, maps):
        self.root, self.gt, self.pred = root, gt, pred
        for name, ids in maps.items():
            (root / name).parent.mkdir(exist_ok=True)
            (root / name).write_bytes(encode_id_map(ids))

    def arguments(self, edit_gt=None, edit_pred=None):
        for name, content, edit in (("gt", self.gt, edit_gt), ("pred", self.pred, edit_pred)):
            content = copy.deepcopy(content)
            if edit:
                edit(content)
            (self.root / f"{name}.json").write_text(json.dumps(content))
        return [self.root / name for name in ("gt.json", "gt", "pred.json", "pred")]

    def theirs(self):
        """panopticapi's averages of all, things and stuff, each with those by category."""
        by_image = {ann["image_id"]: ann for ann in self.pred["annotations"]}
        pairs = [copy.deepcopy((ann, by_image[ann["image_id"]])) for ann in self.gt["annotations"]]
        categories = {category["id"]: category for category in self.gt["categories"]}
        folders = str(self.root / "gt"), str(self.root / "pred")
        stat = pq_compute_single_core(0, pairs, *folders, categories)
        return [stat.pq_average(categories, isthing) for _, isthing in GROUPS]


def predict(root, gt, gt_maps, seed=0):
    """Files with perturbed ground truth as predictions, their PNGs named in their own way."""
    annotations, maps = [], {}
    for number, ann in enumerate(gt["annotations"]):
        ids = gt_maps[ann["image_id"]]
        pred, segments = perturb(ids, ann["segments_info"], seed + number)
        name = f"p{number}.png"
        annotations.append(dict(image_id=ann["image_id"], file_name=name, segments_info=segments))
        maps |= {f"gt/{ann['file_name']}": ids, f"pred/{name}": pred}
    # In another order than the ground truth.
    return Files(root, gt, dict(annotations=annotations[::-1]), maps)


@pytest.fixture
def files(tmp_path):
    """Two images with two things, a crowd and two stuff classes each."""
    gt = dict(
        images=[dict(id=i, file_name=f"{i}.jpg", height=48, width=60) for i in (3, "b")],
        annotations=[],
        categories=[
            dict(id=4, name="sky", isthing=0),
            dict(id=1, name="cat", isthing=1),
            dict(id=90, name="grass", isthing=0),
            dict(id=5, name="cow", isthing=1),
        ],
    )
    maps = {}
    for image in gt["images"]:
        ids = np.zeros((48, 60), np.int64)
        ids[24:], ids[:16, :40] = 500, 6
        ids[20:32, 8:20], ids[12:40, 28:40], ids[36:46, 2:18] = 300, 70000, 44
        maps[image["id"]] = ids
        kinds = {500: 90, 6: 4, 300: 1, 70000: 1, 44: 1}
        segments = [
            dict(
                id=ident,
                category_id=category,
                iscrowd=int(ident == 44),
                area=int((ids == ident).sum()),
                bbox=[0, 0, 9, 9],
            )
            for ident, category in kinds.items()
        ]
        record = dict(image_id=image["id"], file_name=f"{image['id']}_pan.png")
        gt["annotations"].append(dict(record, segments_info=segments))
    return predict(tmp_path, gt, maps)


def assert_same(figures, theirs, categories):
    names = [f"{name}{suffix}" for suffix, _ in GROUPS for name in ("PQ", "SQ", "RQ")]
    assert list(figures)[:9] == names
    for (suffix, _), (expected, _) in zip(GROUPS, theirs, strict=True):
        for name in ("PQ", "SQ", "RQ"):
            value = 100 * expected[name.lower()]
            assert figures[name + suffix] == pytest.approx(value, rel=1e-12, abs=1e-12)
    own = theirs[0][1]
    for category in categories:
        for name in ("PQ", "SQ", "RQ"):
            figure = figures.get(f"{category['name']}_{name}", 0)
            expected = 100 * own[category["id"]][name.lower()]
            assert figure == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_figures_are_panopticapis(files):
    figures = pq_from_files(*files.arguments(), classwise=True)
    assert_same(figures, files.theirs(), files.gt["categories"])
    assert len(pq_from_files(*files.arguments())) == 9
    assert 10 < figures["PQ_th"] < 100 and 10 < figures["PQ_st"] < 100
    assert "cow_PQ" not in figures and "cat_RQ" in figures
    # Paths may be texts.
    assert pq_from_files(*map(str, files.arguments()), classwise=True) == figures


def test_real_pictures(tmp_path, shared_data):
    root = shared_data / "panoptic_sample"
    gt = json.loads((root / "panoptic_examples.json").read_text())
    maps = {
        ann["image_id"]: read_id_map(str(root / "panoptic_examples" / ann["file_name"]), "sample")
        for ann in gt["annotations"]
    }
    assert sum(s["iscrowd"] for ann in gt["annotations"] for s in ann["segments_info"]) == 3
    for seed in (0, 50):
        files = predict(tmp_path, gt, maps, seed)
        arguments = files.arguments()
        arguments[1] = root / "panoptic_examples"
        figures = pq_from_files(*arguments, classwise=True)
        assert_same(figures, files.theirs(), gt["categories"])
        assert 20 < figures["PQ"] < 90
    # Ground truth itself.
    arguments[2:] = root / "panoptic_examples.json", root / "panoptic_examples"
    assert pq_from_files(*arguments)["PQ"] == 100


def no_kinds(content):
    for category in content["categories"]:
        del category["isthing"]


def test_things_told_by_the_caller(files):
    figures = pq_from_files(*files.arguments())
    arguments = files.arguments(no_kinds)
    with pytest.raises(AnnotationError, match=r"gt\.json: .*lacks `isthing`.*`thing_classes`"):
        pq_from_files(*arguments)
    assert pq_from_files(*arguments, thing_classes=("cow", "cat")) == figures
    with pytest.raises(AnnotationError, match=r"gt\.json: no category is called \['dog'\]"):
        pq_from_files(*arguments, thing_classes=("dog", "cat"))
    with pytest.raises(AnnotationError, match=r"cow.*isthing is 1, but the config calls it stuff"):
        pq_from_files(*files.arguments(), thing_classes=("cat",))


def test_crowds_need_not_be_told_where_there_are_none(files):
    def edit(content):
        for ann in content["annotations"]:
            for segment in ann["segments_info"]:
                segment.pop("iscrowd")

    figures = pq_from_files(*files.arguments(edit))
    for ann in files.gt["annotations"]:
        for segment in ann["segments_info"]:
            segment["iscrowd"] = 0
    assert figures == pq_from_files(*files.arguments())


def test_boxes_need_not_be_told(files):
    def edit(content):
        for ann in content["annotations"]:
            for segment in ann["segments_info"]:
                segment.pop("bbox")

    assert pq_from_files(*files.arguments(edit)) == pq_from_files(*files.arguments())


def test_predictions_on_other_images_are_left_out(files):
    figures = pq_from_files(*files.arguments())
    files.pred["annotations"].insert(0, dict(image_id=99, file_name="../x.png"))
    assert pq_from_files(*files.arguments()) == figures


def test_areas_of_predictions_are_counted_whatever_they_say(files):
    figures = pq_from_files(*files.arguments())

    def edit(content):
        for ann in content["annotations"]:
            for segment in ann["segments_info"]:
                segment.update(area=1, iscrowd=1)

    assert pq_from_files(*files.arguments(None, edit)) == figures


def test_ground_truth_that_contradicts_itself(files):
    def lost(content):
        content["annotations"][0]["segments_info"].pop(0)

    def ghost(content):
        segments = content["annotations"][1]["segments_info"]
        segments.append(dict(segments[0], id=8))

    def resized(content):
        content["annotations"][0]["segments_info"][1]["area"] += 90

    for edit, words in (
        (lost, r"image 3 \(3_pan\.png\): segment 500 \(\d+ pixels\) is in the PNG but not"),
        (ghost, r"image 'b' \(b_pan\.png\): segment 8 is in `segments_info` but has no pixel"),
        (resized, r"image 3 \(3_pan\.png\): segment 6 has the area 682 .*but 592 pixels"),
    ):
        arguments = files.arguments(edit)
        with pytest.raises(AnnotationError, match=rf"gt\.json: {words}.*strict=False"):
            pq_from_files(*arguments)
        before = copy.deepcopy(files.gt)
        if edit is not resized:
            edit(files.gt)
        figures = pq_from_files(*arguments, strict=False, classwise=True)
        assert_same(figures, files.theirs(), files.gt["categories"])
        files.gt = before


@pytest.mark.parametrize("area", [-5, 0, 1, 10**9])
def test_areas_that_are_wrong_do_not_count(files, area):
    """By panopticapi, and by us once, they made a PQ of 122."""

    def edit(content):
        for ann in content["annotations"]:
            for segment in ann["segments_info"]:
                segment["area"] = area

    right = pq_from_files(*files.arguments())
    assert pq_from_files(*files.arguments(edit), strict=False) == right


def first(**changes):
    """Change the first segment of the first prediction (of the second image)."""
    return lambda content: content["annotations"][0]["segments_info"][0].update(changes)


def record(**changes):
    return lambda content: content["annotations"][0].update(changes)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (first(category_id=2), r"image 'b' .*segment \d+: unknown category_id 2; .*not labels"),
        (first(category_id="cat"), "unknown category_id 'cat'"),
        (first(category_id=[1]), r"unknown category_id \[1\]"),
        (first(id=0), "segment 0: its `id` must be a whole number > 0 .*0 is void"),
        (first(id="7"), "segment '7': its `id` must be"),
        (first(id=True), "segment True: its `id` must be"),
        (first(id=7), "segment 7 is in `segments_info` but has no pixel in the PNG"),
        (record(file_name="../gt/b_pan.png"), "image 'b' .*needs the name of its PNG"),
        (record(file_name=None), r"\(file_name None, record 0\): needs the name of its PNG"),
        (record(segments_info=None), "lacks the list `segments_info`; are these .*instances"),
        (record(image_id=3), r"image 3 \(file_name 'p0.png', record 1\): .*only one prediction"),
        (record(image_id=[3]), r"image \[3\] .*needs an `image_id`"),
        (record(image_id=8), "no prediction on 1 of 2 images of .*the first is 'b'"),
        (lambda c: c["annotations"][0]["segments_info"].pop(), "is in the PNG but not in"),
        (lambda c: c.pop("annotations"), "lacks `annotations`"),
    ],
)
def test_predictions_that_cannot_be_used(files, edit, words):
    with pytest.raises(AnnotationError, match=rf"(?s)pred\.json: .*{words}"):
        pq_from_files(*files.arguments(None, edit))


def test_predictions_of_instances(files):
    arguments = files.arguments()
    arguments[2].write_text(json.dumps([dict(image_id=3, category_id=1, score=0.5)]))
    with pytest.raises(AnnotationError, match=r"pred\.json: holds a list, as results of instances"):
        pq_from_files(*arguments)
    arguments[2].unlink()
    with pytest.raises(MissingDataError, match=r"pred\.json: there is no such"):
        pq_from_files(*arguments)


@pytest.mark.parametrize(("kind", "name"), [("gt", "3_pan.png"), ("pred", "p0.png")])
def test_pngs_that_cannot_be_used(files, kind, name):
    arguments, path = files.arguments(), files.root / kind / name
    who = rf"{kind}\.json: image 3: .*{re.escape(name)}"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"{who} cannot be read .No such file"):
        pq_from_files(*arguments)
    path.mkdir()
    with pytest.raises(MissingDataError, match=f"{who} cannot be read .Is a directory"):
        pq_from_files(*arguments)
    path.rmdir()
    path.write_bytes(whole[:50])
    with pytest.raises(AnnotationError, match=f"{who} cannot be read as a picture"):
        pq_from_files(*arguments)
    path.write_bytes(encode_id_map(np.zeros((48, 59), int)))
    with pytest.raises(AnnotationError, match=rf"{who} is \[48, 59\] .*the image is \[48, 60\]"):
        pq_from_files(*arguments)
