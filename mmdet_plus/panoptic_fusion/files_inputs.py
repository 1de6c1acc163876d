"""What ``tools/panoptic_fuse.py`` is given: saved results of any model, checked before the work."""

import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmseg_plus.common.coco_checks import (
    AnnotationError,
    MissingDataError,
    check_categories,
    check_images,
    raise_faults,
    read_annotation_file,
)
from mmseg_plus.common.coco_masks import mask_faults
from mmseg_plus.common.coco_results import is_score, read_results
from mmseg_plus.common.files import file_digest

#: How semantic maps number the classes.
SEM_VALUES = ("ids", "labels")

#: How labels and channels count the categories.
SEM_ORDERS = ("file", "things-first")

#: The kinds of files that an image may have, and what each is called.
FILE_KINDS = dict(sem="semantic maps", probs="probabilities", occlusion="occlusion matrices")

# What stands for no class where no class has that number.
_VOID_VALUES = (0, 255, 65535)
_VALUES = 1 << 16


@dataclass(frozen=True)
class ImageFiles:
    """An image, its records and its files.

    Attributes:
        image_id: Of the image.
        height: In pixels.
        width: In pixels.
        png: Name of its panoptic map.
        records: Of its instances.
        names: What to call each record in messages.
        paths: Of its files, by what :data:`FILE_KINDS` calls them; those that the job needs.
        stamp: Sizes and times of these files, which tell whether one has changed.
    """

    image_id: int | str
    height: int
    width: int
    png: str
    records: list[dict] = field(repr=False)
    names: list[str] = field(repr=False)
    paths: dict[str, str]
    stamp: str


class ClassTable:
    """The classes of a panoptic file, and how semantic maps and probabilities number them.

    Stuff numbers count the stuff classes from 1 in the order of the file; 0 is anything else.

    Args:
        categories: With ``id`` and ``isthing``.
        sem_values: Semantic maps hold category ``ids``, or ``labels``, which count from 0.
        sem_order: How labels and channels count: as the ``file`` does, or ``things-first``, as
            mmdet's panoptic models do. None: not told.

    Attributes:
        ambiguous: The order is not told, and the two give different stuff.
    """

    def __init__(
        self, categories: Sequence[dict], sem_values: str, sem_order: str | None = None
    ) -> None:
        self.sem_values, self.sem_order = sem_values, sem_order
        self.ids = [category["id"] for category in categories]
        self.things = {category["id"] for category in categories if category["isthing"]}
        self.stuff = [ident for ident in self.ids if ident not in self.things]
        self._numbers = {ident: number for number, ident in enumerate(self.stuff, 1)}
        #: Stuff number by the value in a semantic map, -1 for values that mean nothing.
        self.by_value = np.full(_VALUES, -1, np.int64)
        self.by_value[list(_VOID_VALUES)] = 0
        things_first = [*(i for i in self.ids if i in self.things), *self.stuff]
        self.ambiguous = sem_order is None and things_first != self.ids
        #: Ids in the order of labels and channels.
        self.ordered = things_first if sem_order == "things-first" else self.ids
        by_id = sem_values == "ids"
        values = self.ids if by_id else range(len(self.ids))
        for value, ident in zip(values, self.ids if by_id else self.ordered, strict=True):
            if 0 <= value < _VALUES:
                self.by_value[value] = self._numbers.get(ident, 0)

    def by_channel(self, channels: int) -> list[int] | None:
        """Stuff number by the channel of probabilities, None where no order has so many."""
        if channels == len(self.ids):
            return [self._numbers.get(ident, 0) for ident in self.ordered]
        if channels == len(self.stuff) + 1:
            return list(range(channels))
        return None


def ambiguity(what: str) -> str:
    """The fault of labels or channels of which it is not told what they count.

    Args:
        what: Their name, in the plural.
    """
    return (
        f"`categories` has stuff before things, and it is not told how {what} count them; say "
        "--sem-order file if in the order of that list, --sem-order things-first if all things "
        "come first, as with mmdet's panoptic models and the data sets of this package"
    )


