"""Instances in COCO's files: ground truth, and results as they are sent to its server.

Shape legend: N instances of an image of H x W pixels.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from mmseg_plus.common.coco_checks import (
    MissingDataError,
    check_categories,
    check_images,
    check_instances,
    missing_files,
    raise_faults,
    read_annotation_file,
)
from mmseg_plus.common.coco_masks import mask_area, mask_box, mask_faults, stack_masks
from mmseg_plus.common.coco_results import is_score, read_results
from mmseg_plus.common.files import file_digest

from .instances import ImageInstances
from .sources_files import require_ending


class CocoImages:
    """The images of a COCO annotation file, and where their instances stand in a list of records.

    Args:
        ann_file: COCO JSON with ``images`` and ``categories``.
        img_dir: Folder of the images.
        required: Keys that the annotation file must have.

    Raises:
        MissingDataError: File or folder is missing.
        AnnotationError: A record is unusable.
    """

    def __init__(
        self,
        ann_file: str | os.PathLike,
        img_dir: str | os.PathLike,
        required: Sequence[str] = ("images", "categories"),
    ) -> None:
        self.ann_file, self.img_dir = os.fspath(ann_file), os.fspath(img_dir)
        if not os.path.isfile(self.ann_file):
            raise MissingDataError(f"{self.ann_file}: there is no such annotation file")
        if not os.path.isdir(self.img_dir):
            raise MissingDataError(f"{self.img_dir}: there is no such folder of images")
        content = read_annotation_file(self.ann_file, self.ann_file, required)
        raise_faults(self.ann_file, check_categories(content["categories"]))
        raise_faults(self.ann_file, check_images(content["images"]))
        self.content = content
        self.images = [
            (image["id"], image["file_name"], image["height"], image["width"])
            for image in content["images"]
        ]
        self.category_ids = [category["id"] for category in content["categories"]]
        self.places = {image[0]: place for place, image in enumerate(self.images)}

    def take_content(self) -> dict:
        """Hand out the whole file, once, so that it is not kept."""
        content, self.content = self.content, {}
        return content

    def by_image(self, image_ids: Sequence[int | str]) -> list[list[int]]:
        """Group records, each of which names its image, by the images of the file."""
        positions: list[list[int]] = [[] for _ in self.images]
        for position, image_id in enumerate(image_ids):
            positions[self.places[image_id]].append(position)
        return positions

    def path(self, place: int) -> str:
        """The file of an image."""
        return os.path.join(self.img_dir, self.images[place][1])

    def require_files(self, places: Sequence[int]) -> None:
        """Raise a MissingDataError unless the files of these images are there."""
        entries = (("image", self.images[place][0], self.path(place)) for place in places)
        raise_faults(self.ann_file, missing_files(entries), MissingDataError)

    def instances(
        self,
        place: int,
        segmentations: Sequence[object],
        names: Sequence[str],
        source: str,
        **fields,
    ) -> ImageInstances:
        """Decode the masks of an image.

        Args:
            place: Of the image in the file.
            segmentations: Of its N instances.
            names: What to call each of them in a fault.
            source: The file that they come from.
            fields: The other fields of :class:`ImageInstances`.

        Raises:
            AnnotationError: A mask cannot be decoded.
        """
        image_id, _, height, width = self.images[place]
        masks, faults = stack_masks(segmentations, names, height, width)
        raise_faults(source, faults)
        return ImageInstances(
            image_id=image_id,
            image_path=self.path(place),
            height=height,
            width=width,
            masks=masks,
            **fields,
        )


class _CocoInstances:
    """Records of a COCO file by image; what annotations and results have in common."""

    _images: CocoImages
    _file: str
    _records: list[dict]

    def _index(self, check_files: bool) -> None:
        self._positions = self._images.by_image([record["image_id"] for record in self._records])
        if check_files:
            self._images.require_files([i for i in range(len(self)) if self.count(i)])

    def __len__(self) -> int:
        """The number of images of the annotation file, those without instances among them."""
        return len(self._positions)

    def count(self, index: int) -> int:
        """The number of an image's instances."""
        return len(self._positions[index])

    def image_id(self, index: int) -> int | str:
        """The id of an image, told without decoding its instances."""
        return self._images.images[index][0]

    def _of_image(self, index: int) -> list[dict]:
        return [self._records[position] for position in self._positions[index]]

    def _decode(self, index: int, scores: np.ndarray, crowd: np.ndarray) -> ImageInstances:
        positions, records = self._positions[index], self._of_image(index)
        return self._images.instances(
            range(len(self))[index],
            [record["segmentation"] for record in records],
            [self._name(position) for position in positions],
            self._file,
            labels=np.array([record["category_id"] for record in records], np.int64),
            scores=scores,
            crowd=crowd,
            records=list(positions),
        )

    def _name(self, position: int) -> str:
        """What to call a record in messages."""
        raise NotImplementedError


