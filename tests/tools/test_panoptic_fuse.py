"""``tools/panoptic_fuse.py``: all fusers to a PQ of 100, resuming, kills, and bad input by name."""

import json
import multiprocessing
import os
import re
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute
from panopticapi.utils import id2rgb, rgb2id
from PIL import Image
from pycocotools import mask as coco_mask

from mmdet_plus.datasets import make_shapes
from mmdet_plus.panoptic_fusion import files, fuse_heuristic, unknown_erasing
from mmdet_plus.panoptic_fusion.files import FusionSettings, fuse_files
from mmdet_plus.panoptic_fusion.files_inputs import ClassTable, ImageFiles
from mmdet_plus.panoptic_fusion.files_readers import read_probs
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import only_one

CATEGORIES = [
    dict(id=300, name="grass", isthing=0),
    dict(id=7, name="tie", isthing=1),
    dict(id=3, name="person", isthing=1),
    dict(id=20, name="sky", isthing=0),
]
NAMES = ["a.jpg", "sub/b.png", "c.jpg"]
SIZES = [(40, 56), (30, 44), (20, 24)]
#: Instances of each image, top first: category, then rows and columns of its box.
THINGS = [
    [(7, 5, 25, 5, 22), (3, 8, 28, 16, 40), (3, 20, 38, 26, 54)],
    [(3, 4, 20, 6, 20), (7, 10, 26, 14, 40)],
    [],
]
SCORES = [0.8, 0.81, 0.82]
NO_LIMIT = FusionSettings(stuff_area_limit=1)


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


