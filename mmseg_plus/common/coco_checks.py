"""What can be wrong with a COCO file, told before the training starts and by the record's name.

The checks read numbers only, no pixels: about a second and a half for COCO's 860,000 annotations,
and ten more where each had a mask of 400 characters as a compressed RLE.
Each returns descriptions of faults; `raise_faults` makes one error of them.
"""

import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from mmseg_plus.common.errors import UserError

from .rle import pixel_counts

#: What ``iscrowd`` may be; JSON's false and true equal them. Texts such as "0" must not pass: what
#: asks for 1 takes them for no crowd, and what asks for truth, as mmdet does, for one.
CROWD_FLAGS = (0, 1)

_SHOWN = 5


class AnnotationError(UserError, ValueError):
    """A record of an annotation file cannot be used; the message names it and the mend."""


class MissingDataError(AnnotationError, FileNotFoundError):
    """An annotation file, or a file that it names, is not there."""


def raise_faults(
    source: str,
    faults: Iterable[str],
    error: Callable[[str], Exception] = AnnotationError,
) -> None:
    """Raise one error for all the faults of a file, with the first few of them in full.

    Args:
        source: The file that the faults are in.
        faults: Descriptions, each with its record and its mend.
        error: The exception to raise.

    Raises:
        Exception: ``error(message)``, if there is any fault.
    """
    faults = iter(faults)
    shown = list(islice(faults, _SHOWN))
    if not shown:
        return
    hidden = sum(1 for _ in faults)
    if len(shown) == 1:
        raise error(f"{source}: {shown[0]}")
    rest = f"\n  and {hidden} more" if hidden else ""
    lines = "".join(f"\n  {fault}" for fault in shown)
    raise error(f"{source}: {len(shown) + hidden} faults:{lines}{rest}")


def read_annotation_file(path: str, source: str, required: Sequence[str]) -> dict:
    """Read a COCO JSON and make sure that its parts are there.

    Args:
        path: The local file.
        source: The name to use for it in messages.
        required: Keys that must be present, each holding a list of objects.

    Raises:
        MissingDataError: There is no such file.
        AnnotationError: It is no JSON, or lacks a part.
    """
    if not os.path.isfile(path):
        raise MissingDataError(
            f"{source}: there is no such annotation file; check `data_root` and `ann_file` of the "
            f"data set (looked in {os.path.abspath(os.path.dirname(path))})"
        )
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as fault:
        raise AnnotationError(
            f"{source}: not a JSON file ({fault}); is it cut short or another kind of file? "
            "Fetch or export it again"
        ) from None
    if not isinstance(content, dict):
        raise AnnotationError(
            f"{source}: holds a {type(content).__name__}, not a COCO data set (an object with "
            f"{_quoted(required)}); results files are lists and cannot be trained on"
        )
    missing = [key for key in required if key not in content]
    if missing:
        hint = (
            "; for a file without ground truth set `require_annotations=False`"
            if missing == ["annotations"]
            else ""
        )
        raise AnnotationError(
            f"{source}: lacks {_quoted(missing)} (it has {_quoted(content)}); "
            f"give a COCO file with {_quoted(required)}{hint}"
        )
    for key in ("images", "annotations", "categories"):
        records = content.get(key, [])
        if not isinstance(records, list) or not all(isinstance(item, dict) for item in records):
            raise AnnotationError(f"{source}: `{key}` must be a list of objects")
    return content


def check_categories(categories: Sequence[dict]) -> Iterator[str]:
    """Faults of the ``categories`` records: their ids and names."""
    seen = set()
    for position, category in enumerate(categories):
        ident, name = category.get("id"), category.get("name")
        who = f"category {ident!r} (name {name!r}, record {position} of `categories`)"
        if not isinstance(ident, int) or not isinstance(name, str):
            yield f"{who}: needs a whole number as `id` and a text as `name`"
        elif ident in seen or name in seen:
            yield f"{who}: its id or name occurs twice; make both unique"
        seen.update(item for item in (ident, name) if isinstance(item, (int, str)))


