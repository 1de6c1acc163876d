import pickle
from pathlib import Path

import pytest
import tiny_zoo
from mmengine.config import Config

from mmdet_plus.engine import prepare_test_cfg, prepare_train_cfg
from mmdet_plus.engine import test as run_test
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.testing import flip_pipeline, use_tta
from mmdet_plus.engine.training import build_runner

NO_MASKS = {
    "model.roi_head.mask_head": None,
    "model.roi_head.mask_roi_extractor": None,
    "test_evaluator.metric": "bbox",
}


class Trained:
    """A config and the checkpoint of a short training from it."""

    def __init__(self, folder: Path, data: Path, kind: str) -> None:
        self.config = str(tiny_zoo.write_config(folder / f"tiny-{kind}.py", data, kind))
        options = {"train_cfg.max_iters": 2, "val_cfg": None, "val_evaluator": None}
        options["val_dataloader"] = None
        work_dir = str(folder / f"work-{kind}")
        build_runner(prepare_train_cfg(self.config, work_dir, cfg_options=options)).train()
        self.checkpoint = f"{work_dir}/iter_2.pth"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    data = tiny_zoo.make_data(folder / "data", num_images=3)
    return {kind: Trained(folder, data, kind) for kind in ("mask-rcnn", "fcn")}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("kind", "metric"), [("mask-rcnn", "coco/segm_mAP"), ("fcn", "mIoU")])
def test_metrics_predictions_and_pictures(trained, tmp_path, kind, metric):
    case = trained[kind]
    cfg = prepare_test_cfg(
        case.config,
        case.checkpoint,
        work_dir="work",
        out="out.pkl",
        show_dir="shown",
        # Visualizers are global by name, and the training in this process has used the config's.
        cfg_options={"visualizer.name": f"pictures-{kind}"},
    )
    metrics = run_test(cfg, out="out.pkl")
    assert metric in metrics
    with open("out.pkl", "rb") as file:
        predictions = pickle.load(file)
    assert len(predictions) == 3
    assert sorted(path.name for path in tmp_path.glob("*.pkl")) == ["out.pkl"]
    assert not list(tmp_path.glob(".*.pkl"))
    pictures = list((tmp_path / "shown").rglob("*.png"))
    assert len(pictures) == 3


def test_flipped_views_of_a_segmenter(trained):
    case = trained["fcn"]
    cfg = prepare_test_cfg(case.config, case.checkpoint, work_dir="work", tta=True)
    assert cfg.model.type == "SegTTAModel"
    assert "mIoU" in run_test(cfg)


@pytest.mark.parametrize(
    ("options", "metric"), [({}, "coco/segm_mAP"), (NO_MASKS, "coco/bbox_mAP")]
)
def test_flipped_views_of_a_detector(trained, options, metric):
    case = trained["mask-rcnn"]
    cfg = prepare_test_cfg(
        case.config,
        case.checkpoint,
        work_dir="work",
        tta=True,
        allow_mismatch=True,
        cfg_options=options,
    )
    assert cfg.model.type == "MaskTTAModel"
    assert metric in run_test(cfg)


def test_flipped_views_of_panoptic_maps_are_refused():
    model = dict(type="PanopticFPN", panoptic_fusion_head=dict(type="HeuristicFusionHead"))
    with pytest.raises(UserError, match="this model is panoptic"):
        use_tta(Config(dict(model=model, default_scope="mmdet")))


def test_own_flipped_views_are_used():
    own = [dict(type="Own")]
    dataset = dict(type="ConcatDataset", datasets=[dict(pipeline=[1]), dict(pipeline=[2])])
    cfg = Config(
        dict(
            model=dict(type="M"),
            default_scope="mmseg",
            tta_model=dict(type="T"),
            tta_pipeline=own,
            test_dataloader=dict(dataset=dataset),
        )
    )
    use_tta(cfg)
    assert cfg.model == dict(type="T", module=dict(type="M"))
    assert [part.pipeline for part in cfg.test_dataloader.dataset.datasets] == [own, own]


