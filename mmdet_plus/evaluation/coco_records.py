"""COCO ground truth and results, checked record by record and copied for an evaluation."""

import math
from collections.abc import Collection, Hashable, Iterator, Sequence
from numbers import Real
from typing import NamedTuple

from faster_coco_eval import COCO
from pycocotools import mask as mask_util

from mmseg_plus.common.coco_checks import check_categories, check_instances, raise_faults
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.rle import pixel_counts


class EvaluationRecords(NamedTuple):
    """What is to be evaluated; images, classes and annotations are numbered anew from 1.

    Attributes:
        gt: The ground truth. All masks are compressed RLEs with text as counts.
        dt: The detections, with ``score``.
        num_images: How many images, those without an annotation included.
        category_names: The classes; number k has the name at position k - 1.
    """

    gt: COCO
    dt: COCO
    num_images: int
    category_names: list[str]


def prepare_records(
    coco_gt: dict | COCO,
    detections: Sequence[dict],
    img_ids: Collection | None,
    cat_ids: Sequence | None,
    areas_from_masks: bool,
    sources: tuple[str, str],
) -> EvaluationRecords:
    """Check all records and copy those to evaluate.

    They get new ids, because those of the user's may be texts, or 0, which COCO's evaluators take
    for "no match".

    Args:
        coco_gt: A COCO data set, its content or an index of it. Not changed.
        detections: COCO results with RLEs. Not changed.
        img_ids: Images to evaluate; None for all.
        cat_ids: Classes to evaluate, in the order of the figures by class; None for all.
        areas_from_masks: Whether to count the area of ground truth instead of reading it.
        sources: What to call ground truth and detections in messages.

    Raises:
        UserError: A record cannot be used, or there is nothing to evaluate.
    """
    content = _with_texts(coco_gt if isinstance(coco_gt, dict) else coco_gt.dataset)
    raise_faults(sources[0], check_categories(content["categories"]))
    raise_faults(sources[0], _image_faults(content["images"]))
    raise_faults(sources[0], check_instances(content))
    raise_faults(sources[0], _unmasked(content["annotations"]))
    images = {image["id"]: image for image in content["images"]}
    names = {category["id"]: category["name"] for category in content["categories"]}
    raise_faults(sources[1], _detection_faults(detections, images, names))

    # COCO's evaluator goes by id, and among equal scores the image that it meets first is ahead.
    image_number = _numbers(images, img_ids, f"{sources[0]}: no image", in_order=True)
    class_number = _numbers(names, cat_ids, f"{sources[0]}: no category", in_order=False)
    sizes = [
        dict(id=number, height=images[ident]["height"], width=images[ident]["width"])
        for ident, number in image_number.items()
    ]
    classes = [dict(id=number, name=names[ident]) for ident, number in class_number.items()]

    def index(anns: Sequence[dict], count_area: bool) -> COCO:
        copies = []
        for ann in anns:
            image, category = ann["image_id"], ann["category_id"]
            if image not in image_number or category not in class_number:
                continue
            rle = _rle(ann["segmentation"], images[image]["height"], images[image]["width"])
            copy = dict(
                id=len(copies) + 1,
                image_id=image_number[image],
                category_id=class_number[category],
                iscrowd=int(bool(ann.get("iscrowd", 0))),
                area=float(mask_util.area(rle) if count_area else ann["area"]),
                score=float(ann.get("score", 1)),
                segmentation=rle,
            )
            copies.append(copy)
        return COCO(dict(images=sizes, categories=classes, annotations=copies))

    return EvaluationRecords(
        index(content["annotations"], areas_from_masks),
        index([dict(det, iscrowd=0) for det in detections], True),
        len(sizes),
        [category["name"] for category in classes],
    )


def _with_texts(content: dict) -> dict:
    """A shallow copy of a data set in which RLEs made in memory look like those of a file."""
    anns = []
    for ann in content.get("annotations", ()):
        rle = ann.get("segmentation")
        if isinstance(rle, dict) and isinstance(rle.get("counts"), bytes):
            ann = dict(ann, segmentation=dict(rle, counts=_text(rle["counts"])))
        anns.append(ann)
    return dict(content, annotations=anns)


def _text(counts: str | bytes) -> str:
    return counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts


def _numbers(
    known: Collection, chosen: Collection | None, complaint: str, in_order: bool
) -> dict[int | str, int]:
    chosen = list(dict.fromkeys(known if chosen is None else chosen))
    missing = [ident for ident in chosen if ident not in known]
    if missing or not chosen:
        raise UserError(f"{complaint} {_some(missing) or 'to evaluate'}; it has {_some(known)}")
    if in_order:
        chosen.sort(key=lambda ident: (isinstance(ident, str), ident))
    return {ident: number for number, ident in enumerate(chosen, 1)}


def _rle(segmentation: list | dict, height: int, width: int) -> dict:
    """Turn polygons or any RLE into a compressed RLE with text as counts."""
    rle = segmentation
    if isinstance(rle, list):
        rle = mask_util.merge(mask_util.frPyObjects(rle, height, width))
    elif isinstance(rle["counts"], list):
        rle = mask_util.frPyObjects(rle, height, width)
    return dict(size=[height, width], counts=_text(rle["counts"]))


def _image_faults(images: Sequence[dict]) -> Iterator[str]:
    seen = set()
    for position, image in enumerate(images):
        ident = image.get("id")
        who = f"image {ident!r} (file_name {image.get('file_name')!r}, record {position})"
        if not isinstance(ident, int | str) or ident in seen:
            yield f"{who}: needs an `id` of its own"
            continue
        seen.add(ident)
        sides = image.get("height"), image.get("width")
        if not all(isinstance(side, int) and side > 0 for side in sides):
            yield f"{who}: height {sides[0]!r} and width {sides[1]!r} must be whole numbers > 0"


def _unmasked(anns: Sequence[dict]) -> Iterator[str]:
    for position, ann in enumerate(anns):
        if not ann.get("segmentation"):
            yield (
                f"annotation {ann.get('id')!r} of image {ann.get('image_id')!r} (record {position} "
                "of `annotations`): has no `segmentation`; masks can only be evaluated against "
                "masks: add it, or remove the annotation"
            )


def _detection_faults(detections: Sequence[dict], images: dict, names: dict) -> Iterator[str]:
    compressed: list[tuple[str, dict]] = []
    for position, det in enumerate(detections):
        if not isinstance(det, dict):
            yield f"record {position}: is a {type(det).__name__}, not an object"
            continue
        ident = det.get("image_id")
        image = images.get(ident) if isinstance(ident, Hashable) else None
        name = f", file_name {image.get('file_name')!r}" if image else ""
        who = f"detection on image {ident!r} (record {position}{name})"
        fault = _detection_fault(det, image, names)
        if fault:
            yield f"{who}: {fault}"
        elif not isinstance(det["segmentation"]["counts"], list):
            compressed.append((who, det["segmentation"]))
    totals = pixel_counts([_text(rle["counts"]) for _, rle in compressed])
    for (who, rle), total in zip(compressed, totals.tolist(), strict=True):
        if total != rle["size"][0] * rle["size"][1]:
            yield f"{who}: {_wrong_counts(rle)}"


def _detection_fault(det: dict, image: dict | None, names: dict) -> str | None:
    if image is None:
        return "the ground truth has no such image; was another data set evaluated?"
    category, score = det.get("category_id"), det.get("score")
    if not isinstance(category, Hashable) or category not in names:
        return (
            f"the ground truth has no category {category!r} but {_some(names)}; write "
            "`category_id` as there"
        )
    if not isinstance(score, Real) or not math.isfinite(score):
        return f"its score {score!r} is not a finite number"
    rle = det.get("segmentation")
    if rle is None:
        return "has no `segmentation`; boxes alone have no masks to evaluate"
    if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str | bytes | list):
        return 'its `segmentation` is not an RLE {"size": [height, width], "counts": ...}'
    size = [image["height"], image["width"]]
    if list(rle.get("size", ())) != size:
        return (
            f"its mask has the size {rle.get('size')!r} but the image's record says {size} "
            "(height, width); bring the mask to the size of the original image"
        )
    counts = rle["counts"]
    if isinstance(counts, list) and (
        not all(isinstance(count, int) and count >= 0 for count in counts)
        or sum(counts) != size[0] * size[1]
    ):
        return _wrong_counts(rle)
    return None


def _wrong_counts(rle: dict) -> str:
    return f"the counts of its RLE do not add up to its size {rle['size']!r}; encode it again"


def _some(names: Collection) -> str:
    shown = ", ".join(repr(name) for name in list(names)[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")
