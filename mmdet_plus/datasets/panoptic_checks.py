"""What can be wrong with a COCO panoptic file, and which of its categories are things.

A category is a thing or stuff by its ``isthing`` (1 or 0) in the file. A file without it is usable
where the config tells: ``metainfo=dict(classes=..., thing_classes=...)``, or ``stuff_classes``.
"""

import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from mmseg_plus.common.coco_checks import AnnotationError, check_segments

# A data set of 133 classes is told whole; one of a thousand would fill the screen.
_SHOWN = 200


def check_panoptic(content: dict, boxes: bool = True) -> Iterator[str]:
    """Faults of a panoptic file's categories and annotations, a missing ``isthing`` apart.

    Args:
        content: The file's.
        boxes: Whether segments need a ``bbox``.
    """
    annotations = content.get("annotations", [])
    kinds = [ann.keys() & {"bbox", "segmentation"} for ann in annotations]
    if any(kinds) and not any("segments_info" in ann for ann in annotations):
        yield (
            "it is a file of instances (its annotations have masks or boxes of their own, but no "
            "`segments_info`); give the panoptic file, of COCO panoptic_*.json"
        )
        return
    for category in content["categories"]:
        kind = category.get("isthing", 0)
        if kind not in (0, 1):
            yield f"{_name(category)}: isthing {kind!r} must be 1 (thing) or 0 (stuff)"
    # Whether `isthing` is there, `tell_things` looks when it is known what the config says.
    categories = [{"isthing": 0, **category} for category in content["categories"]]
    yield from check_segments({**content, "categories": categories}, boxes)
    images = set()
    for position, ann in enumerate(annotations):
        who = f"the panoptic annotation of image {ann.get('image_id')!r} (record {position})"
        if isinstance(ann.get("image_id"), int | str):
            if ann["image_id"] in images:
                yield f"{who}: the image has one already; put all its segments into one"
            images.add(ann["image_id"])
        segments = ann.get("segments_info")
        if isinstance(segments, list):
            idents = Counter(repr(s.get("id")) for s in segments if isinstance(s, dict))
            for ident, count in idents.items():
                if count > 1:
                    yield f"{who}: {count} segments have the id {ident}; give each its own colour"


def things_told(metainfo: Mapping[str, Any]) -> dict[str, bool]:
    """Which classes a data set's metainfo calls things, and which stuff.

    Args:
        metainfo: With ``classes``, and ``thing_classes``, ``stuff_classes``, both or neither.

    Returns:
        Whether it is a thing, by class; empty where the metainfo does not tell.

    Raises:
        AnnotationError: The three contradict each other.
    """
    told = {key: metainfo[key] for key in ("thing_classes", "stuff_classes") if key in metainfo}
    if not told:
        return {}
    classes = list(metainfo["classes"])
    for key, names in told.items():
        if isinstance(names, str):
            raise AnnotationError(f"`metainfo.{key}` is the text {names!r}; write ({names!r},)")
        unknown = [name for name in names if name not in classes]
        if unknown:
            raise AnnotationError(
                f"`metainfo.{key}` lists {_some(unknown)}, which `metainfo.classes` lacks; give "
                "`thing_classes` and `stuff_classes` of this data set"
            )
    stuff = told.get("stuff_classes", ())
    things = told.get("thing_classes", [name for name in classes if name not in stuff])
    if "stuff_classes" in told:
        wrong = [name for name in classes if (name in things) == (name in stuff)]
        if wrong:
            raise AnnotationError(
                f"`metainfo` lists {_some(wrong)} in both or neither of `thing_classes` and "
                "`stuff_classes`; each class belongs in one of them"
            )
    return {name: name in things for name in classes}


def tell_things(
    categories: Sequence[dict],
    told: Mapping[str, bool],
    mend: str = "`metainfo=dict(classes=(...), thing_classes=(...))` of the data set",
) -> Iterator[str]:
    """Write ``isthing`` into the categories that lack it.

    Args:
        categories: Records of a file.
        told: Which are things besides, by name.
        mend: Where the user can say so.

    Yields:
        Faults: categories of which nothing is known, or two things.
    """
    lacking = []
    for category in categories:
        thing = told.get(category["name"])
        if "isthing" not in category:
            if thing is None:
                lacking.append(category)
            else:
                category["isthing"] = int(thing)
        elif thing is not None and thing != bool(category["isthing"]):
            kind = "thing" if thing else "stuff"
            yield (
                f"{_name(category)}: its isthing is {category['isthing']!r}, but the config calls "
                f"it {kind}; correct one of them"
            )
    if lacking:
        more = f" (and {len(lacking) - 1} more of {len(categories)})" if len(lacking) > 1 else ""
        yield (
            f"{_name(lacking[0])}{more}: lacks `isthing`; write 1 (thing) or 0 (stuff) into each "
            f"category, or name all things in {mend}"
        )


def check_names(names: Sequence[str], categories: Sequence[dict]) -> Iterator[str]:
    """Faults of ``metainfo.classes``, by which labels are numbered, in any order."""
    if isinstance(names, str):
        yield f"`metainfo.classes` is the text {names!r}; write a tuple: ({names!r},)"
        return
    present = [category["name"] for category in categories]
    absent = [name for name in names if name not in present]
    if absent:
        yield (
            f"no category is called {_some(absent[:8])}, which `metainfo.classes` lists; set "
            f"`metainfo=dict(classes={_tuple(things_first(present, categories))})`, of which you "
            "may leave out what no segment has"
        )
    for name, count in Counter(names).items():
        if count > 1:
            yield f"`metainfo.classes` lists {name!r} {count} times; once is enough"


