"""What ``tools/compare_fusers.py`` does: panoptic fusers side by side on one model's predictions.

The model runs once over the test set. A head that only notes what it is given takes the place of
the model's fuser; every fuser is then applied to each image's notes, and its map is counted at
once, so that memory does not grow with the number of images.

Shape letters: G things of the ground truth, H x W the image.
"""

import copy
import itertools
import shlex
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.seg_heads.panoptic_fusion_heads import BasePanopticFusionHead
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.config import Config, ConfigDict
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmdet_plus.engine.class_match import check_model_classes
from mmdet_plus.engine.compared_fusers import (
    RecordingFusionHead,
    Seen,
    build_fuser,
    default_fusers,
    fuse,
    kind_of,
    own_fuser,
    read_fusers,
)
from mmdet_plus.engine.comparison import config_digest
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.fuser_pictures import Panel, write_panels
from mmdet_plus.engine.testing import begin_test, prepare_test_cfg
from mmdet_plus.engine.training import build_runner
from mmdet_plus.evaluation import PanopticMetric
from mmdet_plus.evaluation.id_maps import read_id_map
from mmdet_plus.evaluation.panoptic_files import split_categories
from mmdet_plus.evaluation.panoptic_quality import Counts, add_counts, panoptic_figures
from mmdet_plus.panoptic_fusion import (
    HeuristicFusion,
    SoftOcclusionFusion,
    soft_occlusion_score,
)
from mmseg_plus.common.compat import versions
from mmseg_plus.common.config import resolve_config
from mmseg_plus.common.files import write_file, write_json
from mmseg_plus.common.progress import ProgressLine