def check_images(images: Sequence[dict]) -> Iterator[str]:
    """Faults of the ``images`` records: their ids, names and sizes."""
    seen = set()
    for position, image in enumerate(images):
        ident, name = image.get("id"), image.get("file_name")
        who = f"image {ident!r} (file_name {name!r}, record {position} of `images`)"
        if not isinstance(ident, (int, str)):
            yield f"{who}: has no usable `id`; give it a number of its own"
            continue
        if ident in seen:
            yield f"{who}: its `id` occurs twice; give every image an id of its own"
        seen.add(ident)
        if not isinstance(name, str) or not name:
            yield f"{who}: has no `file_name`; add it"
        elif leaves_folder(name):
            yield (
                f"{who}: the file_name leaves the image folder; write it relative to "
                '`data_prefix`, without ".." and without a leading "/"'
            )
        if not all(_is_count(image.get(side)) for side in ("height", "width")):
            yield (
                f"{who}: height {image.get('height')!r} and width {image.get('width')!r} must be "
                "whole numbers > 0; write the size of the image file"
            )


def leaves_folder(name: str) -> bool:
    """Whether a relative file name points outside the folder that it is relative to."""
    parts = name.replace("\\", "/").split("/")
    return name.startswith(("/", "\\")) or bool(os.path.splitdrive(name)[0]) or ".." in parts


def check_instances(content: dict) -> Iterator[str]:
    """Faults of the ``annotations`` of a COCO instances file: references, boxes and masks."""
    images = {image.get("id"): image for image in content["images"]}
    categories = {category.get("id") for category in content["categories"]}
    seen = set()
    compressed: list[tuple[int, dict]] = []
    for position, ann in enumerate(content.get("annotations", ())):
        ident = ann.get("id")
        if not isinstance(ident, (int, str)):
            faults = ["has no usable `id`; give it a number of its own"]
        elif ident in seen:
            faults = ["its `id` occurs twice; give every annotation an id of its own"]
        else:
            faults = _instance_faults(ann, images, categories)
            seen.add(ident)
        for fault in faults:
            yield f"{_annotation_name(ann, position, images)}: {fault}"
        masks = ann.get("segmentation")
        if not faults and isinstance(masks, dict) and isinstance(masks["counts"], str):
            compressed.append((position, ann))
    # All at once, because a call costs more than most masks.
    totals = pixel_counts([ann["segmentation"]["counts"] for _, ann in compressed])
    for (position, ann), total in zip(compressed, totals.tolist(), strict=True):
        height, width = ann["segmentation"]["size"]
        if total != height * width:
            yield f"{_annotation_name(ann, position, images)}: {wrong_counts([height, width])}"


def _annotation_name(ann: dict, position: int, images: dict) -> str:
    image = _lookup(images, ann.get("image_id")) or {}
    return (
        f"annotation {ann.get('id')!r} of image {ann.get('image_id')!r} "
        f"(file_name {image.get('file_name')!r}, record {position} of `annotations`)"
    )


def _instance_faults(ann: dict, images: dict, categories: Collection) -> list[str]:
    faults = []
    image = _lookup(images, ann.get("image_id"))
    if image is None:
        faults.append(
            f"unknown image_id {ann.get('image_id')!r}; add the image to `images` or remove the "
            "annotation"
        )
    if not _known(ann.get("category_id"), categories):
        faults.append(_unknown_category(ann.get("category_id")))
    if not _is_box(ann.get("bbox")):
        faults.append(f"bbox {ann.get('bbox')!r} is not 4 finite numbers [x, y, width, height]")
    if not _is_finite_number(ann.get("area")):
        faults.append(f"area {ann.get('area')!r} is not a number; write the mask area in pixels")
    if ann.get("iscrowd", 0) not in CROWD_FLAGS:
        faults.append(_wrong_crowd(ann))
    masks = ann.get("segmentation")
    if masks:
        fault = mask_fault(masks, image)
        if fault:
            faults.append(fault)
    return faults


