"""COCO data sets that look through their files first; otherwise mmdet's own."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCO, COCOPanoptic
from mmdet.datasets.transforms import LoadPanopticAnnotations
from mmdet.registry import DATASETS
from mmengine.logging import print_log

from mmseg_plus.common.coco_checks import (
    AnnotationError,
    MissingDataError,
    check_categories,
    check_classes,
    check_images,
    check_instances,
    missing_files,
    picture_fault,
    raise_faults,
    read_annotation_file,
)
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import is_remote

from .panoptic_checks import (
    check_names,
    check_order,
    check_panoptic,
    check_usage,
    empty_segments_fault,
    map_fault,
    tell_things,
    things_told,
    without_pixels,
)


class _CheckedIndex:
    """Builds mmdet's index of a COCO file, but only from records that are in order.

    Args:
        path: The local file.
        source: The name to use for it in messages.
        required: Keys that the file must have.
    """

    _check_annotations: Callable[[dict], Iterator[str]]

    def __init__(self, path: str, source: str, required: tuple[str, ...]) -> None:
        super().__init__()
        self.source = source
        self.dataset = read_annotation_file(path, source, required)
        raise_faults(source, check_categories(self.dataset["categories"]))
        raise_faults(source, check_images(self.dataset["images"]))
        raise_faults(source, self._check_annotations(self.dataset))
        self.createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_cat_ids(self, cat_names=(), sup_names=(), cat_ids=()) -> list[int]:
        """Category ids by name; unlike upstream's, a name that the file lacks is an error."""
        raise_faults(self.source, check_classes(cat_names, self.dataset["categories"]))
        return super().get_cat_ids(cat_names, sup_names, cat_ids)


class CheckedCOCO(_CheckedIndex, COCO):
    """The index of an instances file."""

    _check_annotations = staticmethod(check_instances)


class CheckedCOCOPanoptic(_CheckedIndex, COCOPanoptic):
    """The index of a panoptic file.

    A category may lack ``isthing``, which :func:`mmdet_plus.datasets.panoptic_checks.tell_things`
    is to mend. Images have the PNG of their annotation as ``segm_file``, of the same name as the
    image where the annotation has no ``file_name``.
    """

    _check_annotations = staticmethod(check_panoptic)

    def createIndex(self) -> None:
        """Index the records; upstream's guesses PNGs' names from JPEGs'."""
        super().createIndex()
        for image in self.imgs.values():
            image["segm_file"] = os.path.splitext(image["file_name"])[0] + ".png"
        annotations = self.dataset.get("annotations", ())
        self.annotated = {ann["image_id"] for ann in annotations}
        for ann in annotations:
            if isinstance(ann.get("file_name"), str):
                self.imgs[ann["image_id"]]["segm_file"] = ann["file_name"]

    def get_cat_ids(self, cat_names=(), sup_names=(), cat_ids=()) -> list[int]:
        """Category ids by name; unlike upstream's, in the order of the names."""
        raise_faults(self.source, check_names(cat_names, self.dataset["categories"]))
        if not cat_names:
            return COCOPanoptic.get_cat_ids(self, cat_names, sup_names, cat_ids)
        by_name = {category["name"]: category["id"] for category in self.dataset["categories"]}
        return [by_name[name] for name in cat_names]


class PanopticTruth(CheckedCOCOPanoptic):
    """The index of ground truth to evaluate with, whose segments need no ``bbox``."""

    _check_annotations = staticmethod(partial(check_panoptic, boxes=False))