class CocoGroundTruth(_CocoInstances):
    """The annotations of a COCO instances file, image by image.

    Held are the records, as JSON gives them; masks are decoded when an image is asked for.

    Args:
        ann_file: COCO JSON; masks as polygons or RLE.
        img_dir: Folder of the images.
        check_files: Whether images with instances must be there.

    Raises:
        MissingDataError: The file, the folder or an image is missing.
        AnnotationError: A record is unusable; the message names it and the mend.
    """

    def __init__(
        self,
        ann_file: str | os.PathLike,
        img_dir: str | os.PathLike,
        check_files: bool = True,
    ) -> None:
        required = ("images", "annotations", "categories")
        self._images = CocoImages(ann_file, img_dir, required)
        self._file = self._images.ann_file
        content = self._images.take_content()
        raise_faults(self._file, check_instances(content))
        self._records = content["annotations"]
        # What has been checked above; now that each has a mask, and within reach.
        raise_faults(self._file, mask_faults(self._masks()))
        self._index(check_files)

    def __getitem__(self, index: int) -> ImageInstances:
        """Decode the annotations of one image; the scores are ones."""
        records = self._of_image(index)
        return self._decode(
            index,
            scores=np.ones(len(records)),
            crowd=np.array([bool(record.get("iscrowd")) for record in records], bool),
        )

    def _masks(self) -> Iterator[tuple[str, object, int, int]]:
        for position, record in enumerate(self._records):
            _, _, height, width = self._images.images[self._images.places[record["image_id"]]]
            yield self._name(position), record.get("segmentation"), height, width

    def _name(self, position: int) -> str:
        record = self._records[position]
        return f"annotation {record['id']!r} (record {position} of `annotations`)"


class CocoResults(_CocoInstances):
    """COCO results: a JSON list of instances with scores.

    Each record is ``{"image_id", "category_id", "segmentation", "score"}`` and maybe more; the
    segmentation is an RLE, compressed or not, or polygons. Held are the records as JSON gives them
    (about 1.5 KB each with a mask of 300 characters); masks are decoded when an image is asked for.

    Args:
        results: The list.
        ann_file: COCO JSON with ``images`` and ``categories``; annotations are not looked at.
        img_dir: Folder of the images.
        check_files: Whether images with results must be there.

    Raises:
        MissingDataError: A file, the folder or an image is missing.
        AnnotationError: A record is unusable; the message names it and the mend.
    """

    def __init__(
        self,
        results: str | os.PathLike,
        ann_file: str | os.PathLike,
        img_dir: str | os.PathLike,
        check_files: bool = True,
    ) -> None:
        self._file = os.fspath(results)
        self._images = CocoImages(ann_file, img_dir)
        self._images.take_content()
        self._records = read_results(self._file)
        raise_faults(self._file, self._faults())
        raise_faults(self._file, mask_faults(self._masks()))
        self._index(check_files)

    def __getitem__(self, index: int) -> ImageInstances:
        """Decode the results of one image, in the order of the list."""
        records = self._of_image(index)
        return self._decode(
            index,
            scores=np.array([record["score"] for record in records], float),
            crowd=np.zeros(len(records), bool),
        )

    def inputs(self) -> dict[str, str]:
        """What the results are, as digests of the files that they come from."""
        return {
            "results": file_digest(self._file),
            "annotations": file_digest(self._images.ann_file),
        }

    def paths(self) -> list[str]:
        """The files that must not be written over."""
        return [self._file, self._images.ann_file]

    def check_target(self, out: str | os.PathLike) -> None:
        """Raise a UserError unless the refined results can go there."""
        require_ending(out, ".json")

    def write(self, path: Path, refined: Callable[[int], Mapping[int, str]]) -> None:
        """Write the list with refined masks, in its own order, record by record.

        A record whose mask has changed gets the new ``segmentation`` as a compressed RLE; its
        ``bbox`` and ``area``, where it has them, become those of the new mask (an empty mask
        leaves the ``bbox``). Its other fields, and all other records, stay as they are.

        Args:
            path: The file.
            refined: Gives, for the place of an image, the counts of each changed mask by the
                position of its record.
        """
        changed: dict[int, str] = {}
        for index in range(len(self)):
            changed.update(refined(index))
        with open(path, "w") as file:
            separator = "[\n"
            for position, record in enumerate(self._records):
                if position in changed:
                    _, _, *size = self._images.images[self._images.places[record["image_id"]]]
                    record = with_mask(record, changed[position], *size)
                file.write(separator + json.dumps(record))
                separator = ",\n"
            file.write("\n]\n" if self._records else "[]\n")

    def _faults(self) -> Iterator[str]:
        known = set(self._images.category_ids)
        for position, record in enumerate(self._records):
            if not isinstance(record, dict):
                yield f"record {position}: is a {type(record).__name__}, not an object"
                continue
            who = self._name(position)
            if not _is_in(record.get("image_id"), self._images.places):
                yield (
                    f"{who}: unknown image_id {record.get('image_id')!r}; {self._images.ann_file} "
                    "has no such image: give the annotation file that the results were made for"
                )
            if not _is_in(record.get("category_id"), known):
                yield (
                    f"{who}: unknown category_id {record.get('category_id')!r}; "
                    f"{self._images.ann_file} has no such category: give the annotation file that "
                    "the results were made for"
                )
            if not is_score(record.get("score")):
                yield (
                    f"{who}: score {record.get('score')!r} is not a finite number; results need "
                    "a score each"
                )

    def _masks(self) -> Iterator[tuple[str, object, int, int]]:
        for position, record in enumerate(self._records):
            _, _, height, width = self._images.images[self._images.places[record["image_id"]]]
            yield self._name(position), record.get("segmentation"), height, width

    def _name(self, position: int) -> str:
        return f"record {position} (image_id {self._records[position].get('image_id')!r})"


def with_mask(record: dict, counts: str, height: int, width: int) -> dict:
    """Copy a COCO record with another mask, see :meth:`CocoResults.write`."""
    new = {**record, "segmentation": {"size": [height, width], "counts": counts}}
    box = mask_box(counts, height, width)
    if "bbox" in record and box[2] > 0:
        new["bbox"] = box
    if "area" in record:
        new["area"] = mask_area(counts, height, width)
    return new


def _is_in(ident: object, known: Mapping | set) -> bool:
    return isinstance(ident, (int, str)) and ident in known