def mask_fault(masks: object, image: dict | None) -> str | None:
    """What is wrong with a ``segmentation`` that is there, counts of compressed RLEs apart.

    Args:
        masks: Polygons or an RLE.
        image: The image's record; its size is not looked at where it is None.
    """
    if isinstance(masks, list):
        for number, polygon in enumerate(masks):
            if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
                size = f"{len(polygon)} numbers" if isinstance(polygon, list) else repr(polygon)
                return (
                    f"polygon {number} of its segmentation has {size}; a polygon is "
                    "[x1, y1, x2, y2, ...] with at least 3 points: remove it or trace it again"
                )
            try:
                # inf and nan survive a sum, which is far quicker than looking at every number.
                finite = math.isfinite(sum(polygon))
            except TypeError:
                finite = False
            if not finite:
                return (
                    f"polygon {number} of its segmentation holds something that is not a finite "
                    "number; trace it again"
                )
        return None
    if not isinstance(masks, dict) or not isinstance(masks.get("counts"), (str, list)):
        return (
            "its segmentation is neither a list of polygons nor an RLE "
            '{"size": [height, width], "counts": ...}'
        )
    size, counts = masks.get("size"), masks["counts"]
    if image is not None and size != [image.get("height"), image.get("width")]:
        return (
            f"its RLE has size {size!r} but the image is "
            f"{[image.get('height'), image.get('width')]} (height, width); encode the mask at the "
            "image's size or correct the image's record"
        )
    if isinstance(counts, list):
        try:
            fits = sum(counts) == size[0] * size[1] and min(counts) >= 0
        except (TypeError, ValueError):
            fits = False
        if not fits:
            return wrong_counts(size)
    return None


def wrong_counts(size: object) -> str:
    """The fault of an RLE whose counts do not cover its size."""
    return f"the counts of its RLE do not add up to its size {size!r}; encode it again"


def check_segments(content: dict, boxes: bool = True) -> Iterator[str]:
    """Faults of the ``annotations`` of a COCO panoptic file.

    Args:
        content: The file's.
        boxes: Whether segments need a ``bbox``; evaluation does not read it.
    """
    images = {image.get("id"): image for image in content["images"]}
    categories = {category.get("id") for category in content["categories"]}
    for category in content["categories"]:
        if "isthing" not in category:
            yield f"category {category.get('id')!r}: lacks `isthing`; write 1 (thing) or 0 (stuff)"
    for position, ann in enumerate(content.get("annotations", ())):
        image = _lookup(images, ann.get("image_id"))
        who = (
            f"the panoptic annotation of image {ann.get('image_id')!r} "
            f"(file_name {ann.get('file_name')!r}, record {position} of `annotations`)"
        )
        if image is None:
            yield (f"{who}: unknown image_id; add the image to `images` or remove the annotation")
        name = ann.get("file_name")
        if isinstance(name, str) and leaves_folder(name):
            yield f'{who}: the file_name leaves its folder; write a plain name such as "000001.png"'
        segments = ann.get("segments_info")
        if not isinstance(segments, list) or not all(isinstance(s, dict) for s in segments):
            yield f"{who}: lacks the list `segments_info`; is it an instances file?"
            continue
        for segment in segments:
            which = f"{who}, segment {segment.get('id')!r}"
            if not _is_count(segment.get("id")):
                yield f"{which}: its `id` must be a whole number > 0, the colour in the PNG"
            if not _known(segment.get("category_id"), categories):
                yield f"{which}: {_unknown_category(segment.get('category_id'))}"
            if boxes and not _is_box(segment.get("bbox")):
                yield f"{which}: bbox {segment.get('bbox')!r} is not 4 finite numbers"
            if not _is_finite_number(segment.get("area")):
                yield f"{which}: area {segment.get('area')!r} is not a number"
            if segment.get("iscrowd", 0) not in CROWD_FLAGS:
                yield f"{which}: {_wrong_crowd(segment)}"