def check_usage(cat_ids: Collection[int], content: dict) -> Iterator[str]:
    """Faults of segments whose category is not among those that are in use."""
    names = {category["id"]: category for category in content["categories"]}
    used: dict[int, list] = {}
    for ann in content.get("annotations", ()):
        for segment in ann["segments_info"]:
            used.setdefault(segment["category_id"], []).append(ann["image_id"])
    for ident in used.keys() - set(cat_ids):
        yield (
            f"{_name(names[ident])}: has {len(used[ident])} segments, the first in image "
            f"{used[ident][0]!r}, but `metainfo.classes` lacks it; list it there, or take its "
            "segments out of file and PNGs"
        )


def check_order(names: Sequence[str], categories: Sequence[dict]) -> Iterator[str]:
    """Faults of classes of which not all things come first, as mmdet's panoptic models count."""
    ordered = things_first(names, categories)
    if list(names) != ordered:
        yield (
            "`metainfo.classes` has stuff before things, but the labels of mmdet's panoptic models "
            f"count all things first; set `metainfo=dict(classes={_tuple(ordered)})` (the file "
            "may stay as it is), or `things_first=False` for a model of your own"
        )


def things_first(names: Sequence[str], categories: Sequence[dict]) -> list[str]:
    """The names, things before stuff and otherwise in their order."""
    stuff = {category["name"] for category in categories if not category.get("isthing", 1)}
    return sorted(names, key=lambda name: name in stuff)


def map_fault(
    ident: object, path: str, height: int, width: int, size_only: bool = False
) -> str | None:
    """What is wrong with the PNG of an image.

    Args:
        ident: The image's id.
        path: The file on the local disk.
        height: Of the image's record, in pixels.
        width: Of the image's record, in pixels.
        size_only: Look only at the size that a PNG has in its first bytes.

    Returns:
        The fault, None where there is none.
    """
    who = f"image {ident!r}: segmentation map file {path}"
    try:
        with open(path, "rb") as file:
            size = png_size(file.read(24))
    except OSError:
        return f"{who} does not exist any more; put it back"
    if not size_only:
        picture = cv2.imread(path, cv2.IMREAD_COLOR)
        if picture is None:
            return f"{who} cannot be read as a picture; fetch it again, or remove its record"
        size = picture.shape[:2]
    if size is not None and tuple(size) != (height, width):
        return (
            f"{who} is {list(size)} (height, width) but its image's record says {[height, width]}; "
            "write it anew at the image's size, without interpolation: its colours are ids"
        )
    return None


def without_pixels(results: Mapping[str, Any]) -> list[int]:
    """Segments of which nothing is in the maps that were loaded from a PNG.

    Args:
        results: What mmdet's ``LoadPanopticAnnotations`` leaves: ``segments_info``, and as far as
            they were loaded ``gt_masks`` (a (H, W) mask of each thing, in that order) and
            ``gt_seg_map`` (H, W), labels, which also tells of stuff and crowds.

    Returns:
        Their ids. A segment of stuff is seen through others of its class.
    """
    masks, labels = results.get("gt_masks"), results.get("gt_seg_map")
    present = iter(()) if masks is None else iter([mask.any() for mask in masks.masks])
    last = max((segment["category"] for segment in results["segments_info"]), default=0)
    number = None if labels is None else np.bincount(labels.ravel(), minlength=last + 1)
    empty = []
    for segment in results["segments_info"]:
        if segment["is_thing"] and masks is not None:
            there = next(present)
        else:
            there = number is None or number[segment["category"]] > 0
        if not there:
            empty.append(segment["id"])
    return empty


def empty_segments_fault(ident: object, path: str, empty: Sequence[int], total: int) -> str:
    """Describe segments without pixels, with what is probably wrong with the PNG.

    Args:
        ident: The image's id.
        path: The PNG; its cause is looked for if it is on the local disk.
        empty: Ids of the segments, at least one.
        total: How many segments the image has.
    """
    more = f" (and {len(empty) - 1} more of {total})" if len(empty) > 1 else ""
    return (
        f"image {ident!r}: segment {empty[0]}{more} has no pixel in the segmentation map file "
        f"{path}; {_why_empty(path, empty)}"
    )


def _why_empty(path: str, empty: Sequence[int]) -> str:
    rule = (
        "ids stand in three colours of 8 bits, R + 256 G + 65536 B: write it with panopticapi's "
        "id2rgb"
    )
    picture = cv2.imread(path, cv2.IMREAD_UNCHANGED)
    if picture is not None and (picture.ndim == 2 or picture.dtype != np.uint8):
        kind = "grey" if picture.ndim == 2 else "in colours"
        return f"it is {kind} with {8 * picture.itemsize} bits, but {rule}"
    if picture is not None:
        blue, green, red = np.moveaxis(picture[..., :3].astype(np.int64), -1, 0)
        if set(empty) <= set(np.unique(blue + 256 * green + 65536 * red).tolist()):
            return f"its red and blue are swapped (OpenCV writes B, G, R); {rule}"
    return (
        f"{rule}. If it is the right PNG, take the segment out of the JSON, or set "
        "`strict=False` of the data set to train on an empty mask"
    )


def png_size(start: bytes) -> tuple[int, int] | None:
    """Height and width by the first 24 bytes of a PNG; None for other files."""
    if len(start) < 24 or not start.startswith(b"\x89PNG\r\n\x1a\n"):
        return None
    width, height = struct.unpack(">II", start[16:24])
    return height, width


def _name(category: dict) -> str:
    return f"category {category.get('id')!r} (name {category.get('name')!r})"


def _tuple(names: Sequence[str]) -> str:
    return repr(tuple(names)) if len(names) <= _SHOWN else "(...)"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(repr(name) for name in names[:8]) + more