class FusionFiles:
    """All inputs of a job, image by image; an image's files are opened by the ``read`` functions.

    Args:
        instances: COCO results of instances with masks.
        ann_file: COCO JSON with ``images`` and ``categories`` with ``isthing``.
        sem: Folder of semantic maps, or None.
        sem_probs: Folder of probabilities, or None.
        occlusion: Folder of occlusion matrices, or None.
        sem_values: One of :data:`SEM_VALUES`.
        sem_order: One of :data:`SEM_ORDERS`, or None where it does not matter.
        ranking: Each record must have a ``ranking_score``.

    Raises:
        UserError: Something is missing or unusable, which the message names with the mend.
    """

    def __init__(
        self,
        instances: str | os.PathLike,
        ann_file: str | os.PathLike,
        sem: str | os.PathLike | None,
        sem_probs: str | os.PathLike | None,
        occlusion: str | os.PathLike | None,
        sem_values: str = "ids",
        sem_order: str | None = None,
        ranking: bool = False,
    ) -> None:
        self.instances, self.ann_file = os.fspath(instances), os.fspath(ann_file)
        folders = dict(sem=sem, probs=sem_probs, occlusion=occlusion)
        self._folders = {kind: os.fspath(path) for kind, path in folders.items() if path}
        self.categories, self.image_records = _read_images(self.ann_file)
        self.table = ClassTable(self.categories, sem_values, sem_order)
        if sem and sem_values == "labels" and self.table.ambiguous:
            raise AnnotationError(f"{self.ann_file}: {ambiguity('the labels of --sem')}")
        positions = _read_records(
            self.instances, self.ann_file, self.image_records, self.table, ranking
        )
        for kind, folder in self._folders.items():
            if not os.path.isdir(folder):
                raise MissingDataError(f"{folder}: there is no such folder of {FILE_KINDS[kind]}")
        faults: list[str] = []
        self.images = [
            self._with_files(image, records, faults)
            for image, records in zip(self.image_records, positions, strict=True)
        ]
        raise_faults(self.ann_file, faults, MissingDataError)

    def inputs(self) -> dict[str, Any]:
        """What the inputs are, the files of each image apart."""
        return {
            "instances": file_digest(self.instances),
            "annotations": file_digest(self.ann_file),
            "files": sorted(self._folders),
        }

    def _with_files(
        self, image: dict, records: list[tuple[int, dict]], faults: list[str]
    ) -> ImageFiles:
        stem = posixpath.splitext(image["file_name"])[0]
        paths, stamps = {}, []
        for kind, folder in self._folders.items():
            if kind == "occlusion" and not records:
                continue
            paths[kind] = os.path.join(folder, f"{stem}.{'png' if kind == 'sem' else 'npz'}")
            try:
                found = os.stat(paths[kind])
                stamps.append(f"{found.st_size} {found.st_mtime_ns}")
            except (FileNotFoundError, NotADirectoryError, ValueError):
                faults.append(
                    f"image {image['id']!r}: {paths[kind]} does not exist; put the image's "
                    f"{FILE_KINDS[kind]} there, or give the annotation file of these results"
                )
        return ImageFiles(
            image_id=image["id"],
            height=image["height"],
            width=image["width"],
            png=f"{stem}.png",
            records=[record for _, record in records],
            names=[_name(position, record) for position, record in records],
            paths=paths,
            stamp=", ".join(stamps),
        )


def _read_images(path: str) -> tuple[list[dict], list[dict]]:
    if not os.path.isfile(path):
        raise MissingDataError(f"{path}: there is no such annotation file")
    content = read_annotation_file(path, path, ("images", "categories"))
    categories, images = content["categories"], content["images"]
    if not categories:
        raise AnnotationError(f"{path}: `categories` is empty; give the file with the classes")
    raise_faults(path, check_categories(categories))
    raise_faults(path, _things_faults(categories))
    raise_faults(path, check_images(images))
    raise_faults(path, _png_faults(images))
    return categories, images


def _things_faults(categories: Iterable[dict]) -> Iterator[str]:
    for position, category in enumerate(categories):
        if category.get("isthing") not in (0, 1):
            yield (
                f"category {category['id']!r} (record {position} of `categories`): isthing "
                f"{category.get('isthing')!r} must be 1 (thing) or 0 (stuff); give a COCO panoptic "
                "file"
            )


def _png_faults(images: Iterable[dict]) -> Iterator[str]:
    seen: dict[str, object] = {}
    for image in images:
        stem = posixpath.splitext(image["file_name"])[0]
        if stem in seen:
            yield (
                f"images {seen[stem]!r} and {image['id']!r}: both would be written to {stem}.png; "
                "give their files different names"
            )
        seen[stem] = image["id"]


def _read_records(
    path: str, ann_file: str, images: Sequence[dict], table: ClassTable, ranking: bool
) -> list[list[tuple[int, dict]]]:
    """The records of each image with their positions in the file, looked through."""
    content = read_results(path)
    places = {image["id"]: place for place, image in enumerate(images)}
    raise_faults(path, _record_faults(content, ann_file, places, table, ranking))
    raise_faults(path, mask_faults(_masks(content, images, places)))
    by_image: list[list[tuple[int, dict]]] = [[] for _ in images]
    for position, record in enumerate(content):
        by_image[places[record["image_id"]]].append((position, record))
    return by_image


def _record_faults(
    records: Iterable[object], ann_file: str, places: dict, table: ClassTable, ranking: bool
) -> Iterator[str]:
    known, mend = set(table.ids), "give the annotation file that the results were made for"
    for position, record in enumerate(records):
        if not isinstance(record, dict):
            yield f"record {position}: is a {type(record).__name__}, not an object"
            continue
        who = _name(position, record)
        image_id, category_id = record.get("image_id"), record.get("category_id")
        if not isinstance(image_id, (int, str)) or image_id not in places:
            yield f"{who}: unknown image_id {image_id!r}; {ann_file} has no such image: {mend}"
        if not isinstance(category_id, (int, str)) or category_id not in known:
            yield (
                f"{who}: unknown category_id {category_id!r}; {ann_file} has no such category: "
                f"{mend}"
            )
        elif category_id not in table.things:
            yield (
                f"{who}: category_id {category_id!r} is stuff; instances are of things: remove the "
                "record, or correct `isthing` of its category"
            )
        if not is_score(record.get("score")):
            yield f"{who}: score {record.get('score')!r} is not a finite number; results need one"
        if ranking and not is_score(record.get("ranking_score")):
            yield (
                f"{who}: ranking_score {record.get('ranking_score')!r} is not a finite number; "
                "--fuser spatial-ranking needs one in each record"
            )


def _masks(
    records: Iterable[dict], images: Sequence[dict], places: dict
) -> Iterator[tuple[str, object, int, int]]:
    for position, record in enumerate(records):
        image = images[places[record["image_id"]]]
        yield (
            _name(position, record),
            record.get("segmentation"),
            image["height"],
            image["width"],
        )


def _name(position: int, record: dict) -> str:
    return f"record {position} (image_id {record.get('image_id')!r})"
