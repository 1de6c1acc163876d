"""Shapes as mmdet data sets; ``make_shapes`` draws the files."""

from mmdet.registry import DATASETS

from .checked_coco import CheckedCocoDataset, CheckedCocoPanopticDataset
from .shapes.catalog import CLASSES, PALETTE, STUFF_CLASSES, THING_CLASSES


@DATASETS.register_module()
class ShapesDataset(CheckedCocoDataset):
    """The things of Shapes (``annotations/instances_*.json``), labels 0 to 7.

    With ``data_prefix=dict(img='train/', seg='stuff_train/')`` the pipeline's ``LoadAnnotations``
    can also load label maps (``with_seg=True``): 0 to 7 things, 8 to 12 stuff, 255 void.
    """

    METAINFO = dict(classes=THING_CLASSES, palette=PALETTE[: len(THING_CLASSES)])


@DATASETS.register_module()
class ShapesPanopticDataset(CheckedCocoPanopticDataset):
    """Shapes as panoptic data (``annotations/panoptic_*.json``).

    Labels 0 to 7 are things, 8 to 12 stuff. ``data_prefix`` is, for example,
    ``dict(img="train/", seg="panoptic_train/")``.
    """

    METAINFO = dict(
        classes=CLASSES,
        thing_classes=THING_CLASSES,
        stuff_classes=STUFF_CLASSES,
        palette=PALETTE,
    )
