"""Speed of whole models beside each other, images in and masks out.

Weights are random: what a model finds with them is nothing, so thresholds are taken away and class
scores made as peaked as trained ones, and each model finds the hundred instances that it may.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmdet.models.dense_heads import FCOSHead
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from mmdet_plus.blendmask import blender
from mmseg_plus.common.config import read_config

from .timing import environment, time_in_turn

#: The baseline, with the backbone of the next ones.
BASELINE = "mmdet::mask_rcnn/mask-rcnn_r50-caffe_fpn_1x_coco.py"
MODELS_COMPARED = (BASELINE, "blendmask_r50-caffe_fpn_1x_coco")


def model_speed(
    configs: Sequence[str] = MODELS_COMPARED,
    size: tuple[int, int] = (800, 1216),
    repeats: int = 3,
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure the inference of models on one image, in turn.

    Args:
        configs: Names or paths of configs, ``mmdet::`` ones too; the first is the baseline.
        size: Height and width of the image in pixels.
        repeats: Rounds; the median counts.
        device: ``cpu``, or a GPU.

    Returns:
        A record: ``environment``, ``size``, and ``rows`` with ``model``, ``seconds``,
        ``images_per_second``, ``times_faster`` than the baseline, ``instances`` found and, of a
        BlendMask, ``blending_share``: of its time, spent in blending.
    """
    models = {name: build(name).to(device) for name in configs}
    image = torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0))
    calls = {name: _call(model, image.byte(), device) for name, model in models.items()}
    found = {name: len(call().pred_instances) for name, call in calls.items()}
    times = time_in_turn(calls, repeats)
    first = times[configs[0]]["median"]
    rows = []
    for name, entry in times.items():
        row = {
            "model": short_name(name),
            "seconds": round(entry["median"], 4),
            "images_per_second": round(1 / entry["median"], 3),
            "times_faster": round(first / entry["median"], 2),
            "instances": found[name],
            "rounds": entry["seconds"],
        }
        if isinstance(getattr(models[name], "mask_head", None), blender.Blender):
            row["blending_share"] = round(blending_seconds(calls[name]) / entry["median"], 4)
        rows.append(row)
    return {"environment": environment(), "size": list(size), "device": device, "rows": rows}


def short_name(name: str) -> str:
    """A config's name without its folder and ending; ``mmdet/`` before it if it is mmdet's."""
    scope, _, path = name.rpartition("::")
    return (f"{scope}/" if scope else "") + path.rpartition("/")[2].removesuffix(".py")


def build(name: str) -> nn.Module:
    """Build a detector with random weights that finds as many instances as it may.

    Args:
        name: A config's name or path, or one of mmdet's (``mmdet::...``).

    Returns:
        The model in evaluation mode.
    """
    cfg: Config = get_config(name) if "::" in name else read_config(name)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model_cfg = cfg.model
        model_cfg.backbone.init_cfg = None
        # A two-stage model keeps its own: class scores as peaked as trained ones pass it.
        if "rcnn" not in model_cfg.test_cfg:
            model_cfg.test_cfg.score_thr = 0.0
        torch.manual_seed(0)
        model = MODELS.build(model_cfg)
        model.init_weights()
    if hasattr(model, "roi_head"):
        head = model.roi_head.bbox_head
        # A proposal has one or two likely classes, and not eighty.
        nn.init.normal_(head.fc_cls.weight, std=0.3)
    elif isinstance(model.bbox_head, FCOSHead):
        # Boxes of eight strides, and not of none.
        nn.init.constant_(model.bbox_head.conv_reg.bias, 4.0)
    return model.eval()


def _call(model: nn.Module, image: Tensor, device: str) -> Callable[[], DetDataSample]:
    rows, cols = image.shape[1:]
    meta = dict(img_shape=(rows, cols), ori_shape=(rows, cols), scale_factor=(1.0, 1.0), img_id=0)

    @torch.inference_mode()
    def call() -> DetDataSample:
        sample = DetDataSample(metainfo=dict(meta))
        [result] = model.test_step(dict(inputs=[image], data_samples=[sample]))
        if device != "cpu":
            torch.cuda.synchronize()
        return result

    return call


def blending_seconds(call: Callable[[], object]) -> float:
    """Seconds that one call spends in :func:`mmplus_ops.blend_bases`."""
    spent: list[float] = []
    with _watched(blender, "blend_bases", spent):
        call()
    return sum(spent)


@contextmanager
def _watched(module: Any, name: str, spent: list[float]) -> Iterator[None]:
    function = getattr(module, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        result = function(*args, **kwargs)
        spent.append(time.perf_counter() - start)
        return result

    setattr(module, name, watched)
    try:
        yield
    finally:
        setattr(module, name, function)


def markdown(record: dict[str, Any]) -> str:
    """The record as a table for the documentation."""
    lines = ["| model | s/image | images/s | times as fast | instances | blending |"]
    lines.append("|---|---|---|---|---|---|")
    for row in record["rows"]:
        share = row.get("blending_share")
        blending = "" if share is None else f"{100 * share:.1f} %"
        lines.append(
            f"| {row['model']} | {row['seconds']:.2f} | {row['images_per_second']:.2f} | "
            f"{row['times_faster']:.2f} | {row['instances']} | {blending} |"
        )
    return "\n".join(lines) + "\n"
