"""What the demo is made of: its commands, figures and choice of pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as rle

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import demo
from mmdet_plus.engine.config import apply_options
from mmdet_plus.engine.errors import UserError
from mmseg_plus.common.progress import ProgressLine

TOOLS = Path(__file__).resolve().parents[3] / "tools"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "shapes"
    return make_shapes(root, num_train=2, num_val=4, image_size=(128, 128), progress=False)


def options_of(stage):
    """The options behind --cfg-options, as the tool would parse them."""
    start = stage.command.index("--cfg-options") + 1
    return {
        key: parsed(value) for key, _, value in (i.partition("=") for i in stage.command[start:])
    }


def parsed(value):
    if value == "None":
        return None
    return int(value) if value.isdigit() else value


def test_both_models_get_the_same_from_the_same_start(tmp_path):
    settings = demo.Settings(iterations=90, seed=7, num_train=4, num_val=2)
    chains = demo.plan(tmp_path, tmp_path / "shapes", settings, TOOLS)
    trainings = [chain[0] for chain in chains.values()]
    assert [stage.iterations for stage in trainings] == [90, 90]
    baseline, refined = map(options_of, trainings)
    assert baseline == refined
    assert baseline["randomness.seed"] == 7
    configs = [Config.fromfile(stage.command[1]) for stage in trainings]
    assert configs[0].load_from == configs[1].load_from
    assert Path(configs[0].load_from).is_file()
    assert [cfg.model.type for cfg in configs] == ["MaskRCNN", "MaskRefiningRCNN"]
    for training, test, refinement in chains.values():
        assert test.command[1] == training.command[1]
        assert test.command[2] == str(training.folder / "iter_90.pth")
        assert refinement.command[1] == options_of(test)["test_evaluator.outfile_prefix"] + (
            ".segm.json"
        )
        assert refinement.folder.is_relative_to(test.folder)
        assert test.folder.is_relative_to(training.folder)
    assert len({stage.folder for chain in chains.values() for stage in chain}) == 6


def test_all_stages_read_the_demo_s_own_data(tmp_path):
    settings = demo.Settings(iterations=90, seed=7, num_train=4, num_val=2)
    chains = demo.plan(tmp_path, tmp_path / "shapes", settings, TOOLS)
    for training, test, refinement in chains.values():
        cfg = Config.fromfile(training.command[1])
        apply_options(cfg, options_of(training))
        assert cfg.train_dataloader.dataset.data_root == f"{tmp_path}/shapes/"
        assert cfg.val_dataloader is None
        cfg = Config.fromfile(test.command[1])
        apply_options(cfg, options_of(test))
        data, metric = cfg.test_dataloader.dataset, cfg.test_evaluator
        assert data.data_root + data.ann_file == metric.ann_file
        assert metric.ann_file == f"{tmp_path}/shapes/annotations/instances_val.json"
        words = refinement.command
        assert words[words.index("--ann") + 1] == metric.ann_file
        assert words[words.index("--img-dir") + 1] == data.data_root + data.data_prefix.img[:-1]


@pytest.mark.parametrize("iterations", [2, 3, 50, 601])
def test_the_schedule_ends_with_the_training(tmp_path, iterations):
    settings = demo.Settings(iterations, seed=0, num_train=4, num_val=2)
    for stage, *_ in demo.plan(tmp_path, tmp_path / "shapes", settings, TOOLS).values():
        assert stage.iterations == iterations
        cfg = Config.fromfile(stage.command[1])
        apply_options(cfg, options_of(stage))
        warm_up, cosine = cfg.param_scheduler
        assert cfg.train_cfg.max_iters == cosine.end == stage.iterations
        assert 0 < warm_up.end == cosine.begin and cosine.begin + cosine.T_max == cosine.end


def predictions_of(shapes, shift=0):
    """The ground truth as predictions, the boxes moved to the right by ``shift`` pixels."""
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    return [
        dict(
            image_id=ann["image_id"],
            category_id=ann["category_id"],
            score=0.9,
            bbox=[ann["bbox"][0] + shift, *ann["bbox"][1:]],
            segmentation=ann["segmentation"],
        )
        for ann in truth["annotations"]
    ]


def test_boxes_and_masks_are_measured(shapes, tmp_path):
    results = tmp_path / "found.json"

    def measured(predictions):
        results.write_text(json.dumps(predictions))
        return demo.measure(shapes / "annotations" / "instances_val.json", results)

    exact = measured(predictions_of(shapes))
    assert {exact[name] for name in demo.METRICS} == {1.0}
    # Boxes that miss by more than any shape is wide; masks as they were.
    beside = measured(predictions_of(shapes, 200))
    assert beside == exact | {"bbox_mAP": 0.0}
    assert {measured([])[name] for name in demo.METRICS} == {0.0}
    results.unlink()
    with pytest.raises(UserError, match=r"found\.json: is gone; delete "):
        demo.measure(shapes / "annotations" / "instances_val.json", results)


def test_table_shows_per_cent_and_nothing_where_undefined():
    metrics = {
        "Mask R-CNN": dict(bbox_mAP=0.447, segm_mAP=0.25444, segm_mAP_75=-1, boundary_mAP=0, AF=1),
        "Mask R-CNN + BPR": dict.fromkeys(demo.METRICS, 0.2),
    }
    head, before, after = demo.figures_table(metrics).splitlines()
    assert head.split() == ["box", "AP", "mask", "AP", "mask", "AP75", "boundary", "AP", "AF"]
    assert before.split() == ["Mask", "R-CNN", "44.7", "25.4", "0.0", "100.0"]
    assert after.split() == ["Mask", "R-CNN", "+", "BPR", *["20.0"] * 5]
    assert len(head) == len(before) == len(after)


def segmentation(mask):
    return rle.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_huddles_are_neighbours_of_one_class():
    def annotation(category, x):
        mask = np.zeros((40, 60), bool)
        mask[10:20, x : x + 8] = True
        return dict(category_id=category, segmentation=segmentation(mask))

    class Truth:
        imgs = {4: None, 5: None, 6: None, 7: None}
        imgToAnns = {
            4: [annotation(1, 0), annotation(1, 30)],  # one class, far apart
            5: [annotation(1, 0), annotation(2, 9)],  # neighbours of two classes
            6: [annotation(1, 0), annotation(1, 10)],
            7: [annotation(1, 0), annotation(1, 9), annotation(1, 18)],
        }

    assert demo.huddled_images(Truth(), 3) == [7, 6, 4]


def test_pictures_show_truth_and_predictions(shapes, tmp_path):
    found = predictions_of(shapes)
    for item in found[::2]:
        item["score"] = 0.3
    results = {}
    for name, items in (("All", found), ("None", [])):
        results[name] = tmp_path / f"{name}.json"
        results[name].write_text(json.dumps(items))
    paths = demo.draw_pictures(shapes, results, tmp_path / "pictures", images=2, score_thr=0.2)
    assert [path.name for path in paths][0] == "overview.png" and len(paths) == 3
    assert paths[0].stat().st_size < 400_000
    picture = np.asarray(Image.open(paths[1]))[34 + 8 :, 8:]
    left, middle, right = (picture[:256, i * 264 : i * 264 + 256] for i in range(3))
    assert (left == middle).all()
    assert (left != right).any()

    above = demo.draw_pictures(shapes, results, tmp_path / "above", images=2, score_thr=0.5)
    assert (np.asarray(Image.open(above[1])) != np.asarray(Image.open(paths[1]))).any()


def test_a_folder_of_other_settings_is_left_alone(tmp_path):
    settings = demo.Settings(iterations=9, seed=0, num_train=2, num_val=1)
    demo._claim(tmp_path, settings)
    demo._claim(tmp_path, settings)
    with pytest.raises(UserError, match="iterations 9, .* asked for is iterations 8"):
        demo._claim(tmp_path, settings._replace(iterations=8))
    (tmp_path / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: cannot be read"):
        demo._claim(tmp_path, settings)


@pytest.mark.parametrize(
    ("change", "choices", "message"),
    [
        (dict(iterations=1), {}, "--iterations: at least 2"),
        (dict(seed=-1), {}, "--seed: at least 0"),
        (dict(num_train=1), {}, "--num-train: at least 2"),
        (dict(num_val=0), {}, "--num-val: at least 1"),
        ({}, dict(images=0), "--images: at least 1"),
        ({}, dict(score_thr=1.5), "--score-thr: a score in"),
    ],
)
def test_settings_without_meaning_make_no_folder(tmp_path, change, choices, message):
    settings = demo.Settings(iterations=9, seed=0, num_train=2, num_val=1)._replace(**change)
    with pytest.raises(UserError, match=message):
        demo.run_demo(tmp_path / "demo", settings, TOOLS, "demo", line=ProgressLine(), **choices)
    assert not (tmp_path / "demo").exists()
