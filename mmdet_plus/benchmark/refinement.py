"""What refining boundaries is worth: figures before and after, for one or more settings.

One run reads each image once and refines it under every setting, so that the rows of a table differ
in nothing but what they are meant to.
"""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mmdet_plus.evaluation import evaluate_results
from mmseg_plus.bpr import BoundaryRefiner
from mmseg_plus.bpr.coarse_masks import KINDS, degrade
from mmseg_plus.bpr.instances import ImageInstances, InstanceSource
from mmseg_plus.bpr.refiner import PARTS
from mmseg_plus.bpr.sources import CocoGroundTruth, open_results
from mmseg_plus.common.coco_masks import encode_mask
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.progress import ProgressLine

from .timing import environment


class DegradedTruth:
    """Results made from a ground truth: its instances with coarse masks, each with score 1.

    Args:
        truth: The ground truth.
        kinds: Of :func:`mmseg_plus.bpr.coarse_masks.degrade`.
        seed: The same seed makes the same masks.
    """

    def __init__(self, truth: InstanceSource, kinds: Sequence[str], seed: int = 0) -> None:
        self.truth, self.kinds, self.seed = truth, tuple(kinds), seed

    def __len__(self) -> int:
        return len(self.truth)

    def __getitem__(self, index: int) -> ImageInstances:
        image = self.truth[index]
        rng = np.random.default_rng((self.seed, index))
        usable = np.flatnonzero(~image.crowd & image.masks.any(axis=(1, 2)))
        masks = [degrade(mask, rng, self.kinds) for mask in image.masks[usable]]
        image.masks = np.array(masks, bool).reshape(-1, image.height, image.width)
        image.labels, image.scores = image.labels[usable], image.scores[usable]
        image.crowd = image.crowd[usable]
        return image


def settings(base: Mapping[str, Any], vary: Mapping[str, Sequence]) -> list[dict[str, Any]]:
    """List settings of which each differs from the first in one option at most.

    Args:
        base: Options of :meth:`BoundaryRefiner.with_options`.
        vary: Further values of an option, by its name.

    Returns:
        The base, and one setting for each other value.
    """
    rows = [dict(base)]
    for name, values in vary.items():
        rows += [{**base, name: value} for value in values if value != base.get(name)]
    return rows


def parse_variations(texts: Sequence[str]) -> dict[str, list]:
    """Read ``option=a,b`` texts.

    Raises:
        UserError: There is no such option, or a value is not of its kind.
    """
    kinds = dict(patch_size=int, iou_thr=float, scheme=str, padding=int, max_patches=int)
    kinds.update(amp=_switch, caution=float)
    vary = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in kinds or not values:
            raise UserError(f"--vary {text}: write OPTION=A,B with one of {', '.join(kinds)}")
        try:
            vary[name] = [kinds[name](value) for value in values.split(",")]
        except ValueError as error:
            raise UserError(f"--vary {text}: {error}") from error
    return vary


def _switch(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"true or false, not {text}")
    return text == "true"


def evaluate_file(
    results: str | None,
    ann_file: str,
    img_dir: str,
    *,
    degrade_kinds: Sequence[str] | None = None,
    seed: int = 0,
    config: str | None = None,
    checkpoint: str | None = None,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    vary: Sequence[str] = (),
    images: int | None = None,
) -> dict[str, Any]:
    """What ``tools/bpr_evaluate.py`` does; the arguments are its options.

    Returns:
        The record of :func:`refinement_figures`.

    Raises:
        UserError: A file is missing or wrong, or an option is.
    """
    if (results is None) == (degrade_kinds is None):
        raise UserError("give either a file of results or --degrade")
    variations = parse_variations(vary)
    if degrade_kinds is None:
        coarse = open_results(results, ann_file, img_dir)
    else:
        unknown = [kind for kind in degrade_kinds if kind not in KINDS]
        if unknown:
            raise UserError(f"--degrade {' '.join(unknown)}: choose from {', '.join(KINDS)}")
        coarse = DegradedTruth(CocoGroundTruth(ann_file, img_dir), degrade_kinds, seed)
    refiner = BoundaryRefiner(config, checkpoint, device)
    base = dict(options or {})
    if base.get("caution") is None:
        base["caution"] = refiner.caution
    rows = settings(base, variations)
    try:
        refiners = {row_name(row): refiner.with_options(**row) for row in rows}
    except ValueError as error:
        raise UserError(str(error)) from error
    return refinement_figures(coarse, ann_file, refiners, images)


