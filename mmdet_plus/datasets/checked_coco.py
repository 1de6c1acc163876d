"""COCO data sets that look through their files first; otherwise mmdet's own."""

from collections.abc import Callable, Iterator
from functools import partial

from mmdet.datasets import CocoDataset, CocoPanopticDataset
from mmdet.datasets.api_wrappers import COCO, COCOPanoptic
from mmdet.registry import DATASETS

from .coco_checks import (
    check_categories,
    check_classes,
    check_images,
    check_instances,
    check_segments,
    missing_files,
    raise_faults,
    read_annotation_file,
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
    """The index of a panoptic file."""

    _check_annotations = staticmethod(check_segments)


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
            FileNotFoundError: The annotation file is missing, or a local image or segmentation
                map that it lists.
            AnnotationError: A record is unusable, or ``metainfo.classes`` does not fit the file.
        """
        data_list = super().load_data_list()
        if self._is_local():
            raise_faults(str(self.ann_file), missing_files(_files(data_list)), FileNotFoundError)
        return data_list

    def _is_local(self) -> bool:
        if self.backend_args is not None and self.backend_args.get("backend") != "local":
            return False
        return not any("://" in str(prefix) for prefix in self.data_prefix.values())


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
    their polygons have 3 points or more, their RLEs the image's size; the configured classes are
    those of the file, in its order. Other arguments are mmdet's ``CocoDataset``'s.
    """

    _index_class = CheckedCOCO


@DATASETS.register_module()
class CheckedCocoPanopticDataset(_Checks, CocoPanopticDataset):
    """COCO panoptic annotations, checked like ``CheckedCocoDataset``; segmentation PNGs must exist.

    Other arguments are mmdet's ``CocoPanopticDataset``'s.
    """

    _index_class = CheckedCOCOPanoptic
