"""PanopticMetric as mmdet's evaluator calls it, beside mmdet's own."""

import copy
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoPanopticMetric
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.evaluator import Evaluator
from mmengine.logging import MMLogger
from mmengine.structures import PixelData

from mmdet_plus.benchmark.panoptic import perturb
from mmdet_plus.datasets import CheckedCocoPanopticDataset, ShapesPanopticDataset, make_shapes
from mmdet_plus.evaluation import PanopticMetric, pq_from_files, pq_statistics
from mmdet_plus.evaluation.id_maps import encode_id_map, read_id_map
from mmdet_plus.evaluation.panoptic_quality import add_counts, panoptic_figures
from mmseg_plus.common.errors import UserError

NAMES = [name + suffix for suffix in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ")]


# ---- beside mmdet's, on Shapes ----


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("shapes") / "set"
    return make_shapes(root, num_train=1, num_val=6, image_size=(160, 96), seed=4, progress=False)


@pytest.fixture(scope="module")
def files(shapes):
    """Arguments of a metric."""
    return dict(
        ann_file=str(shapes / "annotations/panoptic_val.json"),
        seg_prefix=str(shapes / "panoptic_val") + "/",
    )


@pytest.fixture(scope="module")
def dataset(shapes):
    return ShapesPanopticDataset(
        data_root=str(shapes),
        ann_file="annotations/panoptic_val.json",
        data_prefix=dict(img="val/", seg="panoptic_val/"),
        test_mode=True,
    )


def encode(pred, segments, labels, num_classes):
    """A panoptic map as mmdet's models give it: things are numbered, stuff is its label."""
    encoded = torch.full((1, *pred.shape), num_classes, dtype=torch.int32)
    for number, segment in enumerate(segments, 1):
        label, thing = labels[segment["category_id"]]
        encoded[0][torch.from_numpy(pred == segment["id"])] = (
            label + thing * number * INSTANCE_OFFSET
        )
    return encoded


@pytest.fixture(scope="module")
def samples(dataset):
    """Data samples with perturbed ground truth as prediction."""
    classes, things = dataset.metainfo["classes"], dataset.metainfo["thing_classes"]
    labels = {label: (label, name in things) for label, name in enumerate(classes)}
    found = []
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        gt = read_id_map(info["seg_map_path"], "Shapes")
        records = [dict(id=s["id"], category_id=s["category"]) for s in info["segments_info"]]
        pred, segments = perturb(gt, records, seed=index)
        found.append(
            dict(
                img_id=info["img_id"],
                img_path=info["img_path"],
                ori_shape=gt.shape,
                segments_info=info["segments_info"],
                pred_panoptic_seg=dict(sem_seg=encode(pred, segments, labels, len(classes))),
            )
        )
    return found


def build(meta, kind="PanopticMetric", **options):
    metric = METRICS.build(dict(type=kind, **options))
    metric.dataset_meta = meta
    return metric


def run(metric, samples):
    for start in range(0, len(samples), 4):
        # mmdet's writes into them.
        metric.process({}, copy.deepcopy(samples[start : start + 4]))
    return metric.evaluate(len(samples))


def test_figures_are_those_of_mmdets_metric(dataset, files, samples):
    ours = run(build(dataset.metainfo, **files), samples)
    theirs = run(build(dataset.metainfo, "CocoPanopticMetric", nproc=1, **files), samples)
    assert list(ours) == [f"coco_panoptic/{name}" for name in NAMES]
    assert sorted(ours) == sorted(theirs)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert 20 < ours["coco_panoptic/PQ_th"] < 90 and 20 < ours["coco_panoptic/PQ_st"] < 90


def test_ground_truth_of_the_samples(dataset, files, samples):
    own = dict(seg_prefix=files["seg_prefix"])
    ours = run(build(dataset.metainfo, **own), samples)
    theirs = run(build(dataset.metainfo, "CocoPanopticMetric", nproc=1, **own), samples)
    assert ours == pytest.approx(theirs, rel=1e-12)
    assert ours == pytest.approx(run(build(dataset.metainfo, **files), samples))
    # A sample may tell its PNG itself.
    told = [
        dict(s, seg_map_path=f"{own['seg_prefix']}{s['img_path'][-10:-4]}.png") for s in samples
    ]
    assert run(build(dataset.metainfo), told) == ours


def test_results_of_two_processes_together(dataset, files, samples):
    halves = [build(dataset.metainfo, **files) for _ in range(2)]
    halves[0].process({}, samples[0::2])
    halves[1].process({}, samples[1::2])
    # What mmengine sends around is pickled.
    results = pickle.loads(pickle.dumps(halves[0].results)) + halves[1].results
    together = halves[0].compute_metrics(results)
    alone = run(build(dataset.metainfo, prefix="x", **files), samples)
    assert {f"x/{name}": value for name, value in together.items()} == pytest.approx(alone)
    # mmengine counts results, of which the last ones may be repetitions.
    assert len(halves[0].results) == len(samples) / 2


def test_in_mmengines_evaluator(dataset, files, samples):
    evaluator = Evaluator([dict(type="mmdet.PanopticMetric", **files)])
    evaluator.dataset_meta = dataset.metainfo
    for sample in samples:
        metainfo = {k: v for k, v in sample.items() if k != "pred_panoptic_seg"}
        data_sample = DetDataSample(metainfo=metainfo)
        data_sample.pred_panoptic_seg = PixelData(sem_seg=sample["pred_panoptic_seg"]["sem_seg"])
        evaluator.process([data_sample])
    figures = evaluator.evaluate(len(samples))
    assert figures == run(build(dataset.metainfo, **files), samples)


def test_nothing_is_written_unless_asked_for(dataset, files, samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = copy.deepcopy(samples)
    run(build(dataset.metainfo, **files), samples)
    assert not list(tmp_path.iterdir())
    for sample, old in zip(samples, before, strict=True):
        maps = (s["pred_panoptic_seg"]["sem_seg"] for s in (sample, old))
        assert torch.equal(*maps)


def test_written_predictions_have_the_same_figures(dataset, files, samples, tmp_path):
    prefix = str(tmp_path / "out/run")
    figures = run(build(dataset.metainfo, outfile_prefix=prefix, **files), samples)
    gt = files["ann_file"], files["seg_prefix"]
    again = pq_from_files(*gt, f"{prefix}.panoptic.json", f"{prefix}.panoptic")
    assert {f"coco_panoptic/{k}": v for k, v in again.items()} == pytest.approx(figures, rel=1e-12)
    content = json.loads((tmp_path / "out/run.panoptic.json").read_text())
    assert [len(ann) for ann in content["annotations"]] == [3] * len(samples)
    segment = content["annotations"][0]["segments_info"][0]
    assert sorted(segment) == ["area", "category_id", "id", "isthing"]
    for ann in content["annotations"]:
        ids = [segment["id"] for segment in ann["segments_info"]]
        assert ids == list(range(1, len(ids) + 1))
    only = str(tmp_path / "only")
    metric = build(
        dataset.metainfo, ann_file=files["ann_file"], outfile_prefix=only, format_only=True
    )
    assert run(metric, samples) == {}
    assert (tmp_path / "only.panoptic.json").read_text() == json.dumps(
        content, separators=(",", ":")
    ) + "\n"
    assert len(list((tmp_path / "only.panoptic").iterdir())) == len(samples)


def test_test_images_without_annotations_can_be_written(dataset, files, samples, tmp_path):
    content = json.loads(Path(files["ann_file"]).read_text())
    del content["annotations"]
    path = tmp_path / "images.json"
    path.write_text(json.dumps(content))
    options = dict(ann_file=str(path), outfile_prefix=str(tmp_path / "run"), format_only=True)
    assert run(build(dataset.metainfo, **options), samples) == {}
    assert (tmp_path / "run.panoptic.json").is_file()
    with pytest.raises(UserError, match="lacks `annotations`"):
        PanopticMetric(ann_file=str(path))


def test_a_part_of_the_images(dataset, files, samples, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        part = run(build(dataset.metainfo, **files), samples[:4])
        assert "2 of 6 images of" in caplog.text
        caplog.clear()
        run(build(dataset.metainfo, **files), samples)
        assert "were not processed" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)
    theirs = run(build(dataset.metainfo, "CocoPanopticMetric", nproc=1, **files), samples[:4])
    assert part == pytest.approx(theirs)


# ---- a set of one's own ----

CATEGORIES = [
    dict(id=40, name="sky", isthing=0),
    dict(id=7, name="cat", isthing=1),
    dict(id=9, name="grass", isthing=0),
    dict(id=2, name="dog", isthing=1),
]
CLASSES = ("cat", "dog", "sky", "grass")


class Own:
    """Three images of stuff and things in turn; PNGs are not named as images."""

    def __init__(self, root):
        self.root = root
        (root / "pan").mkdir()
        rng = np.random.default_rng(0)
        self.content = dict(images=[], annotations=[], categories=copy.deepcopy(CATEGORIES))
        self.maps, self.pred = {}, {}
        for ident in (1, 2, 3):
            gt = np.zeros((24, 30), np.int64)
            gt[12:], gt[:8, :20] = 5, 6
            gt[10:16, 4:10], gt[6:20, 14:20], gt[18:23, 1:9] = 300, 70000, 44
            kinds = {5: 9, 6: 40, 300: 7, 70000: 2, 44: 2}
            segments = [
                dict(
                    id=number,
                    category_id=category,
                    iscrowd=int(number == 44),
                    area=int((gt == number).sum()),
                    bbox=[0, 0, 9, 9],
                )
                for number, category in kinds.items()
            ]
            self.maps[ident] = gt, segments
            pred = np.where(rng.random((24, 30)) < 0.1 * ident, 0, np.roll(gt, ident, 1))
            pred[pred == 44] = 5 if ident == 1 else 44
            records = [dict(id=s["id"], category_id=s["category_id"]) for s in segments]
            present = set(np.unique(pred).tolist())
            self.pred[ident] = pred, [r for r in records if r["id"] in present]
            image = dict(id=ident, file_name=f"{ident}.jpg", height=24, width=30)
            self.content["images"].append(image)
            ann = dict(image_id=ident, file_name=f"{ident}_pan.png", segments_info=segments)
            self.content["annotations"].append(ann)
            (root / f"pan/{ident}_pan.png").write_bytes(encode_id_map(gt))
            cv2.imwrite(str(root / f"{ident}.jpg"), np.zeros((24, 30, 3), np.uint8))

    def files(self, edit=None):
        content = copy.deepcopy(self.content)
        if edit:
            edit(content)
        (self.root / "gt.json").write_text(json.dumps(content))
        return dict(ann_file=str(self.root / "gt.json"), seg_prefix=str(self.root / "pan"))

    def samples(self, classes=CLASSES):
        ids = {category["name"]: category for category in CATEGORIES}
        labels = {
            ids[name]["id"]: (label, ids[name]["isthing"])
            for label, name in enumerate(classes)
            if name in ids
        }
        return [
            dict(
                img_id=ident,
                img_path=f"{ident}.jpg",
                ori_shape=(24, 30),
                pred_panoptic_seg=dict(sem_seg=encode(pred, segments, labels, len(classes))),
            )
            for ident, (pred, segments) in self.pred.items()
        ]

    def counts(self):
        return add_counts(
            pq_statistics(gt, self.pred[ident][0], segments, self.pred[ident][1])
            for ident, (gt, segments) in self.maps.items()
        )

    def figures(self):
        figures = panoptic_figures(self.counts(), [7, 2], [40, 9])
        return {f"coco_panoptic/{name}": value for name, value in figures.items()}


@pytest.fixture
def own(tmp_path):
    return Own(tmp_path)


def no_kinds(content):
    for category in content["categories"]:
        del category["isthing"]


@pytest.mark.parametrize(
    "classes",
    [
        CLASSES,
        ("dog", "cat", "grass", "sky"),
        # The file's own order, with stuff as label 0.
        ("sky", "cat", "grass", "dog"),
        ("grass", "dog", "sky", "cat"),
    ],
)
def test_labels_count_by_the_classes(own, classes):
    figures = run(build(dict(classes=classes), **own.files()), own.samples(classes))
    assert figures == pytest.approx(own.figures(), rel=1e-12)
    assert 0 < figures["coco_panoptic/PQ_st"] < 100 and 0 < figures["coco_panoptic/PQ_th"] < 100


def test_mmdets_metric_mixes_stuff_of_label_0_with_void(own):
    """Why the test above needs no detour over PNGs, in which 0 is void."""
    classes = tuple(category["name"] for category in CATEGORIES)
    files = own.files()
    for ident, (gt, _) in own.maps.items():
        (own.root / f"pan/{ident}.png").write_bytes(encode_id_map(gt))
    theirs = run(
        build(dict(classes=classes), "CocoPanopticMetric", nproc=1, **files), own.samples(classes)
    )
    assert theirs["coco_panoptic/PQ_st"] != pytest.approx(own.figures()["coco_panoptic/PQ_st"])


def test_order_other_than_the_files_is_told(own, caplog):
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        build(dict(classes=tuple(category["name"] for category in CATEGORIES)), **own.files())
        build(dict(classes=CLASSES, label_order="classes"), **own.files())
        assert "whose order is not" not in caplog.text
        build(dict(classes=CLASSES), **own.files())
        assert "count by `metainfo.classes`, whose order is not the file's" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


def test_with_the_data_set_of_its_own(own):
    """A file without `isthing`: the data set learns it from the config, the metric from that."""
    files = own.files(no_kinds)
    dataset = CheckedCocoPanopticDataset(
        data_root=str(own.root),
        ann_file="gt.json",
        data_prefix=dict(img="", seg="pan/"),
        metainfo=dict(classes=CLASSES, thing_classes=("cat", "dog")),
        test_mode=True,
    )
    assert run(build(dataset.metainfo, **files), own.samples()) == pytest.approx(own.figures())
    labels = [s["category"] for s in dataset.get_data_info(0)["segments_info"]]
    assert labels == [3, 2, 0, 1, 1]
    # Without the file, ground truth comes from that data set, crowds as well.
    samples = own.samples()
    for index, sample in enumerate(samples):
        info = dataset.get_data_info(index)
        sample.update(segments_info=info["segments_info"], seg_map_path=info["seg_map_path"])
    assert run(build(dataset.metainfo), samples) == pytest.approx(own.figures())


def no_boxes(content):
    for ann in content["annotations"]:
        for segment in ann["segments_info"]:
            del segment["bbox"]


def test_boxes_are_what_training_needs(own):
    files = own.files(no_boxes)
    assert run(build(dict(classes=CLASSES), **files), own.samples()) == pytest.approx(own.figures())
    with pytest.raises(UserError, match="segment 5: bbox None is not 4 finite numbers"):
        CheckedCocoPanopticDataset(
            ann_file=files["ann_file"],
            data_prefix=dict(img=str(own.root), seg=str(own.root / "pan")),
            metainfo=dict(classes=CLASSES),
        )


def test_things_that_nobody_tells(own):
    files = own.files(no_kinds)
    for meta in (dict(classes=CLASSES), dict(classes=CLASSES, thing_classes=("person",))):
        with pytest.raises(UserError, match=r"thing_classes"):
            build(meta, **files)
    with pytest.raises(UserError, match=r"gt\.json: category 40 .* 3 more .*lacks"):
        build(dict(classes=CLASSES), **files)
    with pytest.raises(UserError, match="without `ann_file` the data set must tell its things"):
        build(dict(classes=CLASSES))
    # What is left over from COCO does no harm where the file tells.
    left_over = dict(classes=CLASSES, thing_classes=("person",), stuff_classes=("wall",))
    assert run(build(left_over, **own.files()), own.samples()) == pytest.approx(own.figures())


def test_table_of_classes(own, caplog):
    def edit(content):
        content["categories"].append(dict(id=3, name="cow", isthing=1))

    classes = ("cow", *CLASSES)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        metric = build(dict(classes=classes), classwise=True, **own.files(edit))
        run(metric, own.samples(classes))
    finally:
        logger.removeHandler(caplog.handler)
    rows = [line.split("|")[1:-1] for line in caplog.text.splitlines() if line.startswith("|")]
    cells = {row[0].strip(): [cell.strip() for cell in row[1:]] for row in rows}
    figures = own.figures()
    assert cells["Stuff"] == [
        *(f"{figures[f'coco_panoptic/{name}_st']:.3f}" for name in ("PQ", "SQ", "RQ")),
        "2",
    ]
    assert cells["cow"] == ["-", "-", "-", "0", "0", "0"]
    cat = own.counts()[7]
    assert cells["cat"][3:] == [str(number) for number in cat[:3]]
    assert float(cells["cat"][1]) == pytest.approx(100 * cat.iou / cat.tp, abs=1e-3)


def test_only_things(own):
    """Without a stuff category mmdet's metric divides by zero."""

    def edit(content):
        content["categories"] = [c for c in content["categories"] if c["isthing"]]
        for ann in content["annotations"]:
            ann["segments_info"] = [s for s in ann["segments_info"] if s["category_id"] in (2, 7)]

    for ident, (gt, _) in own.maps.items():
        gt[np.isin(gt, (5, 6))] = 0
        (own.root / f"pan/{ident}_pan.png").write_bytes(encode_id_map(gt))
    samples = own.samples()
    for sample in samples:
        encoded = sample["pred_panoptic_seg"]["sem_seg"]
        encoded[encoded % INSTANCE_OFFSET > 1] = 2
    figures = run(build(dict(classes=("cat", "dog")), **own.files(edit)), samples)
    assert [figures[f"coco_panoptic/{name}_st"] for name in ("PQ", "SQ", "RQ")] == [-1] * 3
    assert figures["coco_panoptic/PQ"] == figures["coco_panoptic/PQ_th"] > 10


def test_ignored_labels_are_void(own):
    samples = own.samples()
    for sample in samples:
        encoded = sample["pred_panoptic_seg"]["sem_seg"]
        rows = encoded[:, :3] == len(CLASSES)
        encoded[:, :3][rows] = 255 + 3 * INSTANCE_OFFSET
        sample["pred_panoptic_seg"]["ignore_index"] = 255
    assert run(build(dict(classes=CLASSES), **own.files()), samples) == pytest.approx(own.figures())


# ---- what cannot be used ----


def expect(words, metric, sample):
    with pytest.raises(UserError, match=f"(?s){words}"):
        metric.process({}, [sample])
    assert not metric.results


def test_predictions_that_cannot_be_used(own):
    metric = build(dict(classes=CLASSES), **own.files())
    who = r"image 1 \(1\.jpg\)"

    def changed(sem_seg):
        return dict(own.samples()[0], pred_panoptic_seg=dict(sem_seg=sem_seg))

    good = own.samples()[0]["pred_panoptic_seg"]["sem_seg"]
    none = own.samples()[0]
    del none["pred_panoptic_seg"]
    expect(f"{who} has no `pred_panoptic_seg`", metric, none)
    expect(
        rf"{who} is \[20, 30\] .*ground truth is \[24, 30\].*rescale", metric, changed(good[:, :20])
    )
    expect(rf"map of {who} is float32 of the shape \[1, 24, 30\]", metric, changed(good.float()))
    expect(rf"map of {who} is int32 of the shape \[24, 30\]", metric, changed(good[0]))
    expect(f"map of {who} holds -3", metric, changed(torch.full_like(good, -3)))
    expect(
        rf"{who} has the labels \[5, 999\]", metric, changed(torch.where(good > 999, 999, good + 1))
    )
    metric.process({}, own.samples()[:1])
    assert len(metric.results) == 1


def test_pngs_that_cannot_be_used(own):
    files = own.files()
    metric, sample = build(dict(classes=CLASSES), **files), own.samples()[1]
    path = own.root / "pan/2_pan.png"
    whole = path.read_bytes()
    who = r"gt\.json: image 2 \(2\.jpg\): "
    path.unlink()
    expect(rf"{who}its PNG .*pan/2_pan\.png cannot be read \(No such file", metric, sample)
    for broken in (b"", b"text", whole[:60]):
        path.write_bytes(broken)
        expect(rf"{who}.*2_pan\.png cannot be read as a picture", metric, sample)
    path.write_bytes(encode_id_map(own.maps[2][0].T))
    expect(rf"{who}.*2_pan\.png is \[30, 24\] .*the image is \[24, 30\]", metric, sample)
    cv2.imwrite(str(path), own.maps[2][0].astype(np.uint8))
    expect(rf"{who}.*2_pan\.png is grey of 8 bits; ids stand in three colours", metric, sample)
    cv2.imwrite(str(path), np.zeros((24, 30, 3), np.uint16))
    expect(rf"{who}.*2_pan\.png is a picture of 16 bits", metric, sample)
    path.write_bytes(whole)
    metric.process({}, [sample])


def test_ground_truth_that_contradicts_itself(own):
    sample = own.samples()[0]

    def metric(edit, **options):
        return build(dict(classes=CLASSES), **own.files(edit), **options)

    def segments(content):
        return content["annotations"][0]["segments_info"]

    who = r"gt\.json: image 1 \(1\.jpg\) \(.*1_pan\.png\): "
    lost = metric(lambda content: segments(content).pop(0))
    expect(rf"{who}segment 5 \(\d+ pixels\) is in the PNG but not .*strict=False", lost, sample)
    more = dict(id=8, category_id=7, bbox=[0, 0, 1, 1], area=1, iscrowd=0)
    ghost = metric(lambda content: segments(content).append(more))
    expect(f"{who}segment 8 is in `segments_info` but has no pixel in the PNG", ghost, sample)
    resized = metric(lambda content: segments(content)[2].update(area=9))
    expect(f"{who}segment 300 has the area 9 .*but 36 pixels", resized, sample)
    wrong = metric(lambda content: segments(content)[0].update(area=1), strict=False)
    assert run(wrong, own.samples()) == pytest.approx(own.figures(), rel=1e-12)
    # As panopticapi counts it: one more cat that was not found.
    lenient = metric(lambda content: segments(content).append(more), strict=False)
    before = metric(None)
    for each in (lenient, before):
        each.process({}, [sample])
    counts = lenient.results[0]["counts"], before.results[0]["counts"]
    assert counts[0][7].fn == counts[1][7].fn + 1
    assert {**counts[0], 7: None} == {**counts[1], 7: None}


def test_files_that_cannot_be_used(own, tmp_path):
    def expect_file(words, edit):
        with pytest.raises(UserError, match=rf"(?s)gt\.json: .*{words}"):
            build(dict(classes=CLASSES), **own.files(edit))

    def segment(**changes):
        return lambda content: content["annotations"][1]["segments_info"][0].update(changes)

    def instances(content):
        content["annotations"] = [
            dict(id=1, image_id=1, category_id=7, bbox=[1, 1, 2, 2], area=4, segmentation=[])
        ]

    expect_file("image 2 .*segment 5: unknown category_id 11", segment(category_id=11))
    expect_file("image 2 .*segment 5: iscrowd '1' must be the number 0 or 1", segment(iscrowd="1"))
    expect_file("it is a file of instances .*panoptic", instances)
    expect_file("no category is called 'dog'", lambda c: c["categories"][3].update(name="wolf"))
    with pytest.raises(FileNotFoundError, match=r"none\.json: there is no such"):
        PanopticMetric(ann_file=str(tmp_path / "none.json"))


def test_images_that_the_file_does_not_know(own):
    def edit(content):
        content["annotations"].pop()

    metric = build(dict(classes=CLASSES), **own.files(edit))
    expect(r"gt\.json: image 3 .* has no panoptic annotation", metric, own.samples()[2])
    expect(r"gt\.json: has no image 4 \(1", metric, dict(own.samples()[0], img_id=4))


def test_what_the_metric_must_be_told(own):
    metric = METRICS.build(dict(type="PanopticMetric", **own.files()))
    expect("set `dataset_meta`", metric, own.samples()[0])
    with pytest.raises(UserError, match="has no `metainfo.classes`"):
        metric.dataset_meta = {}
    with pytest.raises(UserError, match="1000 classes; .*at most 999"):
        metric.dataset_meta = dict(classes=[str(n) for n in range(1000)])
    with pytest.raises(UserError, match="format_only=True needs outfile_prefix"):
        PanopticMetric(format_only=True)
    with pytest.raises(UserError, match="no image was processed"):
        metric.compute_metrics([])
    no_folder = build(dict(classes=CLASSES), ann_file=own.files()["ann_file"])
    expect(r"where the PNG of image 1 .*give `seg_prefix`", no_folder, own.samples()[0])
    meta = dict(classes=CLASSES, thing_classes=("cat", "dog"))
    expect("image 1 .*has no ground truth; .*`meta_keys`", build(meta), own.samples()[0])


def test_it_stands_for_mmdets():
    metric = METRICS.build(dict(type="PanopticMetric"))
    assert isinstance(metric, CocoPanopticMetric) and metric.default_prefix == "coco_panoptic"