def semantics(height, width):
    """Sky over grass, and nothing in the first row."""
    sem = np.full((height, width), 300)
    sem[: height // 2] = 20
    sem[0] = 0
    return sem


def write_data(root):
    """Ground truth, and results that lead to it if the instances are pasted in the right order.

    By score alone they are not: whoever lies on top has the lower score.
    """
    images, annotations, results = [], [], []
    for number, (name, (height, width), things) in enumerate(
        zip(NAMES, SIZES, THINGS, strict=True)
    ):
        stem, image_id = name[:-4], 100 + number
        images.append(dict(id=image_id, file_name=name, height=height, width=width))
        sem, panoptic, segments = semantics(height, width), np.zeros((height, width), int), []
        for place, (category, top, bottom, left, right) in enumerate(things):
            mask = np.zeros((height, width), bool)
            mask[top:bottom, left:right] = True
            results.append(
                dict(
                    image_id=image_id,
                    category_id=category,
                    score=SCORES[place],
                    ranking_score=-place,
                    segmentation=rle(mask),
                )
            )
            segments.append(dict(id=1000 * (place + 1), category_id=category))
            panoptic[mask & (panoptic == 0)] = 1000 * (place + 1)
            sem[mask] = category
        # Below the threshold, whatever the network says of it.
        if things:
            whole = rle(np.ones((height, width), bool))
            low = dict(image_id=image_id, category_id=3, score=0.4, ranking_score=9)
            results.append({**low, "segmentation": whole})
        for category in (20, 300):
            segments.append(dict(id=category, category_id=category))
            panoptic[(sem == category) & (panoptic == 0)] = category
        for segment in segments:
            segment.update(area=int((panoptic == segment["id"]).sum()), iscrowd=0, bbox=[0] * 4)
        annotations.append(dict(image_id=image_id, file_name=f"{stem}.png", segments_info=segments))
        for folder in ("gt", "sem", "labels", "occlusion", "probs"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(id2rgb(panoptic)).save(root / f"gt/{stem}.png")
        Image.fromarray(sem.astype(np.uint16)).save(root / f"sem/{stem}.png")
        ids = [category["id"] for category in CATEGORIES]
        labels = np.full_like(sem, 255)
        for label, ident in enumerate(ids):
            labels[sem == ident] = label
        # As a palette picture in one case, whose colours mean nothing.
        picture = Image.fromarray(labels.astype(np.uint8), "P" if number == 1 else "L")
        if number == 1:
            picture.putpalette(list(range(255, -1, -1)) * 3)
        picture.save(root / f"labels/{stem}.png")
        occlusion = np.triu(np.ones((len(things) + 1,) * 2))
        occlusion[-1] = 1
        occlusion[:, -1] = 0
        np.savez(root / f"occlusion/{stem}.npz", occlusion=occlusion)
        np.savez(root / f"probs/{stem}.npz", probs=probabilities(labels))
    # The records of an image need not stand together.
    results = results[::2] + results[1::2]
    content = dict(images=images, annotations=annotations, categories=CATEGORIES)
    (root / "gt.json").write_text(json.dumps(content))
    reorder_occlusion(root, results)
    (root / "results.json").write_text(json.dumps(results))


def reorder_occlusion(root, results):
    """Rows and columns in the order of the records."""
    for image_id, name in zip((100, 101), NAMES, strict=False):
        path = root / f"occlusion/{name[:-4]}.npz"
        ranks = [-r["ranking_score"] for r in results if r["image_id"] == image_id]
        order = [rank if rank >= 0 else len(ranks) - 1 for rank in ranks]
        np.savez(path, occlusion=np.load(path)["occlusion"][order][:, order])
    (root / f"occlusion/{NAMES[2][:-4]}.npz").unlink()


def probabilities(labels):
    """Sure of each pixel but those of the first row, which are of the stuff that is not below."""
    probs = np.full((4, *labels.shape), 0.02, np.float16)
    known = labels < 255
    np.put_along_axis(probs, np.where(known, labels, 0)[None], np.float16(0.94), 0)
    return probs


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuse")
    write_data(root)
    return root


class Silent:
    def show(self, text):
        pass

    def say(self, text):
        pass


def fuse(data, out, settings=NO_LIMIT, workers=0, **given):
    given = {"instances": data / "results.json", "ann_file": data / "gt.json", **given}
    if "sem" not in given and "sem_probs" not in given:
        given["sem"] = data / "sem"
    return fuse_files(out=out, settings=settings, workers=workers, line=Silent(), **given)


def pq(gt, out, gt_folder=None):
    """The official evaluation; per cent."""
    found = pq_compute(str(gt), str(out / "panoptic.json"), gt_folder and str(gt_folder))
    return 100 * found["All"]["pq"]


def maps(out):
    paths = sorted((out / "panoptic").rglob("*.png"))
    return {
        path.relative_to(out / "panoptic").as_posix(): rgb2id(np.array(Image.open(path)))
        for path in paths
    }


def fuser_options(data, fuser):
    if "occlusion" in fuser:
        return ["--occlusion", data / "occlusion"]
    return []


@pytest.fixture
def tool(run_tool):
    return partial(run_tool, "panoptic_fuse.py")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("fuser", files.FUSERS)
def test_the_right_order_gives_a_pq_of_100(data, tool, tmp_path, fuser, workers):
    code, out, err = tool(
        *(data / "results.json", "--ann", data / "gt.json", "--sem", data / "sem"),
        *("--out", "new/out", "--fuser", fuser, "--stuff-area-limit", 1, "--workers", workers),
        *fuser_options(data, fuser),
    )
    assert code == 0, err
    assert "new/out/panoptic.json: 11 segments on 3 images" in out
    found = pq(data / "gt.json", tmp_path / "new/out", data / "gt")
    assert 50 < found < 99 if fuser == "heuristic" else found == pytest.approx(100, abs=1e-9)
    assert sorted(os.listdir("new/out")) == [
        "panoptic",
        "panoptic.json",
        "settings.json",
        "stamps.json",
    ]


def test_what_is_written(data, tmp_path):
    report = fuse(data, tmp_path / "out", FusionSettings("spatial-ranking", stuff_area_limit=1))
    assert (report.images, report.segments, report.resumed) == (3, 11, 0)
    content = json.loads((tmp_path / "out/panoptic.json").read_text())
    truth = json.loads((data / "gt.json").read_text())
    assert content["images"] == truth["images"] and content["categories"] == CATEGORIES
    assert [a["file_name"] for a in content["annotations"]] == ["a.png", "sub/b.png", "c.png"]
    found = maps(tmp_path / "out")
    for annotation in content["annotations"]:
        panoptic = found[annotation["file_name"]]
        assert {s["id"] for s in annotation["segments_info"]} == set(np.unique(panoptic)) - {0}
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(panoptic == segment["id"])
            x, y = int(columns.min()), int(rows.min())
            width, height = int(columns.max()) + 1 - x, int(rows.max()) + 1 - y
            assert segment["bbox"] == [x, y, width, height]
            assert segment["area"] == len(rows) and segment["iscrowd"] == 0
            assert segment["isthing"] == (segment["category_id"] in (3, 7))
            assert ("score" in segment) == segment["isthing"]
        assert not panoptic[0].any()
    first = content["annotations"][0]["segments_info"]
    assert [(s["category_id"], s.get("score")) for s in first] == [
        (7, 0.8),
        (3, 0.81),
        (3, 0.82),
        (300, None),
        (20, None),
    ]


def test_labels_are_the_same_as_ids(data, tmp_path):
    fuse(data, tmp_path / "ids")
    settings = FusionSettings(stuff_area_limit=1, sem_values="labels", sem_order="file")
    fuse(data, tmp_path / "labels", settings, sem=data / "labels")
    ids, labels = maps(tmp_path / "ids"), maps(tmp_path / "labels")
    assert list(ids) == list(labels) == ["a.png", "c.png", "sub/b.png"]
    assert all(np.array_equal(ids[name], labels[name]) for name in ids)


#: Places in CATEGORIES, all things first.
THINGS_FIRST = [1, 2, 0, 3]


def count_things_first(data, root):
    """The same label maps and probabilities as mmdet's models count."""
    for name in NAMES:
        for folder in ("labels", "probs"):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        stem = name[:-4]
        labels = np.array(Image.open(data / f"labels/{stem}.png"))
        moved = np.full_like(labels, 255)
        for label, place in enumerate(THINGS_FIRST):
            moved[labels == place] = label
        Image.fromarray(moved).save(root / f"labels/{stem}.png")
        probs = np.load(data / f"probs/{stem}.npz")["probs"]
        np.savez(root / f"probs/{stem}.npz", probs=probs[THINGS_FIRST])


@pytest.mark.parametrize("kind", ["labels", "probs"])
def test_what_counts_things_first(data, tmp_path, tool, kind):
    count_things_first(data, tmp_path)
    options = dict(labels=["--sem-values", "labels", "--sem"], probs=["--sem-probs"])[kind]
    for folder, order in ((data, "file"), (tmp_path, "things-first")):
        code, _, err = tool(
            *(data / "results.json", "--ann", data / "gt.json", *options, folder / kind),
            *("--out", order, "--sem-order", order, "--stuff-area-limit", 1, "--workers", 0),
        )
        assert code == 0, err
        settings = json.loads(Path(order, "settings.json").read_text())["settings"]
        assert settings["sem_order"] == order
    one, other = maps(tmp_path / "file"), maps(tmp_path / "things-first")
    assert all(np.array_equal(one[name], other[name]) and one[name].any() for name in one)
    # The other reading, and none at all.
    wrong = FusionSettings(stuff_area_limit=1, sem_order="file")
    if kind == "labels":
        wrong = replace(wrong, sem_values="labels")
    given = {options[-1][2:].replace("-", "_"): tmp_path / kind}
    fuse(data, tmp_path / "wrong", wrong, **given)
    assert not np.array_equal(maps(tmp_path / "wrong")["a.png"], one["a.png"])
    code, _, err = tool(
        *(data / "results.json", "--ann", data / "gt.json", *options, tmp_path / kind),
        *("--out", "none", "--workers", 0),
    )
    assert code == 2 and "say --sem-order file if" in err and "--sem-order things-first if" in err
    assert {"labels": "gt.json: ", "probs": "probs/a.npz: "}[kind] in err
    assert not Path("none/panoptic.json").exists()


def test_no_order_is_asked_for_where_both_are_the_same(data, tmp_path):
    count_things_first(data, tmp_path)
    (tmp_path / "gt.json").write_text((data / "gt.json").read_text())
    ann_file = write_ann(tmp_path, categories=[CATEGORIES[i] for i in THINGS_FIRST])
    for order in (None, "file", "things-first"):
        settings = FusionSettings(stuff_area_limit=1, sem_values="labels", sem_order=order)
        for kind in ("sem", "sem_probs"):
            folder = tmp_path / dict(sem="labels", sem_probs="probs")[kind]
            out = tmp_path / f"{order}-{kind}"
            fuse(data, out, settings, ann_file=ann_file, **{kind: folder})
            expected = maps(tmp_path / f"None-{kind}")
            assert all(np.array_equal(maps(out)[name], expected[name]) for name in expected)


def test_every_threshold_arrives(data, tool):
    code, _, err = tool(
        *(data / "results.json", "--ann", data / "gt.json", "--sem-probs", data / "probs"),
        *("--out", "out", "--fuser", "soft-occlusion", "--occlusion", data / "occlusion"),
        *("--score-thr", 0.3, "--overlap-thr", 0.4, "--stuff-area-limit", 5, "--sigma", 2),
        *("--occlusion-thr", 0.1, "--erase-unknown", "--erase-threshold", 0.7),
        *("--erase-dilation", 2, "--workers", 0, "--sem-order", "file"),
    )
    assert code == 0, err
    assert json.loads(Path("out/settings.json").read_text())["settings"] == dict(
        fuser="soft-occlusion",
        score_thr=0.3,
        overlap_thr=0.4,
        stuff_area_limit=5,
        sem_values="ids",
        sem_order="file",
        occlusion_thr=0.1,
        sigma=2,
        erase_unknown=True,
        erase_threshold=0.7,
        erase_dilation=2,
    )


def test_settings_change_what_they_should(data, tmp_path):
    def segments(name, **settings):
        occlusion = data / "occlusion" if "occlusion" in settings.get("fuser", "") else None
        settings = FusionSettings(**{"stuff_area_limit": 1, **settings})
        fuse(data, tmp_path / name, settings, occlusion=occlusion)
        content = json.loads((tmp_path / name / "panoptic.json").read_text())
        return [len(a["segments_info"]) for a in content["annotations"]]

    assert segments("usual") == [5, 4, 2]
    assert segments("strict", score_thr=0.815) == [3, 2, 2]
    # The weak one comes last and gets the first row.
    assert segments("lax", score_thr=0.4, overlap_thr=1.0) == [4, 3, 2]
    # Segments without a pixel, which there are without limits, are none.
    bare = dict(score_thr=0.4, overlap_thr=1.0, stuff_area_limit=0)
    assert segments("bare", **bare) == [4, 3, 2]
    assert segments("large", stuff_area_limit=220) == [5, 4, 1]
    assert segments("covered", overlap_thr=0.1) == [4, 3, 2]
    soft = dict(fuser="soft-occlusion")
    assert segments("soft", **soft) == [5, 4, 2]
    order = {}
    for name, more in (("soft", {}), ("blunt", dict(sigma=1e6)), ("apart", dict(occlusion_thr=1))):
        segments(name, **soft, **more)
        content = json.loads((tmp_path / name / "panoptic.json").read_text())
        infos = content["annotations"][0]["segments_info"]
        order[name] = [s["score"] for s in infos if s["isthing"]]
    assert order["soft"] == [0.8, 0.81, 0.82]
    assert order["blunt"] == order["apart"] == [0.82, 0.81, 0.8]


def things_in_one(data, folder):
    """The same probabilities as things, then the stuff."""
    for name in NAMES:
        path = folder / name.replace(name[-4:], ".npz")
        path.parent.mkdir(parents=True, exist_ok=True)
        probs = np.load(data / "probs" / f"{name[:-4]}.npz")["probs"]
        np.savez_compressed(path, probs=np.stack([probs[1] + probs[2], probs[0], probs[3]]))


def test_erasing(data, tmp_path):
    erase = FusionSettings(stuff_area_limit=1, erase_unknown=True, sem_order="file")
    fuse(data, tmp_path / "sem")
    fuse(data, tmp_path / "kept", replace(erase, erase_unknown=False), sem_probs=data / "probs")
    fuse(data, tmp_path / "erased", erase, sem_probs=data / "probs")
    things_in_one(data, tmp_path / "three")
    # Its channels have but one order.
    fuse(data, tmp_path / "erased-3", replace(erase, sem_order=None), sem_probs=tmp_path / "three")
    fuse(data, tmp_path / "both", erase, sem=data / "sem", sem_probs=data / "probs")
    sem, kept = maps(tmp_path / "sem"), maps(tmp_path / "kept")
    for name in sem:
        # The first row is grass in the sky: sure, but a mere line.
        assert not sem[name][0].any() and kept[name][0].all()
        assert np.array_equal(sem[name][1:] > 0, kept[name][1:] > 0)
        for other in ("erased", "erased-3", "both"):
            assert np.array_equal(maps(tmp_path / other)[name], sem[name])


def test_erasing_is_the_functions(data, tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "probs/sub").mkdir(parents=True)
    for name, size in zip(NAMES, SIZES, strict=True):
        coarse = rng.random((4, -(-size[0] // 4), -(-size[1] // 4))) ** 4
        probs = coarse.repeat(4, 1).repeat(4, 2)[:, : size[0], : size[1]]
        np.savez(tmp_path / f"probs/{name[:-4]}.npz", probs=probs / probs.sum(0))
    erase = FusionSettings(
        stuff_area_limit=1,
        erase_unknown=True,
        erase_threshold=0.6,
        erase_dilation=1,
        sem_order="file",
    )
    empty = tmp_path / "none.json"
    empty.write_text("[]")
    fuse(data, tmp_path / "out", erase, instances=empty, sem_probs=tmp_path / "probs")
    found = maps(tmp_path / "out")
    erased = 0
    for name in NAMES:
        probs = np.load(tmp_path / f"probs/{name[:-4]}.npz")["probs"]
        labels = unknown_erasing(probs, 0.6, 1, [0, 3], 9)
        erased += (labels == 9).sum()
        numbers = np.array([1, 0, 0, 2, 0, 0, 0, 0, 0, 0])[labels]
        none = (np.zeros((0, *labels.shape), bool), np.zeros(0), np.zeros(0))
        expected, _ = fuse_heuristic(*none, numbers, stuff_area_limit=1)
        assert np.array_equal(found[f"{name[:-4]}.png"], expected)
    assert erased > 100


def test_half_precision_and_many_classes_sum_to_one(tmp_path):
    """As saved: no sum is exact, and none is refused."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(133, *SIZES[2])) * 3
    probs = np.exp(logits) / np.exp(logits).sum(0)
    for kind in (np.float16, np.float32, np.float64):
        np.savez(tmp_path / "c.npz", probs=probs.astype(kind))
        table = ClassTable([dict(id=n, isthing=int(n < 80)) for n in range(133)], "ids")
        image = ImageFiles(1, *SIZES[2], "c.png", [], [], dict(probs=tmp_path / "c.npz"), "")
        assert read_probs(image, table)[0].shape == probs.shape


def test_shapes_from_their_own_ground_truth(tmp_path):
    make_shapes(tmp_path, 0, 3, (96, 80), seed=3, progress=False)
    truth = json.loads((tmp_path / "annotations/instances_val.json").read_text())
    results = [
        {key: ann[key] for key in ("image_id", "category_id", "segmentation")} | {"score": 1}
        for ann in truth["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    gt = tmp_path / "annotations/panoptic_val.json"
    fuse(
        *(tmp_path, tmp_path / "out", FusionSettings(stuff_area_limit=1, sem_values="labels")),
        ann_file=gt,
        sem=tmp_path / "stuff_val",
    )
    assert pq(gt, tmp_path / "out", tmp_path / "panoptic_val") == pytest.approx(100, abs=1e-9)


def write_ann(root, **changes):
    content = json.loads((root / "gt.json").read_text())
    (root / "ann.json").write_text(json.dumps({**content, **changes}))
    return root / "ann.json"


def test_nothing_to_fuse(data, tmp_path):
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "sem/sub").mkdir(parents=True)
    for name, size in zip(NAMES, SIZES, strict=True):
        Image.fromarray(np.zeros(size, np.uint8)).save(tmp_path / f"sem/{name[:-4]}.png")
    nothing = dict(instances=tmp_path / "none.json", sem=tmp_path / "sem")
    fuse(data, tmp_path / "void", FusionSettings("occlusion"), occlusion=tmp_path, **nothing)
    assert not any(panoptic.any() for panoptic in maps(tmp_path / "void").values())
    content = json.loads((tmp_path / "void/panoptic.json").read_text())
    assert [a["segments_info"] for a in content["annotations"]] == [[], [], []]

    (tmp_path / "gt.json").write_text((data / "gt.json").read_text())
    no_images = write_ann(tmp_path, images=[])
    assert fuse(data, tmp_path / "no", ann_file=no_images, **nothing).images == 0
    # One class alone, and it is everywhere.
    one = write_ann(tmp_path, categories=[dict(id=0, name="all", isthing=0)])
    assert fuse(data, tmp_path / "one", ann_file=one, **nothing).segments == 3
    assert all((panoptic == 1).all() for panoptic in maps(tmp_path / "one").values())


def times(out):
    return {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}


class Stop(Exception):
    pass


def stop_at(monkeypatch, name):
    """Let the image of this name fail; the returned list tells which ones were fused."""
    fused, real = [], files.fuse_image

    def fuse_image(inputs, image, settings):
        if image.png == name:
            raise Stop
        fused.append(image.png)
        return real(inputs, image, settings)

    monkeypatch.setattr(files, "fuse_image", fuse_image)
    return fused


def test_resuming(data, tmp_path, monkeypatch):
    fuse(data, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, "c.png")
        fuse(data, out)
    assert sorted(maps(out)) == ["a.png", "sub/b.png"] and not (out / "panoptic.json").exists()
    before = times(out)
    # A PNG without its record was written by a run that was killed right then.
    (out / ".unfinished/1.json").unlink()
    fused = stop_at(monkeypatch, None)
    report = fuse(data, out)
    assert fused == ["sub/b.png", "c.png"] and report.resumed == 1
    assert times(out)[out / "panoptic/a.png"] == before[out / "panoptic/a.png"]
    for name in ("panoptic.json", "panoptic/a.png", "panoptic/sub/b.png", "panoptic/c.png"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    # Finished: nothing is done again but what is not there.
    before, written = times(out), (out / "panoptic.json").stat().st_mtime_ns
    assert fuse(data, out).resumed == 3 and len(fused) == 2
    assert times(out) == before and (out / "panoptic.json").stat().st_mtime_ns == written
    (out / "panoptic/a.png").unlink()
    assert fuse(data, out).resumed == 2 and fused[2:] == ["a.png"]
    assert (out / "panoptic.json").read_bytes() == (tmp_path / "whole/panoptic.json").read_bytes()
    assert not list(tmp_path.rglob("*.part")) and not (out / ".unfinished").exists()


def test_an_image_whose_files_have_changed_is_made_again(data, tmp_path, monkeypatch):
    (tmp_path / "sem/sub").mkdir(parents=True)
    for path in (data / "sem").rglob("*.png"):
        (tmp_path / "sem" / path.relative_to(data / "sem")).write_bytes(path.read_bytes())
    changed = tmp_path / "sem/a.png"
    good = changed.read_bytes()
    changed.write_bytes(good[:60])
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"sem/a.png: cannot be read as a picture"):
        fuse(data, out, sem=tmp_path / "sem")
    changed.write_bytes(good)
    fused = stop_at(monkeypatch, None)
    fuse(data, out, sem=tmp_path / "sem")
    assert len(fused) == 3
    sem = np.array(Image.open(changed))
    sem[10:] = 0
    Image.fromarray(sem).save(changed)
    assert fuse(data, out, sem=tmp_path / "sem").resumed == 2 and fused[3:] == ["a.png"]
    assert not maps(out)["a.png"][-1].any()


def test_other_settings_or_inputs_are_refused(data, tmp_path):
    out = tmp_path / "out"
    fuse(data, out)
    before = times(out)
    with pytest.raises(UserError, match=r"\(score_thr was 0.5, is 0.6\); give another --out, or"):
        fuse(data, out, FusionSettings(stuff_area_limit=1, score_thr=0.6))
    with pytest.raises(UserError, match=r"\(files\)"):
        fuse(data, out, sem_probs=data / "probs")
    records = json.loads((data / "results.json").read_text())
    (tmp_path / "fewer.json").write_text(json.dumps(records[1:]))
    with pytest.raises(UserError, match=r"out: was begun with other inputs or settings \(instanc"):
        fuse(data, out, instances=tmp_path / "fewer.json")
    # What the fuser does not read does not matter.
    fuse(data, out, FusionSettings(stuff_area_limit=1, sigma=4.0, erase_dilation=9))
    assert times(out) == before


def test_the_folder_of_somebody_else(data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/panoptic.json").write_text("precious")
    with pytest.raises(UserError, match=r"out: holds other files; give another --out"):
        fuse(data, tmp_path / "out")
    assert (tmp_path / "out/panoptic.json").read_text() == "precious"
    assert os.listdir(tmp_path / "out") == ["panoptic.json"]
    (tmp_path / "out/settings.json").write_text("[1]")
    with pytest.raises(UserError, match=r"out/settings.json: cannot be read"):
        fuse(data, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file: is a file; give the name of a folder"):
        fuse(data, tmp_path / "file")


def fuse_and_hang(data, out, reached):
    """Fuse with workers, one of which never comes to an end."""
    real = files.fuse_image

    def fuse_image(inputs, image, settings):
        if image.png == "sub/b.png":
            reached.set()
            time.sleep(600)
        return real(inputs, image, settings)

    files.fuse_image = fuse_image
    fuse(data, out, workers=2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="spawned workers know nothing of the stand-in")
def test_a_kill(data, tmp_path, monkeypatch):
    out, context = tmp_path / "out", multiprocessing.get_context("fork")
    reached = context.Event()
    process = context.Process(target=fuse_and_hang, args=(data, out, reached))
    process.start()
    try:
        assert reached.wait(60)
        end = time.monotonic() + 60
        while not (out / ".unfinished/2.json").exists():
            assert process.is_alive() and time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
        process.join()
    assert sorted(maps(out)) == ["a.png", "c.png"]
    # The workers notice that they are alone, and let go of the folder.
    with only_one(out, patience=60):
        pass
    fused = stop_at(monkeypatch, None)
    assert fuse(data, out).resumed == 2 and fused == ["sub/b.png"]
    fuse(data, tmp_path / "whole")
    assert (out / "panoptic.json").read_bytes() == (tmp_path / "whole/panoptic.json").read_bytes()


def test_errors_of_workers_arrive(data, tmp_path):
    (tmp_path / "sem/sub").mkdir(parents=True)
    for name in NAMES:
        Image.new("RGB", (9, 9)).save(tmp_path / f"sem/{name[:-4]}.png")
    with pytest.raises(UserError, match=r"sem/a.png: is a picture of mode RGB"):
        fuse(data, tmp_path / "out", workers=2, sem=tmp_path / "sem")


def bad_record(**changes):
    def change(root):
        records = json.loads((root / "results.json").read_text())
        records[1] = {key: v for key, v in {**records[1], **changes}.items() if v is not None}
        (root / "results.json").write_text(json.dumps(records))

    return change


def bad_text(name, text):
    return lambda root: (root / name).write_text(text)


def bad_image(array):
    return lambda root: Image.fromarray(array).save(root / "sem/a.png")


def bad_array(name, **arrays):
    return lambda root: np.savez(root / name, **arrays)


def one_pixel_low():
    probs = np.full((4, *SIZES[0]), 0.25, np.float32)
    probs[:, 7, 5] = 0.225
    return probs


def bad_ann(**changes):
    return lambda root: write_ann(root, **changes).rename(root / "gt.json")


WHO = r"results.json: record 1 \(image_id 101\): "
SIZE = SIZES[0]
PAIRS = "occlusion/a.npz"
ERASE = FusionSettings(erase_unknown=True, sem_order="file")
RANKING = FusionSettings("spatial-ranking")
HARD = FusionSettings("occlusion")
BAD = [
    (lambda root: (root / "results.json").unlink(), "results.json: there is no such file"),
    (bad_text("results.json", '[{"im'), "results.json: not a JSON file"),
    (bad_text("results.json", "{}"), "results.json: holds a dict, not a list of COCO results"),
    (bad_text("results.json", "[3]"), "results.json: record 0: is a int, not an object"),
    (bad_record(image_id=101, category_id=5), WHO + "unknown category_id 5; .*gt.json has no"),
    (bad_record(image_id=101, category_id=20), WHO + "category_id 20 is stuff; instances are of"),
    (bad_record(image_id=9), r"record 1 \(image_id 9\): unknown image_id 9; .*gt.json has no"),
    (bad_record(image_id=[]), r"record 1 .*: unknown image_id \[\]"),
    (bad_record(image_id=101, score=float("nan")), WHO + "score nan is not a finite number"),
    (bad_record(image_id=101, score=None), WHO + "score None is not a finite number"),
    (bad_record(image_id=101, segmentation=None), WHO + "has no segmentation"),
    (
        bad_record(image_id=101, segmentation={"size": [3, 4], "counts": "<"}),
        WHO + r"its RLE has size \[3, 4\] but the image is \[30, 44\]",
    ),
    (
        bad_record(image_id=101, segmentation={"size": [30, 44], "counts": "11"}),
        WHO + "the counts of its RLE do not add up",
    ),
    (lambda root: (root / "gt.json").unlink(), "gt.json: there is no such annotation file"),
    (bad_ann(categories=[]), "gt.json: `categories` is empty"),
    (
        bad_ann(categories=[dict(id=3, name="x")]),
        r"gt.json: category 3 \(record 0 of `categories`\): isthing None must be 1 \(thing\) or",
    ),
    (
        bad_ann(images=[dict(id=i, file_name=f"x.{i}", height=3, width=3) for i in (1, 2)]),
        "gt.json: images 1 and 2: both would be written to x.png",
    ),
    (
        bad_ann(images=[dict(id=1, file_name="../x.jpg", height=3, width=3)]),
        "gt.json: image 1 .*leaves the image folder",
    ),
    (
        lambda root: (root / "sem/sub/b.png").unlink(),
        "gt.json: image 101: .*sem/sub/b.png does not exist; put the image's semantic maps there",
    ),
    (bad_text("sem/a.png", "no picture"), "sem/a.png: cannot be read as a picture"),
    (bad_image(np.zeros((4, 5, 3), np.uint8)), "sem/a.png: is a picture of mode RGB"),
    (
        bad_image(np.zeros((4, 5), np.uint8)),
        r"sem/a.png: is \[4, 5\] \(height, width\) but image 100 is \[40, 56\]; encode",
    ),
    (
        bad_image(np.full(SIZE, 21, np.uint8)),
        "sem/a.png: holds 21, which no class is; .*must be category ids .*say --sem-values labels",
    ),
    (
        bad_image((np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) + 40000).astype(np.uint16)),
        "sem/a.png: holds 40000, 40001, .*, 40007 and more, which no class is",
    ),
    (
        bad_image(np.full(SIZE, 4, np.uint8)),
        "holds 4, .* must be labels, 0 to 3 for `categories` in their order, 255 for none",
        FusionSettings(sem_values="labels", sem_order="file"),
    ),
    (
        bad_image(np.full(SIZE, 4, np.uint8)),
        "holds 4, .* 0 to 3 for `categories` with all things first, 255 for none",
        FusionSettings(sem_values="labels", sem_order="things-first"),
    ),
    (
        bad_array("probs/a.npz", probs=np.ones((4, *SIZE), np.float16)),
        "probs/a.npz: `probs` is 4 in all over the classes at row 0, column 0; .* save the softmax",
        ERASE,
    ),
    (
        bad_array("probs/a.npz", probs=one_pixel_low()),
        "probs/a.npz: `probs` is 0.9 in all over the classes at row 7, column 5; .* must sum to 1",
        ERASE,
    ),
    (bad_record(image_id=101, ranking_score=None), WHO + "ranking_score None is not", RANKING),
    (
        lambda root: (root / "probs/c.npz").unlink(),
        "image 102: .*probs/c.npz does not exist; put the image's probabilities there",
        ERASE,
    ),
    (bad_array("probs/a.npz", p=1), "probs/a.npz: holds `p`, but no `probs`; write it", ERASE),
    (bad_text("probs/a.npz", "zip?"), "probs/a.npz: cannot be read as an .npz file", ERASE),
    (
        bad_array("probs/a.npz", probs=np.zeros((4, *SIZE), np.uint8)),
        "probs/a.npz: `probs` is uint8 of shape",
        ERASE,
    ),
    (
        bad_array("probs/a.npz", probs=np.zeros((5, *SIZE))),
        "probs/a.npz: `probs` has 5 channels; it must have 4, .* or 3: things as one",
        ERASE,
    ),
    (
        bad_array("probs/a.npz", probs=np.zeros((4, 20, 28))),
        r"probs/a.npz: is \[20, 28\] .* image 100 is \[40, 56\]; resize them to the image",
        ERASE,
    ),
    (
        bad_array("probs/a.npz", probs=np.full((4, *SIZE), 2.0)),
        r"probs/a.npz: `probs` is not in \[0, 1\]; if these are logits",
        ERASE,
    ),
    (
        bad_array("probs/a.npz", probs=np.full((4, *SIZE), np.nan)),
        r"probs/a.npz: `probs` is not in \[0, 1\]",
        ERASE,
    ),
    (lambda root: (root / PAIRS).unlink(), "image 100: .*a.npz does not exist; put .*occl", HARD),
    (
        bad_array(PAIRS, occlusion=np.zeros((3, 3))),
        r"a.npz: `occlusion` is float64 of shape \[3, 3\]; it must be numbers of shape \[4, 4\], ",
        HARD,
    ),
    (bad_array(PAIRS, occlusion=np.full((4, 4), 1.5)), r"a.npz: .* not in \[0, 1\]", HARD),
    (bad_array(PAIRS, occlusion=np.full((4, 4), np.nan)), r"a.npz: .* not in \[0, 1\]", HARD),
    (
        bad_array(PAIRS, occlusion=np.full((4, 4), None)),
        r"a.npz: cannot be read as an .npz file \(Object arrays cannot be loaded",
        HARD,
    ),
]


@pytest.mark.parametrize("case", BAD, ids=[re.sub(r"\W+", " ", case[1])[:60] for case in BAD])
def test_bad_input_is_named(tmp_path, case):
    change, message, settings = (*case, NO_LIMIT)[:3]
    write_data(tmp_path)
    change(tmp_path)
    given = {}
    if settings is ERASE:
        given = dict(sem_probs=tmp_path / "probs")
    elif settings is HARD:
        given = dict(sem=tmp_path / "sem", occlusion=tmp_path / "occlusion")
    with pytest.raises(UserError, match=message):
        fuse(tmp_path, tmp_path / "out", settings, **given)
    assert not (tmp_path / "out/panoptic.json").exists()
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "there is no semantic map; give --sem, or --sem-probs"),
        (("--sem", "x", "--erase-unknown"), "--erase-unknown judges regions by probabilities"),
        (("--sem", "x", "--sem-probs", "y"), "--sem-probs is of no use beside --sem"),
        (("--sem", "x", "--fuser", "occlusion"), "--fuser occlusion needs --occlusion"),
        (("--sem", "x", "--occlusion", "y"), "--occlusion is of no use to --fuser heuristic"),
        (("--sem", "x", "--sem-order", "file"), "--sem-order is of no use to category ids; say"),
        (("--sem", "x", "--sigma", "0"), "--sigma 0.0: must be a positive number"),
        (("--sem", "nowhere"), "nowhere: there is no such folder of semantic maps"),
    ],
)
def test_options_that_do_not_go_together(data, tool, options, message):
    code, _, err = tool(data / "results.json", "--ann", data / "gt.json", "--out", "out", *options)
    assert code == 2 and err.startswith("error: ") and message in err
    assert not Path("out").exists()


def test_values_that_cannot_be(data, tool, tmp_path):
    for option, value in (("--fuser", "best"), ("--overlap-thr", "2"), ("--erase-dilation", "-1")):
        code, _, err = tool("r.json", "--ann", "a.json", "--out", "o", option, value)
        assert code == 2 and option in err
    for settings in (
        FusionSettings("best"),
        FusionSettings(sem_values="rgb"),
        FusionSettings(sem_values="labels", sem_order="any"),
    ):
        with pytest.raises(UserError, match="best|rgb|--sem-order any: say file or things-first"):
            fuse(data, tmp_path / "out", settings)