def test_annotations_stay_unflipped():
    steps = ["LoadImageFromFile", "Resize", "LoadAnnotations", "PackDetInputs"]
    *before, tta = flip_pipeline([dict(type=name) for name in steps])
    assert [step["type"] for step in before] == steps[:2]
    flips, annotations, pack = tta["transforms"]
    assert [flip["prob"] for flip in flips] == [1.0, 0.0]
    assert annotations == [dict(type="LoadAnnotations")]
    assert {"img_id", "flip", "flip_direction"} <= set(pack[0]["meta_keys"])


def test_checkpoint_of_another_config(trained):
    with pytest.raises(UserError, match="these weights are not of") as info:
        run_test(
            prepare_test_cfg(
                trained["mask-rcnn"].config, trained["fcn"].checkpoint, work_dir="work"
            )
        )
    text = str(info.value)
    assert "tiny-fcn (EncoderDecoder)" in text and "(MaskRCNN)" in text
    assert "missing" in text and "unexpected" in text and "iter_2.pth" in text


def test_more_classes_than_the_checkpoint_has(trained):
    case = trained["mask-rcnn"]
    options = {"model.roi_head.bbox_head.num_classes": 7}
    cfg = prepare_test_cfg(case.config, case.checkpoint, work_dir="w", cfg_options=options)
    with pytest.raises(UserError, match=r"of another shape \(roi_head.bbox_head.fc_cls.weight"):
        run_test(cfg)


def test_other_class_names_are_warned_of(trained):
    case = trained["mask-rcnn"]
    text = Path(case.config).read_text().replace("('square', 'disc')", "('square', 'ring')")
    Path("renamed.py").write_text(text)
    coco = Path(case.config).parent / "data" / "coco.json"
    renamed = coco.with_name("renamed.json")
    renamed.write_text(coco.read_text().replace("disc", "ring"))
    options = {
        "test_dataloader.dataset.ann_file": "renamed.json",
        "test_evaluator.ann_file": str(renamed),
    }
    run_test(prepare_test_cfg("renamed.py", case.checkpoint, "work", cfg_options=options))
    log = next(Path("work").glob("*/*.log")).read_text()
    assert "label 1 is 'disc' there and 'ring' here" in log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(checkpoint="absent.pth"), "absent.pth: there is no such checkpoint file"),
        (dict(out="r.json"), "--out r.json: the name must end in .pkl"),
        (dict(out="absent/r.pkl"), "--out absent/r.pkl: its folder does not exist"),
        (
            dict(cfg_options={"test_dataloader.dataset.data_root": "absent"}),
            "absent: there is no such folder",
        ),
        (dict(cfg_options={"test_evaluator": None}), "it has no test_evaluator"),
    ],
)
def test_what_is_missing_is_named(trained, change, message):
    case = trained["mask-rcnn"]
    with pytest.raises(UserError, match=message):
        prepare_test_cfg(**{"config": case.config, "checkpoint": case.checkpoint, **change})


def test_refine_evaluates_twice_in_one_run(trained, monkeypatch):
    import mmseg_plus.bpr.refinement_metric as module

    class Keeps:
        def __init__(self, **kwargs):
            assert kwargs["iou_thr"] == 0.5

        def refine(self, image, masks):
            return masks

    monkeypatch.setattr(module, "BoundaryRefiner", Keeps)
    case = trained["mask-rcnn"]
    cfg = prepare_test_cfg(case.config, case.checkpoint, work_dir="w", refine=dict(iou_thr=0.5))
    metrics = run_test(cfg)
    for name in ("segm_mAP", "boundary_mAP", "AF", "bbox_mAP"):
        assert metrics[f"coarse/{name}"] == metrics[f"refined/{name}"]


def test_refine_needs_a_metric_of_instances(trained):
    case = trained["fcn"]
    with pytest.raises(UserError, match="--refine: .*BoundaryRefinementMetric"):
        prepare_test_cfg(case.config, case.checkpoint, refine={})