class _Checks:
    """The checks, at the hooks that both of mmdet's COCO data sets offer.

    Args:
        require_annotations: Whether a file without ``annotations`` is an error; False for files
            of test images such as COCO's test-dev.
    """

    _index_class: type[COCO]

    def __init__(self, *args, require_annotations: bool = True, **kwargs) -> None:
        self.require_annotations = require_annotations
        super().__init__(*args, **kwargs)

    @property
    def COCOAPI(self) -> partial:
        """The index class, told how to call the file in messages."""
        required = ("images", "annotations", "categories")
        if not self.require_annotations:
            required = ("images", "categories")
        return partial(self._index_class, source=str(self.ann_file), required=required)

    def load_data_list(self) -> list[dict]:
        """Load the records after checking them.

        Returns:
            mmdet's data list.

        Raises:
            MissingDataError: The annotation file is missing, or a local image or segmentation
                map that it lists.
            AnnotationError: A record is unusable, or ``metainfo.classes`` does not fit the file.
        """
        data_list = super().load_data_list()
        if self._is_local():
            raise_faults(str(self.ann_file), missing_files(_files(data_list)), MissingDataError)
        return data_list

    def prepare_data(self, idx: int) -> Any:
        """Load a sample; where that fails because of the image file, say so.

        Raises:
            AnnotationError: The image cannot be read, or is of another size than its record says.
        """
        try:
            return super().prepare_data(idx)
        except UserError:
            raise
        except Exception as error:
            data = self.get_data_info(idx)
            who = data["img_id"], data["img_path"]
            fault = None
            if self._is_local():
                fault = picture_fault(*who, data["height"], data["width"]) or self._map_fault(data)
            if fault is None:
                raise
            raise AnnotationError(f"{self.ann_file}: {fault}") from error

    def _map_fault(self, data: dict) -> str | None:
        """What is wrong with a segmentation map, where one belongs to the data set's pixels."""
        return None

    def _warn(self, records: list[tuple[dict, dict]], seen: int, what: str) -> None:
        if records:
            ann = records[0][1]
            print_log(
                f"{self.ann_file}: {len(records)} of {seen} annotations {what}; the first is "
                f"{_name(*records[0])}: bbox {ann['bbox']}, area {ann['area']}",
                logger="current",
                level=logging.WARNING,
            )

    def _is_local(self) -> bool:
        return not any(is_remote(prefix, self.backend_args) for prefix in self.data_prefix.values())


def _files(data_list: list[dict]) -> Iterator[tuple[str, object, str]]:
    for data in data_list:
        yield "image", data["img_id"], data["img_path"]
        if data["seg_map_path"] is not None:
            yield "segmentation map", data["img_id"], data["seg_map_path"]


@DATASETS.register_module()
class CheckedCocoDataset(_Checks, CocoDataset):
    """COCO instances whose faults are told at once, by record and with the mend.

    Checked: the file is COCO JSON; images have ids, names inside their folder, sizes, and (on a
    local disk) files; annotations refer to known images and categories, their boxes are 4 numbers,
    their polygons have 3 points or more, their RLEs the image's size; all have masks if the
    pipeline loads masks; the configured classes are those of the file, in its order. A training set
    warns of annotations that mmdet drops, and of boxes that reach beyond their image. Other
    arguments are mmdet's ``CocoDataset``'s.
    """

    _index_class = CheckedCOCO

    def load_data_list(self) -> list[dict]:
        """Load the records after checking them, see :meth:`_Checks.load_data_list`.

        Raises:
            MissingDataError: A file is missing.
            AnnotationError: A record is unusable.
        """
        self._needs_masks = _loads_masks(self.pipeline)
        self._seen = 0
        self._unmasked: list[tuple[dict, dict]] = []
        self._dropped: list[tuple[dict, dict]] = []
        self._beyond: list[tuple[dict, dict]] = []
        data_list = super().load_data_list()
        faults = (
            f"{_name(*record)}: has no segmentation, but the pipeline loads masks; trace it or "
            "remove the record (a model of boxes alone takes LoadAnnotations with with_mask=False)"
            for record in self._unmasked
        )
        raise_faults(str(self.ann_file), faults)
        if not self.test_mode:
            self._warn(
                self._dropped,
                self._seen,
                "are left out of the training: mmdet drops boxes outside of their image, narrower "
                "or lower than 1 pixel, or with an area of 0",
            )
            self._warn(
                self._beyond,
                self._seen,
                "have a bbox that reaches beyond the image; it must be [x, y, width, height], "
                "not two corners",
            )
        del self._unmasked, self._dropped, self._beyond
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse an image's record as mmdet does, and note which annotations that goes wrong for."""
        data = super().parse_data_info(raw_data_info)
        image = raw_data_info["raw_img_info"]
        wanted = [
            ann
            for ann in raw_data_info["raw_ann_info"]
            if ann["category_id"] in self.cat2label and not ann.get("ignore", False)
        ]
        self._seen += len(wanted)
        kept = data["instances"]
        unmasked = self._needs_masks and not all("mask" in instance for instance in kept)
        if unmasked or len(kept) < len(wanted):
            # Which ones, mmdet tells when it is asked for each alone.
            for ann in wanted:
                alone = super().parse_data_info({**raw_data_info, "raw_ann_info": [ann]})
                if not alone["instances"]:
                    self._dropped.append((image, ann))
                elif "mask" not in alone["instances"][0]:
                    self._unmasked += [(image, ann)] if unmasked else []
        for ann in wanted:
            x, y, width, height = ann["bbox"]
            # Tools that count from 1, or round outwards, reach a pixel too far.
            if min(x, y) < -1 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
                self._beyond.append((image, ann))
        return data


