"""Panoptic quality of files: COCO panoptic JSONs and their PNGs, checked and counted."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mmdet_plus.datasets.checked_coco import CheckedCOCOPanoptic, PanopticTruth
from mmdet_plus.datasets.panoptic_checks import tell_things
from mmseg_plus.common.coco_checks import (
    AnnotationError,
    leaves_folder,
    raise_faults,
    read_annotation_file,
)

from .id_maps import read_for_counting
from .panoptic_quality import (
    Counts,
    Overlaps,
    Segments,
    add_counts,
    category_quality,
    contradictions,
    count_segments,
    overlap_areas,
    panoptic_figures,
    segments_of,
)

_REQUIRED = ("images", "annotations", "categories")


def pq_from_files(
    gt_json: str | os.PathLike,
    gt_folder: str | os.PathLike,
    pred_json: str | os.PathLike,
    pred_folder: str | os.PathLike,
    *,
    thing_classes: Sequence[str] | None = None,
    strict: bool = True,
    classwise: bool = False,
) -> dict[str, float]:
    """Panoptic quality of predictions in COCO's panoptic format, of whatever model.

    The figures are panopticapi's; every image of the ground truth needs a prediction.

    Args:
        gt_json: The ground truth, with ``images``, ``annotations`` and ``categories``.
        gt_folder: Folder of its PNGs.
        pred_json: The predictions: an object with ``annotations`` of ``image_id``, ``file_name``
            and ``segments_info`` (``id`` and ``category_id`` as in the ground truth).
        pred_folder: Folder of their PNGs.
        thing_classes: Names of the things, for a ground truth whose categories lack ``isthing``.
        strict: Whether to refuse ground truth whose JSON and PNGs contradict each other: a segment
            in one of them alone, or another area. False counts what is there: areas are those of
            the PNG, what has no pixels is missed, and an id that is not listed belongs to no
            segment. So does panopticapi, but for the areas, which it takes from the JSON.
        classwise: Whether to add the categories' own figures ``{name}_PQ``, ``{name}_SQ`` and
            ``{name}_RQ``, of categories that occur.

    Returns:
        Figures as of :func:`mmdet_plus.evaluation.panoptic_quality.panoptic_figures`, in percent.

    Raises:
        UserError: A file or record cannot be used; the message names it and the mend.
    """
    truth = PanopticTruth(str(gt_json), str(gt_json), _REQUIRED)
    categories = truth.dataset["categories"]
    names = {category["name"]: category["id"] for category in categories}
    unknown = [name for name in thing_classes or () if name not in names]
    if unknown:
        raise AnnotationError(f"{gt_json}: no category is called {unknown}, see `thing_classes`")
    told = {} if thing_classes is None else {name: name in thing_classes for name in names}
    raise_faults(str(gt_json), tell_things(categories, told, "`thing_classes`"))
    predictions = read_predictions(pred_json, truth)
    counts = add_counts(
        count_image(truth, ident, gt_folder, predictions[ident], pred_folder, pred_json, strict)
        for ident in sorted(truth.annotated, key=repr)
    )
    figures = panoptic_figures(counts, *split_categories(categories))
    for name, ident in names.items() if classwise else ():
        quality = category_quality(counts.get(ident)) or {}
        figures.update({f"{name}_{figure}": 100 * value for figure, value in quality.items()})
    return figures


def split_categories(categories: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[int]]:
    """Ids of the things, and of the stuff."""
    things = [category["id"] for category in categories if category["isthing"]]
    stuff = [category["id"] for category in categories if not category["isthing"]]
    return things, stuff


def read_predictions(path: str | os.PathLike, truth: CheckedCOCOPanoptic) -> dict[Any, dict]:
    """Read a JSON of panoptic predictions.

    Args:
        path: The file.
        truth: The ground truth; predictions on other images are left out.

    Returns:
        The records of ``annotations`` by image id, one for each annotated image.

    Raises:
        UserError: The file or a record cannot be used, or an image has no prediction.
    """
    if os.path.isfile(path) and _holds_list(path):
        raise AnnotationError(
            f"{path}: holds a list, as results of instances do; panoptic predictions are an object "
            "with `annotations`, each with `image_id`, `file_name` and `segments_info`"
        )
    records = read_annotation_file(str(path), str(path), ("annotations",))["annotations"]
    raise_faults(str(path), _prediction_faults(records, truth))
    return {record["image_id"]: record for record in records}


def _holds_list(path: str | os.PathLike) -> bool:
    with open(path, "rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def _prediction_faults(records: Sequence[dict], truth: CheckedCOCOPanoptic) -> Iterator[str]:
    seen = set()
    for position, record in enumerate(records):
        ident, name = record.get("image_id"), record.get("file_name")
        who = f"the prediction on image {ident!r} (file_name {name!r}, record {position})"
        if not isinstance(ident, int | str) or ident in seen:
            yield f"{who}: needs an `image_id`, and an image only one prediction"
            continue
        seen.add(ident)
        if ident not in truth.annotated:
            continue
        if not isinstance(name, str) or not name or leaves_folder(name):
            yield f'{who}: needs the name of its PNG as `file_name`, such as "000001.png"'
        segments = record.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
            yield f"{who}: lacks the list `segments_info`; are these predictions of instances?"
            continue
        numbers = set()
        for segment in segments:
            number, category = segment.get("id"), segment.get("category_id")
            if type(number) is not int or number <= 0 or number in numbers:
                yield (
                    f"{who}, segment {number!r}: its `id` must be a whole number > 0 of its own; "
                    "0 is void"
                )
                continue
            numbers.add(number)
            if type(category) is not int or category not in truth.cats:
                yield (
                    f"{who}, segment {number!r}: unknown category_id {category!r}; write the ids "
                    f"of {truth.source}, not labels"
                )
    missing = sorted(truth.annotated - seen, key=repr)
    if missing:
        yield (
            f"no prediction on {len(missing)} of {len(truth.annotated)} images of {truth.source}, "
            f"the first is {missing[0]!r}; predict on all, or take them out of the ground truth"
        )


def count_image(
    truth: CheckedCOCOPanoptic,
    ident: Any,
    gt_folder: str | os.PathLike,
    prediction: Mapping[str, Any],
    pred_folder: str | os.PathLike,
    pred_source: object = "predictions",
    strict: bool = True,
) -> dict[int, Counts]:
    """Match and count the segments of an image whose PNGs are files.

    Args:
        truth: The ground truth.
        ident: The image's id.
        gt_folder: Folder of the ground truth's PNGs.
        prediction: ``file_name`` and ``segments_info``.
        pred_folder: Folder of the predicted PNGs.
        pred_source: What to call the predictions in messages.
        strict: As of :func:`pq_from_files`.

    Raises:
        UserError: A PNG cannot be used; or does not fit its record.
    """
    image = truth.imgs[ident]
    size = image["height"], image["width"]
    who = f"image {ident!r}"
    gt_path = os.path.join(gt_folder, image["segm_file"])
    gt = read_for_counting(gt_path, f"{truth.source}: {who}", size)
    pred_path = os.path.join(pred_folder, prediction["file_name"])
    pred = read_for_counting(pred_path, f"{pred_source}: {who}", size)
    overlaps = overlap_areas(gt, pred)
    found = segments_of(prediction["segments_info"])._replace(areas=None)
    faults = contradictions(overlaps.pred_areas, found)
    raise_faults(f"{pred_source}: {who} ({pred_path})", faults)
    listed = segments_of(truth.imgToAnns[ident])
    if strict:
        check_truth(overlaps, listed, f"{truth.source}: {who} ({image['segm_file']})")
    return count_segments(overlaps, listed, found)


def check_truth(overlaps: Overlaps, listed: Segments, who: str) -> None:
    """Refuse ground truth of which JSON and PNG contradict each other.

    Args:
        overlaps: Areas of the pairs with any prediction.
        listed: The segments of the JSON.
        who: What to call it: file, image, PNG.

    Raises:
        AnnotationError: With the first contradictions.
    """
    faults = list(contradictions(overlaps.gt_areas, listed))
    if faults:
        faults[-1] += " (`strict=False` counts what is in the PNG)"
        raise_faults(who, faults)
