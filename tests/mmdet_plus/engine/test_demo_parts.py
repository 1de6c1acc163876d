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
    for training, test in chains.values():
        assert test.command[1] == training.command[1]
        assert test.command[2] == str(training.folder / "iter_90.pth")
    assert len({stage.folder for chain in chains.values() for stage in chain}) == 4


def test_all_stages_read_the_demo_s_own_data(tmp_path):
    settings = demo.Settings(iterations=90, seed=7, num_train=4, num_val=2)
    for training, test in demo.plan(tmp_path, tmp_path / "shapes", settings, TOOLS).values():
        cfg = Config.fromfile(training.command[1])
        apply_options(cfg, options_of(training))
        assert cfg.train_dataloader.dataset.data_root == f"{tmp_path}/shapes/"
        assert cfg.val_dataloader is None
        cfg = Config.fromfile(test.command[1])
        apply_options(cfg, options_of(test))
        data, metric = cfg.test_dataloader.dataset, cfg.test_evaluator
        assert data.data_root + data.ann_file == metric.ann_file
        assert metric.ann_file == f"{tmp_path}/shapes/annotations/instances_val.json"


@pytest.mark.parametrize("iterations", [2, 3, 50, 601])
def test_the_schedule_ends_with_the_training(tmp_path, iterations):
    settings = demo.Settings(iterations, seed=0, num_train=4, num_val=2)
    for stage, _ in demo.plan(tmp_path, tmp_path / "shapes", settings, TOOLS).values():
        assert stage.iterations == iterations
        cfg = Config.fromfile(stage.command[1])
        apply_options(cfg, options_of(stage))
        warm_up, cosine = cfg.param_scheduler
        assert cfg.train_cfg.max_iters == cosine.end == stage.iterations
        assert 0 < warm_up.end == cosine.begin and cosine.begin + cosine.T_max == cosine.end


def test_metrics_of_the_last_test_count(tmp_path):
    for time, value in (("20260101_000000", 0.1), ("20260101_000001", 0.2)):
        metrics = {f"coco/{name}": value for name in demo.METRICS} | {"time": 1.0}
        (tmp_path / time).mkdir()
        (tmp_path / time / f"{time}.json").write_text(json.dumps(metrics))
    assert demo.read_metrics(tmp_path) == dict.fromkeys(demo.METRICS, 0.2)
    with pytest.raises(UserError, match="holds no metrics"):
        demo.read_metrics(tmp_path / "20260101_000000")


def test_table_shows_per_cent_and_the_change():
    metrics = {
        "Mask R-CNN": dict.fromkeys(demo.METRICS, 0.2),
        "MR R-CNN": dict.fromkeys(demo.METRICS, 0.234) | {"bbox_mAP": 0.1},
    }
    table = demo.comparison_table(metrics).splitlines()
    assert [line.split()[-1] for line in table] == ["AP75", "20.0", "23.4", "+3.4"]
    assert table[3].split()[1] == "-10.0"
    assert len({len(line) for line in table}) == 1


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
    truth = json.loads((shapes / "annotations" / "instances_val.json").read_text())
    found = [
        dict(
            image_id=ann["image_id"],
            category_id=ann["category_id"],
            score=0.9 if number % 2 else 0.3,
            segmentation=ann["segmentation"],
        )
        for number, ann in enumerate(truth["annotations"])
    ]
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