def check_classes(configured: Sequence[str], categories: Sequence[dict]) -> Iterator[str]:
    """Faults between the classes of a data set's metainfo and the categories of its file."""
    if isinstance(configured, str):
        yield f"`metainfo.classes` is the text {configured!r}; write a tuple: ({configured!r},)"
        return
    present = [category.get("name") for category in categories]
    absent = [name for name in configured if name not in present]
    if absent:
        yield (
            f"no category is called {_some(absent)}, which `metainfo.classes` lists; the file has "
            f"{_some(present)}: set `metainfo=dict(classes=...)` to names of the file"
        )
        return
    wanted = [name for name in present if name in set(configured)]
    if list(configured) != wanted:
        yield (
            f"`metainfo.classes` is in another order than the file, by which labels are numbered, "
            f"so names and labels would not match; write it as {_some(wanted)}"
        )


def missing_files(entries: Iterable[tuple[str, object, str]]) -> Iterator[str]:
    """Faults of files that are not there, with one listing of each folder instead of a stat each.

    Args:
        entries: ``(kind, image id, path)`` of each file, for example ``('image', 7, 'a/b.jpg')``.
    """
    listings: dict[str, set[str] | None] = {}
    for kind, ident, path in entries:
        folder, name = os.path.split(path)
        if folder not in listings:
            listings[folder] = _names(folder)
        names = listings[folder]
        if names is None:
            yield (
                f"image {ident!r}: the folder of {kind} file {path} does not exist; check "
                "`data_root` and `data_prefix`"
            )
        elif name not in names:
            yield (
                f"image {ident!r}: {kind} file {path} does not exist; put it there, or remove its "
                "record from the file"
            )


def read_picture(ident: object, path: str, height: int, width: int) -> np.ndarray:
    """Read an image as mmdet does, turned the way its Exif orientation says.

    Args:
        ident: The image's id.
        path: The file on the local disk.
        height: Of the image's record, in pixels.
        width: Of the image's record, in pixels.

    Returns:
        (H, W, 3) uint8 BGR.

    Raises:
        AnnotationError: The file is missing, unreadable, or not of the record's size.
    """
    try:
        image = cv2.imread(path, cv2.IMREAD_COLOR)
        if image is not None and image.shape[:2] == (height, width):
            return image
        fault = picture_fault(ident, path, height, width)
    except cv2.error as error:  # larger than OpenCV opens
        fault = f"image {ident!r}: image file {path} cannot be read as a picture ({error.err})"
    raise AnnotationError(fault or f"image {ident!r}: image file {path} cannot be read")


def picture_fault(ident: object, path: str, height: int, width: int) -> str | None:
    """What is wrong with an image file, looked at once something has failed on it.

    Args:
        ident: The image's id.
        path: The file on the local disk.
        height: Of the image's record, in pixels.
        width: Of the image's record, in pixels.

    Returns:
        The fault, None where the file can be read and has that size.
    """
    who = f"image {ident!r}: image file {path}"
    if not os.path.isfile(path):
        return f"{who} does not exist any more; put it back"
    # Read as mmdet does, turned the way its Exif orientation says.
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        return f"{who} cannot be read as a picture; fetch it again, or remove its record"
    if picture.shape[:2] != (height, width):
        return (
            f"{who} is {list(picture.shape[:2])} (height, width) but its record says "
            f"{[height, width]}; correct the record, and masks with it, or the file"
        )
    return None


def _names(folder: str) -> set[str] | None:
    try:
        with os.scandir(folder or ".") as entries:
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lookup(images: dict, ident: object) -> dict | None:
    return images.get(ident) if isinstance(ident, (int, str)) else None


def _known(ident: object, idents: Collection) -> bool:
    return isinstance(ident, (int, str)) and ident in idents


def _unknown_category(ident: object) -> str:
    return f"unknown category_id {ident!r}; add it to `categories` or correct the annotation"


def _wrong_crowd(record: dict) -> str:
    return (
        f"iscrowd {record['iscrowd']!r} must be the number 0 or 1 (a crowd); write it so, or leave "
        "`iscrowd` out where nothing is a crowd"
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_finite_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_box(box: object) -> bool:
    if not isinstance(box, (list, tuple)) or len(box) != 4:
        return False
    try:
        return math.isfinite(sum(box))
    except TypeError:
        return False


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name) for name in names[:8]) + more