def _name(image: dict, ann: dict) -> str:
    who = f"image {image['id']!r} (file_name {image['file_name']!r})"
    return f"annotation {ann['id']!r} of {who}"


def _loads_masks(step: object) -> bool:
    """Whether a transform, or one inside of it, loads the masks of instances."""
    if getattr(step, "with_mask", False):
        return True
    # Compose and RandomChoice, TestTimeAug, and mmdet's MultiBranch, by what they call their parts.
    parts = [getattr(step, name, None) or () for name in ("transforms", "subroutines")]
    parts.append((getattr(step, "branch_pipelines", None) or {}).values())
    return any(_loads_masks(part) for group in parts for part in group)


class _RequirePixels:
    """A step of a pipeline that refuses PNGs in which a segment has no pixel.

    Such a thing would be trained on as a box with an empty mask. Mostly the PNG is to blame: it is
    grey, of 16 bits, or its channels are swapped, and all that is in it counts as void.

    Args:
        source: The annotation file, for messages.
    """

    def __init__(self, source: str) -> None:
        self.source = source

    def __call__(self, results: dict) -> dict:
        empty = without_pixels(results)
        if empty:
            who, total = results["img_id"], len(results["segments_info"])
            fault = empty_segments_fault(who, results["seg_map_path"], empty, total)
            raise AnnotationError(f"{self.source}: {fault}")
        return results