FIGURES = tuple(f"{name}{group}" for group in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ"))
# The fuser that pastes in the order of the ground truth, by its name in the record.
TRUE_ORDER = "true order"
_METRICS = ("PanopticMetric", "CocoPanopticMetric")


@METRICS.register_module()
class FuserMetric(PanopticMetric):
    """The metric of one fuser; those of the others share its ground truth.

    Counts are added up at once. Arguments are those of :class:`PanopticMetric`.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._counts: dict[int, Counts] = {}
        # The last image's; one dictionary for all that share it.
        self._read: dict[Any, Any] = {}

    def another(self) -> "FuserMetric":
        """A metric that has counted nothing yet, and reads no file anew."""
        other = copy.copy(self)
        other.results, other._counts = [], {}
        return other

    def count(self, sample: DetDataSample, panoptic: Tensor) -> None:
        """Count one image.

        Args:
            sample: With the image's meta information.
            panoptic: (1, H, W), see ``PanopticMetric.process``.
        """
        self.process({}, [{**sample.metainfo, "pred_panoptic_seg": {"sem_seg": panoptic}}])
        self._counts = add_counts([self._counts, self.results.pop()["counts"]])

    def figures(self) -> dict[str, float]:
        """Compute the figures of all that was counted, those of ``compute_metrics``."""
        return panoptic_figures(self._counts, *split_categories(self.categories.values()))

    def true_map(self, sample: DetDataSample) -> np.ndarray:
        """Read an image's ground truth as an mmdet map.

        Returns:
            (H, W) int64: label + number x ``INSTANCE_OFFSET`` of things, the label of stuff, and
            the number of classes where there is void, or a crowd.
        """
        size = tuple(sample.metainfo["ori_shape"][:2])
        truth = self._truth(sample.metainfo, size, f"image {sample.metainfo['img_id']!r}")
        ids = truth.ids.numpy()
        codes = np.full(size, len(self._cat_ids), np.int64)
        segments = zip(truth.segments.ids, truth.segments.categories, strict=True)
        for number, (ident, category) in enumerate(segments, 1):
            crowd = truth.segments.crowd is not None and truth.segments.crowd[number - 1]
            if category not in self._cat_ids or crowd:
                continue
            code = self._cat_ids.index(category)
            if self.categories[category]["isthing"]:
                code += number * INSTANCE_OFFSET
            codes[ids == ident] = code
        return codes

    def _truth(self, sample: Mapping[str, Any], size: tuple[int, int], who: str) -> Any:
        if sample["img_id"] not in self._read:
            self._read.clear()
            self._read[sample["img_id"]] = super()._truth(sample, size, who)
        return self._read[sample["img_id"]]

    def _read_truth(self, path: str, who: str, size: tuple[int, int]) -> Tensor:
        # Ids, for they are looked at more than once.
        return torch.from_numpy(read_id_map(path, who, size, self.backend_args))


class _Entry(NamedTuple):
    """A fuser that is compared."""

    config: dict[str, Any]
    fuser: nn.Module
    metric: FuserMetric


def compare_fusers(
    config: str,
    checkpoint: str,
    out: str,
    fusers: str | None = None,
    limit: int | None = None,
    show_dir: str | None = None,
    show: int = 8,
    true_order: bool = False,
    top_first: bool = False,
    cfg_options: dict | None = None,
    command: Sequence[str] = (),
    line: ProgressLine | None = None,
) -> dict:
    """Test one model with several fusers, and write the record and the table of their figures.

    Args:
        config: Path or name of a config of a panoptic model with a fuser of its own.
        checkpoint: Its weights.
        out: A ``.json`` file, or a folder for ``fusers.json``. The table goes beside it (``.md``).
        fusers: A config file with ``fusers = dict(name=dict(type=...), ...)``. What the model's own
            fuser is told of classes and ``test_cfg`` holds for them, too, unless they say
            otherwise. By default all that the model's predictions suffice for, with and without
            Unknown Erasing.
        limit: Look at the first images only.
        show_dir: Folder for pictures.
        show: Of so many images.
        true_order: Whether instances are also pasted in the order of the ground truth, where it
            tells, as a network without a fault would have it. The model must have an
            ``OcclusionHead``.
        top_first: The ground truth lists the things of an image from the top down: whether to
            judge pairs by that order, too. The model must have a network.
        cfg_options: Dotted keys and new values of the config.
        command: How the user started this, for the record.
        line: Shows the progress; on stdout by default.

    Returns:
        The record.

    Raises:
        UserError: A file is missing or cannot be used, the model has no fuser of this kind, or a
            fuser cannot be built or needs what the model does not predict.
    """
    _check_numbers(limit, show)
    line = line or ProgressLine()
    asked = None if fusers is None else read_fusers(fusers)
    if true_order and TRUE_ORDER in (asked or {}):
        raise UserError(f"{fusers}: --true-order has the name {TRUE_ORDER!r} for its own fuser")
    with tempfile.TemporaryDirectory() as folder:
        cfg = prepare_test_cfg(config, checkpoint, work_dir=folder, cfg_options=cfg_options)
        use_fuser_metric(cfg)
        # The runner tells of itself at length, into files that go away.
        cfg.log_level = "WARNING"
        runner = build_runner(cfg)
        own = own_fuser(runner.model, str(cfg.filename))
        source = f"test_dataloader of {cfg.filename}"
        check_model_classes(runner.model, runner.test_dataloader.dataset, source)
        if asked is not None:
            asked = {name: build_fuser(name, part, own) for name, part in asked.items()}
        record = {
            "command": shlex.join(["python", *map(portable, command)]),
            "config": Path(cfg.filename).stem,
            "config_digest": _digest(config, cfg_options),
            "checkpoint": portable(checkpoint),
            **_run(
                runner,
                own,
                asked,
                limit,
                show_dir and Path(show_dir),
                show,
                true_order,
                top_first,
                line,
            ),
            "versions": versions(),
        }
    path = Path(out) if out.endswith(".json") else Path(out) / "fusers.json"
    write_json(path, record)
    table = markdown(record)
    write_file(path.with_suffix(".md"), table.encode())
    line.say(table)
    return record


def _check_numbers(limit: int | None, show: int) -> None:
    for option, value in (("--limit", limit), ("--show", show)):
        if value is not None and value < 1:
            raise UserError(f"{option}: at least 1, not {value}")


@torch.no_grad()
def _run(
    runner: Runner,
    own: BasePanopticFusionHead,
    fusers: dict[str, tuple[dict, nn.Module]] | None,
    limit: int | None,
    show_dir: Path | None,
    show: int,
    true_order: bool,
    top_first: bool,
    line: ProgressLine,
) -> dict[str, Any]:
    """Predict, fuse and count, image by image; returns what the record says of it."""
    metric = runner.test_loop.evaluator.metrics[0]
    total = len(runner.test_dataloader.dataset)
    wanted = total if limit is None else min(limit, total)
    if not wanted:
        raise UserError("the test set has no image; is its annotation file the right one?")
    head = getattr(runner.model, "occlusion_head", None)
    judge = getattr(head, "pair_accuracy", None)
    if true_order and not hasattr(head, "true_occlusion"):
        raise UserError("--true-order orders the pairs of an OcclusionHead; the model has none")
    if top_first and judge is None:
        raise UserError("--top-first judges the pairs of an occlusion_head; the model has none")
    entries: dict[str, _Entry] = {}
    pairs: Counter[str] = Counter()
    listed: Counter[str] = Counter()
    began, done = time.monotonic(), 0
    for sample, seen in itertools.islice(predictions(runner, own.num_classes), wanted):
        if fusers is None:
            configs = default_fusers(seen.results)
            fusers = {name: build_fuser(name, part, own) for name, part in configs.items()}
        if not entries:
            if true_order:
                hard = dict(type="OcclusionFusion", occlusion_thr=head.overlap_thr)
                fusers = fusers | {TRUE_ORDER: build_fuser(TRUE_ORDER, hard, own)}
            entries = {name: _Entry(*fuser, metric.another()) for name, fuser in fusers.items()}
            _check_fusers(runner.model, entries)
        panels, truth = {}, None
        if judge and ("occlusion" in seen.results or "ranking_scores" in seen.results):
            truth = true_things(metric.true_map(sample), seen.seg_logits.device)
        for name, entry in entries.items():
            given = seen
            if name == TRUE_ORDER:
                occlusion = head.true_occlusion(seen.results, *truth)
                given = seen._replace(results=_with_occlusion(seen.results, occlusion))
            panoptic = fuse(name, entry.fuser, given)
            entry.metric.count(sample, panoptic)
            if show_dir and done < show:
                panels[name] = panel_of(entry.fuser, seen, panoptic)
        if truth:
            fusers_of = [entry.fuser for entry in entries.values()]
            pairs.update(_right_pairs(judge, seen.results, truth, fusers_of))
            if top_first:
                by_list = partial(judge, listed=True)
                listed.update(_right_pairs(by_list, seen.results, truth, fusers_of))
                if hasattr(head, "true_occlusion"):
                    by_pixels = head.true_occlusion(seen.results, *truth)
                    judged = by_list(_with_occlusion(seen.results, by_pixels), *truth)
                    listed["right_by_pixels"] += judged.right
        if panels:
            write_panels(
                show_dir, sample.img_path, metric.true_map(sample), panels, own.num_classes
            )
        done += 1
        seconds = (time.monotonic() - began) / done
        line.show(f"{done} of {wanted} images, {seconds:.1f} s each")
    record: dict[str, Any] = {
        "images": done,
        "images_in_set": total,
        "fusers": {
            name: {"config": entry.config, "metrics": entry.metric.figures()}
            for name, entry in entries.items()
        },
    }
    if pairs:
        record["overlapping_pairs"] = dict(pairs)
    if listed:
        record["listed_pairs"] = dict(listed)
    return record


def _right_pairs(
    judge: Callable[..., tuple[int, int, int]],
    results: InstanceData,
    truth: tuple[Tensor, Tensor],
    fusers: Sequence[nn.Module],
) -> dict[str, int]:
    """How many pairs of an image overlap, and who orders them rightly: the network, the scores
    alone, and Eq. 7, which weighs the one with the other."""
    number, by_network, by_score = judge(results, *truth)
    counts = dict(number=number, right_by_network=by_network, right_by_score=by_score)
    for sigma in {f.settings["sigma"] for f in fusers if isinstance(f, SoftOcclusionFusion)}:
        soft = soft_occlusion_score(results.scores, results.occlusion, sigma)
        weighed = _with_occlusion(results, soft)
        _, counts[f"right_by_soft_{sigma:g}"], _ = judge(weighed, *truth)
    return counts


def _with_occlusion(results: InstanceData, occlusion: Tensor) -> InstanceData:
    """The same instances with another order."""
    return InstanceData(**{**dict(results.items()), "occlusion": occlusion})


def _check_fusers(model: nn.Module, entries: dict[str, _Entry]) -> None:
    """Raise a UserError for a fuser that asks for more than the model's network tells."""
    check = getattr(model, "check_fuser", None)
    for name, entry in entries.items() if check else ():
        try:
            check(entry.fuser)
        except ValueError as error:
            raise UserError(f"fuser {name!r}: {error}") from None


def predictions(runner: Runner, num_classes: int) -> Iterator[tuple[DetDataSample, Seen]]:
    """Load the checkpoint and run the model over the test set.

    Args:
        runner: Built from a prepared config.
        num_classes: Classes of things and stuff.

    Yields:
        Each image's sample, and what the model hands its fuser of it.
    """
    model = runner.model
    begin_test(runner)
    model.panoptic_fusion_head = head = RecordingFusionHead(num_classes)
    for batch in runner.test_dataloader:
        samples = model.test_step(batch)
        yield from zip(samples, head.take(), strict=True)


def use_fuser_metric(cfg: Config) -> None:
    """Let a config's panoptic metric, and no other, count for a fuser.

    Args:
        cfg: Changed in place.

    Raises:
        UserError: It has not exactly one panoptic metric.
    """
    found = [metric for metric in _metrics(cfg.test_evaluator) if kind_of(metric) in _METRICS]
    if len(found) != 1:
        raise UserError(
            f"{cfg.filename}: test_evaluator has {len(found) or 'no'} panoptic metrics; fusers are "
            "compared by one PanopticMetric"
        )
    kept = {
        key: value
        for key, value in found[0].items()
        if key not in ("classwise", "format_only", "outfile_prefix")
    }
    cfg.test_evaluator = ConfigDict(kept | dict(type="mmdet.FuserMetric"))


def _metrics(evaluator: Any) -> Iterator[dict]:
    if isinstance(evaluator, (list, tuple)):
        for part in evaluator:
            yield from _metrics(part)
    elif "metrics" in evaluator:
        yield from _metrics(evaluator["metrics"])
    else:
        yield evaluator


def true_things(codes: np.ndarray, device: torch.device) -> tuple[Tensor, Tensor]:
    """Take the things out of a map.

    Args:
        codes: (H, W), see :meth:`FuserMetric.true_map`.
        device: Where the tensors go.

    Returns:
        Masks (G, H, W) bool; labels (G,).
    """
    values = np.unique(codes[codes >= INSTANCE_OFFSET])
    canvas = torch.from_numpy(codes).to(device)
    things = torch.from_numpy(values).to(device)
    return canvas == things[:, None, None], things % INSTANCE_OFFSET


def panel_of(fuser: nn.Module, seen: Seen, panoptic: Tensor) -> Panel:
    """Prepare what a fuser made of an image for its picture.

    Args:
        fuser: From :func:`build_fuser`.
        seen: Of the image.
        panoptic: (1, H, W), what it made of it.

    Returns:
        The map, and what Unknown Erasing made void, as far as nothing else lies there now.
    """
    codes = panoptic[0].cpu().numpy().astype(np.int64)
    if not isinstance(fuser, HeuristicFusion) or fuser.unknown_erasing is None:
        return Panel(codes)
    channels = seen.stuff_channels
    if channels is None:
        channels = fuser.stuff_channels(len(seen.seg_logits))
    erased = fuser.unknown_erasing(seen.seg_logits, channels) == len(seen.seg_logits)
    return Panel(codes, erased.cpu().numpy() & (codes == fuser.num_classes))


def markdown(record: Mapping[str, Any]) -> str:
    """Lay out a record's figures in percent, nothing where they are undefined."""
    rows = [["fuser", *FIGURES], ["---", *["---:"] * len(FIGURES)]]
    for name, entry in record["fusers"].items():
        values = [entry["metrics"][figure] for figure in FIGURES]
        rows.append([name, *("" if value < 0 else f"{value:.2f}" for value in values)])
    text = "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"
    images, total = record["images"], record["images_in_set"]
    text += (
        f"\n{record['config']}, {images if images == total else f'{images} of {total}'} images\n"
    )
    pairs = record.get("overlapping_pairs")
    if pairs and not pairs["number"]:
        text += "\nNo overlapping pair of things whose order the ground truth tells\n"
    elif pairs:
        text += tell_pairs(pairs)
    listed = record.get("listed_pairs")
    if listed and listed["number"]:
        text += tell_pairs(listed, ", judged by the ground truth's list,")
    return text


def tell_pairs(pairs: Mapping[str, int], judged: str = ",") -> str:
    """Say how many of at least one overlapping pair are in the right order."""
    soft = sorted(key.rpartition("_")[2] for key in pairs if key.startswith("right_by_soft_"))
    who = {
        "right_by_network": "the network",
        "right_by_score": "score alone",
        **{f"right_by_soft_{sigma}": f"Eq. 7 with sigma {sigma}" for sigma in soft},
        "right_by_pixels": "who owns more of the pixels in both masks",
    }
    shares = [
        f"in {100 * pairs[key] / pairs['number']:.1f} % by {name}"
        for key, name in who.items()
        if key in pairs
    ]
    return (
        f"\nOf {pairs['number']} overlapping pairs of things{judged} the order is right "
        f"{', '.join(shares)}\n"
    )


def portable(word: str) -> str:
    """An argument of a command without a path of this machine.

    Args:
        word: A word of a command line, maybe ``key=value``.

    Returns:
        The same with an absolute path counted from the current folder, or, where it does not lie
        in there, reduced to its name.
    """
    key, equals, value = word.rpartition("=")
    path = Path(value)
    if path.is_absolute():
        inside = path.is_relative_to(Path.cwd())
        value = str(path.relative_to(Path.cwd())) if inside else path.name
    return f"{key}{equals}{value}"


def _digest(config: str, cfg_options: dict | None) -> str:
    options = [f"{key}={value}" for key, value in (cfg_options or {}).items()]
    return config_digest(resolve_config(config), options)
