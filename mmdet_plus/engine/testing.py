"""What ``tools/test.py`` does."""

import copy
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.runner import Runner

from mmdet_plus.engine.class_match import add_class_match
from mmdet_plus.engine.config import add_hook, add_import, load_config, scope_of, set_work_dir
from mmdet_plus.engine.data_check import check_data
from mmdet_plus.engine.distributed import prepare_distributed
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.training import (
    build_runner,
    limit_dynamo_cache,
    require_checkpoint,
    require_keys,
)
from mmseg_plus.common.compat import use_safe_checkpoint_loading

# By scope: how pictures are drawn, results dumped and flipped views merged.
_HOOKS = {"mmdet": "DetVisualizationHook", "mmseg": "SegVisualizationHook"}
_VISUALIZERS = {"mmdet": "DetLocalVisualizer", "mmseg": "SegLocalVisualizer"}
_DUMPS = {"mmdet": "DumpDetResults"}
_TTA_MODELS = {
    "mmdet": dict(
        type="MaskTTAModel",
        tta_cfg=dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
    "mmseg": dict(type="SegTTAModel"),
}


def prepare_test_cfg(
    config: str,
    checkpoint: str,
    work_dir: str | None = None,
    out: str | None = None,
    show: bool = False,
    show_dir: str | None = None,
    wait_time: float = 2,
    tta: bool = False,
    refine: dict | None = None,
    allow_mismatch: bool = False,
    cfg_options: dict | None = None,
    launcher: str = "none",
) -> Config:
    """Turn the command line's choices into a config that a runner can be built from.

    Under a launcher on a machine without a GPU this opens the process group.

    Args:
        config: Path or name of the config, of scope mmdet or mmseg.
        checkpoint: The weights to test.
        work_dir: Folder for the log; the config's, or one named after it, if None.
        out: A ``.pkl`` file for the predictions.
        show: Show each picture in a window.
        show_dir: Folder for pictures of the predictions.
        wait_time: Seconds for which a window stays.
        tta: Average over the image and its mirror image (or what the config's ``tta_pipeline``
            says).
        refine: Also evaluate the masks with refined boundaries; arguments of
            :class:`mmseg_plus.bpr.BoundaryRefiner`, all at their defaults if empty.
        allow_mismatch: Go on where the checkpoint does not fit the model.
        cfg_options: Dotted keys and new values.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Returns:
        The config.

    Raises:
        UserError: Config, checkpoint or data are missing, or a choice does not fit the config.
    """
    cfg = load_config(config, cfg_options)
    require_keys(cfg, "model", "test_dataloader", "test_cfg", "test_evaluator")
    require_checkpoint(checkpoint)
    set_work_dir(cfg, work_dir)
    cfg.load_from, cfg.resume = checkpoint, False
    _leave_out_scaffolding(cfg.model)
    if show or show_dir:
        _draw(cfg, show, show_dir, wait_time)
    if refine is not None:
        use_refinement(cfg, refine)
    if out:
        _dump(cfg, out)
    check_data(cfg, ("test_dataloader",))
    use_safe_checkpoint_loading()
    limit_dynamo_cache(cfg)
    prepare_distributed(cfg, launcher)
    if tta:
        use_tta(cfg)
    add_hook(cfg, dict(type="mmengine.CheckpointMatchHook", allow_mismatch=allow_mismatch))
    add_class_match(cfg)
    add_import(cfg, "mmdet_plus.engine")
    return cfg


def begin_test(runner: Runner) -> None:
    """Load the checkpoint and begin a test as mmengine's own goes, for loops of another kind.

    Args:
        runner: Built from a config of :func:`prepare_test_cfg`. Its model is in evaluation mode
            afterwards.

    Raises:
        UserError: The checkpoint does not fit the model.
    """
    # Hooks check the weights, and may exchange them.
    runner.call_hook("before_run")
    runner.load_or_resume()
    runner.call_hook("before_test")
    runner.call_hook("before_test_epoch")
    runner.model.eval()


def test(cfg: Config, out: str | None = None) -> dict:
    """Test.

    Args:
        cfg: From :func:`prepare_test_cfg`.
        out: The file for the predictions that the config was prepared with.

    Returns:
        The metrics.
    """
    metrics = build_runner(cfg).test()
    if out and is_main_process():
        os.replace(_partial(out), out)
    return metrics


# pytest takes imported functions of this name for tests of its own.
test.__test__ = False


def _leave_out_scaffolding(model: dict) -> None:
    """Build no part that only training runs: MaskPlus's quasi-multitask branch."""
    roi_head = model.get("roi_head") or {}
    if roi_head.get("quasi_multitask"):
        roi_head["quasi_multitask"] = None


def _draw(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    scope = scope_of(cfg)
    hooks = cfg.setdefault("default_hooks", ConfigDict())
    if "visualization" not in hooks:
        if scope not in _HOOKS:
            raise UserError(
                f"--show, --show-dir: {cfg.filename} has no default_hooks.visualization"
            )
        hooks["visualization"] = dict(type=_HOOKS[scope])
    if not cfg.get("visualizer") and scope in _VISUALIZERS:
        backends = [dict(type="LocalVisBackend")]
        cfg.visualizer = dict(type=_VISUALIZERS[scope], vis_backends=backends, name="visualizer")
    hook = hooks["visualization"]
    hook["draw"] = True
    if show:
        hook.update(show=True, wait_time=wait_time)
    if show_dir and scope == "mmseg":
        # This hook draws one batch in fifty unless told otherwise.
        hook["interval"] = 1
        cfg.visualizer["save_dir"] = show_dir
    elif show_dir:
        # mmdet puts a relative folder below the run's log folder.
        hook["test_out_dir"] = os.path.abspath(show_dir)


def _dump(cfg: Config, out: str) -> None:
    if not out.endswith((".pkl", ".pickle")):
        raise UserError(f"--out {out}: the name must end in .pkl")
    if not Path(out).absolute().parent.is_dir():
        raise UserError(f"--out {out}: its folder does not exist")
    metric = dict(type=_DUMPS.get(scope_of(cfg), "DumpResults"), out_file_path=_partial(out))
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, dict) and "metrics" in evaluator:
        metrics = evaluator["metrics"]
        evaluator["metrics"] = [*(metrics if isinstance(metrics, list) else [metrics]), metric]
    else:
        cfg.test_evaluator = [*(evaluator if isinstance(evaluator, list) else [evaluator]), metric]


def _partial(out: str) -> str:
    path = Path(out)
    return str(path.with_name(f".{path.stem}.partial.pkl"))


def use_tta(cfg: Config) -> None:
    """Wrap a config's model for test-time augmentation.

    Args:
        cfg: Changed in place. Its own ``tta_model`` and ``tta_pipeline`` are used where it has
            them; otherwise the image and its mirror image are merged the way of its scope.

    Raises:
        UserError: The scope has no default, or the model predicts panoptic maps, of which no way
            of merging is known.
    """
    scope = scope_of(cfg)
    if not cfg.get("tta_model"):
        if scope not in _TTA_MODELS:
            raise UserError(f"--tta: {cfg.filename} has no tta_model, and scope {scope} no default")
        cfg.tta_model = copy.deepcopy(_TTA_MODELS[scope])
    if cfg.tta_model.get("type") == "MaskTTAModel":
        if _predicts_panoptic_maps(cfg.model):
            raise UserError("--tta merges boxes and instance masks; this model is panoptic")
        add_import(cfg, "mmdet_plus.evaluation")
        importlib.import_module("mmdet_plus.evaluation")
    for dataset in _leaf_datasets(cfg.test_dataloader.dataset):
        own = cfg.get("tta_pipeline")
        dataset.pipeline = copy.deepcopy(own) if own else flip_pipeline(dataset.pipeline)
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def use_refinement(cfg: Config, refiner: dict) -> None:
    """Have a detector's test tell the figures before and after refinement of the boundaries.

    Args:
        cfg: Changed in place. ``CocoMetric`` becomes ``BoundaryMetric``, which adds boundary AP and
            AF to its figures.
        refiner: Arguments of :class:`mmseg_plus.bpr.BoundaryRefiner`.

    Raises:
        UserError: The config has no single metric of instance masks.
    """
    evaluator = cfg.test_evaluator
    if isinstance(evaluator, list) and len(evaluator) == 1:
        evaluator = evaluator[0]
    kind = evaluator.get("type") if isinstance(evaluator, dict) else None
    kind = kind.rpartition(".")[2] if isinstance(kind, str) else getattr(kind, "__name__", None)
    if kind not in ("CocoMetric", "BoundaryMetric"):
        raise UserError(
            f"--refine: test_evaluator of {cfg.filename} is not one CocoMetric or BoundaryMetric; "
            "put its metric of instance masks into a BoundaryRefinementMetric by hand"
        )
    for package in ("mmdet_plus.evaluation", "mmseg_plus.bpr"):
        add_import(cfg, package)
        importlib.import_module(package)
    metric = ConfigDict(evaluator, type="BoundaryMetric")
    cfg.test_evaluator = ConfigDict(type="BoundaryRefinementMetric", metric=metric, refiner=refiner)


def flip_pipeline(pipeline: list[dict]) -> list[dict]:
    """Make a test pipeline yield the image and its mirror image.

    Args:
        pipeline: Ends in packing the inputs. What comes before the annotations are loaded is done
            once; the annotations stay as they are in both views.

    Returns:
        The new pipeline.
    """
    *steps, pack = copy.deepcopy(list(pipeline))
    loads = [i for i, step in enumerate(steps) if str(step["type"]).endswith("LoadAnnotations")]
    split = loads[0] if loads else len(steps)
    if "Det" in str(pack["type"]):
        keys = pack.get("meta_keys") or ("img_id", "img_path", "ori_shape", "img_shape")
        pack["meta_keys"] = tuple(dict.fromkeys((*keys, "scale_factor", "flip", "flip_direction")))
    flips = [dict(type="RandomFlip", prob=p, direction="horizontal") for p in (1.0, 0.0)]
    views = [flips, *([step] for step in steps[split:]), [pack]]
    return [*steps[:split], dict(type="TestTimeAug", transforms=views)]


def _predicts_panoptic_maps(model: dict) -> bool:
    return any("panoptic" in key and value is not None for key, value in model.items())


def _leaf_datasets(dataset: dict) -> Iterator[dict]:
    if "dataset" in dataset:
        yield from _leaf_datasets(dataset["dataset"])
    elif "datasets" in dataset:
        for part in dataset["datasets"]:
            yield from _leaf_datasets(part)
    else:
        yield dataset