@DATASETS.register_module()
class CheckedCocoPanopticDataset(_Checks, CocoPanopticDataset):
    """COCO panoptic annotations, checked like ``CheckedCocoDataset``; segmentation PNGs must exist.

    Unlike with mmdet's ``CocoPanopticDataset``:

    - Labels count by ``metainfo.classes``, whatever the order of the file's categories. All things
      come first there, as mmdet's panoptic models want it; every category with segments is listed.
    - Things are those that the file calls so (``isthing``); where it does not,
      ``metainfo.thing_classes`` or ``stuff_classes`` tell. With ``classes`` of one's own, those of
      COCO do not stay behind. ``metainfo`` of the built data set always has both.
    - A PNG is looked for under the ``file_name`` of its annotation.
    - A PNG of another size than its image is an error when its turn comes; in training also one
      in which a segment of the JSON has no pixel.

    Args:
        things_first: Whether stuff before things in ``metainfo.classes`` is an error.
        strict: Whether segments without a pixel in the PNG are an error in training.
        kwargs: As of mmdet's ``CocoPanopticDataset``.
    """

    _index_class = CheckedCOCOPanoptic

    def __init__(self, *args, things_first: bool = True, strict: bool = True, **kwargs) -> None:
        self.things_first = things_first
        super().__init__(*args, **kwargs)
        if strict and not self.test_mode:
            # Right after loading: crops may well leave nothing of a segment.
            steps = self.pipeline.transforms
            for place in reversed(range(len(steps))):
                if isinstance(steps[place], LoadPanopticAnnotations):
                    steps.insert(place + 1, _RequirePixels(str(self.ann_file)))

    @classmethod
    def _load_metainfo(cls, metainfo: Mapping | None = None) -> dict:
        loaded = super()._load_metainfo(metainfo)
        if metainfo is not None and "classes" in metainfo:
            for key in {"thing_classes", "stuff_classes"} - set(metainfo):
                loaded.pop(key, None)
        return loaded

    @property
    def COCOAPI(self) -> Callable[[str], CheckedCOCOPanoptic]:
        """Builds the index, and learns from it what are things."""
        return partial(self._index, super().COCOAPI)

    def _index(self, build: Callable[[str], CheckedCOCOPanoptic], path: str) -> CheckedCOCOPanoptic:
        index, classes = build(path), self._metainfo["classes"]
        categories, source = index.dataset["categories"], str(self.ann_file)
        cat_ids = index.get_cat_ids(classes)
        try:
            told = things_told(self._metainfo)
        except AnnotationError as error:
            raise AnnotationError(f"{source}: {error}") from None
        raise_faults(source, tell_things(categories, told))
        raise_faults(source, check_usage(cat_ids, index.dataset))
        if self.things_first:
            raise_faults(source, check_order(classes, categories))
        things = {category["name"] for category in categories if category["isthing"]}
        self._metainfo["thing_classes"] = tuple(name for name in classes if name in things)
        self._metainfo["stuff_classes"] = tuple(name for name in classes if name not in things)
        # For the metric, which cannot see how other data sets count.
        self._metainfo["label_order"] = "classes"
        return index

    def load_data_list(self) -> list[dict]:
        """Load the records after checking them, see :meth:`_Checks.load_data_list`.

        Raises:
            MissingDataError: A file is missing.
            AnnotationError: A record is unusable, or the metainfo does not fit the file.
        """
        self._seen, self._dropped = 0, []
        data_list = super().load_data_list()
        if not self.test_mode:
            self._warn(
                self._dropped,
                self._seen,
                "are left out of the training, their pixels count as void: mmdet drops segments "
                "with an area of 0, and those whose bbox is narrower or lower than 1 pixel",
            )
        del self._dropped
        return data_list

    def parse_data_info(self, raw_data_info: dict) -> dict:
        """Parse an image's record as mmdet does, with the PNG that its annotation names."""
        image = raw_data_info["raw_img_info"]
        data = super().parse_data_info(raw_data_info)
        if data["seg_map_path"] is not None:
            data["seg_map_path"] = os.path.join(self.data_prefix["seg"], image["segm_file"])
        kept = {segment["id"] for segment in data["segments_info"]}
        for ann in raw_data_info["raw_ann_info"]:
            if ann["image_id"] == image["img_id"]:
                self._seen += 1
                self._dropped += [(image, ann)] if ann["id"] not in kept else []
        return data

    def prepare_data(self, idx: int) -> Any:
        """Load a sample, see :meth:`_Checks.prepare_data`.

        Raises:
            AnnotationError: Image or PNG cannot be read, or is of another size than the record.
        """
        # Of a size that merely differs, mmdet would make masks with pixels out of place.
        data = self.get_data_info(idx)
        fault = self._map_fault(data, size_only=True) if self._is_local() else None
        if fault:
            raise AnnotationError(f"{self.ann_file}: {fault}")
        return super().prepare_data(idx)

    def _map_fault(self, data: dict, size_only: bool = False) -> str | None:
        if data["seg_map_path"] is None:
            return None
        size = data["height"], data["width"]
        return map_fault(data["img_id"], data["seg_map_path"], *size, size_only=size_only)