def row_name(options: Mapping[str, Any]) -> str:
    """A row's name: its options, such as ``dense 64 iou 0.25``."""
    parts = [f"{options.get('scheme', 'dense')} {options.get('patch_size', 64)}"]
    parts.append(f"iou {options.get('iou_thr', 0.25):g}")
    if options.get("padding"):
        parts.append(f"padding {options['padding']}")
    if options.get("max_patches") is not None:
        parts.append(f"at most {options['max_patches']}")
    if options.get("caution"):
        parts.append(f"caution {options['caution']:g}")
    if options.get("amp"):
        parts.append("half precision")
    return " ".join(parts)


def refinement_figures(
    coarse: InstanceSource,
    ann_file: str,
    refiners: Mapping[str, BoundaryRefiner],
    images: int | None = None,
    line: ProgressLine | None = None,
) -> dict[str, Any]:
    """Refine results under several settings and evaluate them all.

    Args:
        coarse: The results.
        ann_file: COCO JSON of the ground truth.
        refiners: By the name of their row.
        images: Only the first so many.
        line: Shows the progress.

    Returns:
        ``coarse``: figures of :func:`mmdet_plus.evaluation.evaluate_masks`; ``refined``: by row,
        ``figures``, ``gain`` over the coarse masks, ``patches`` and ``seconds`` an image, in all
        and by part; ``images``, ``instances`` and the environment.
    """
    line = line or ProgressLine()
    count = min(len(coarse), images or len(coarse))
    found: dict[str, list[dict]] = {name: [] for name in ("", *refiners)}
    patches = dict.fromkeys(refiners, 0)
    seconds = {name: dict.fromkeys(("all", *PARTS), 0.0) for name in refiners}
    ids, start = [], time.monotonic()
    for index in range(count):
        item = coarse[index]
        ids.append(item.image_id)
        found[""] += _records(item, item.masks)
        if not len(item.masks):
            continue
        image = item.read_image()
        for name, refiner in refiners.items():
            began = time.perf_counter()
            refined = refiner.refine(image, item.masks)
            seconds[name]["all"] += time.perf_counter() - began
            for part in PARTS:
                seconds[name][part] += refiner.seconds[part]
            patches[name] += refiner.num_patches
            found[name] += _records(item, refined)
        rate = (index + 1) / (time.monotonic() - start)
        line.show(f"{index + 1} of {count} images, {rate:.1f} images/s")
    before = evaluate_results(ann_file, found[""], img_ids=ids)
    rows = {}
    for name in refiners:
        after = evaluate_results(ann_file, found[name], img_ids=ids)
        rows[name] = dict(
            figures=_rounded(after),
            gain={
                key: round(value - before[key], 4)
                for key, value in after.items()
                if value >= 0 and before[key] >= 0
            },
            patches=round(patches[name] / count, 1),
            seconds={part: round(value / count, 4) for part, value in seconds[name].items()},
        )
    return dict(
        images=count,
        instances=len(found[""]),
        coarse=_rounded(before),
        refined=rows,
        environment=environment(),
    )


def _records(item: ImageInstances, masks: np.ndarray) -> list[dict]:
    size = [item.height, item.width]
    return [
        dict(
            image_id=item.image_id,
            category_id=int(label),
            score=float(score),
            segmentation=dict(size=size, counts=encode_mask(mask)),
        )
        for label, score, mask in zip(item.labels, item.scores, masks, strict=True)
    ]


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in figures.items()}


#: Columns of the table: heading and figure.
COLUMNS = {
    "AP": "segm_mAP",
    "AP75": "segm_mAP_75",
    "boundary AP": "boundary_mAP",
    "boundary AP_S": "boundary_mAP_s",
    "boundary AP_M": "boundary_mAP_m",
    "boundary AP_L": "boundary_mAP_l",
    "AF": "AF",
}


def markdown(record: Mapping[str, Any]) -> str:
    """A table of a record of :func:`refinement_figures`, in percent."""
    head = ["masks", *COLUMNS, "patches/image", "s/image"]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    cells = [_percent(record["coarse"][key]) for key in COLUMNS.values()]
    lines.append("| " + " | ".join(["coarse", *cells, "", ""]) + " |")
    for name, row in record["refined"].items():
        cells = []
        for key in COLUMNS.values():
            gain = row["gain"].get(key)
            change = "" if gain is None else f" ({100 * gain:+.1f})"
            cells.append(_percent(row["figures"][key]) + change)
        cells += [f"{row['patches']:g}", f"{row['seconds']['all']:.3f}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines) + "\n"


def _percent(value: float) -> str:
    return "" if value < 0 else f"{100 * value:.1f}"
