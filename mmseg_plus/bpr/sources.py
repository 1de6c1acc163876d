"""Instances from files, image by image: ground truth and anybody's results.

Results can be written again with other masks, in the format that they came in.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from mmseg_plus.common.errors import UserError

from .instances import ImageInstances, InstanceSource
from .sources_cityscapes import CityscapesGroundTruth, CityscapesResults, holds_predictions
from .sources_coco import CocoGroundTruth, CocoResults
from .sources_mmdet import MMDetResults

__all__ = [
    "FORMATS",
    "CityscapesGroundTruth",
    "CityscapesResults",
    "CocoGroundTruth",
    "CocoResults",
    "ImageInstances",
    "InstanceSource",
    "MMDetResults",
    "ResultsSource",
    "find_format",
    "open_results",
]

#: The formats of results.
FORMATS = ("coco", "cityscapes", "mmdet")


class ResultsSource(InstanceSource, Protocol):
    """Results that can be written again with other masks."""

    def count(self, index: int) -> int:
        """The number of an image's instances, told without decoding them."""

    def inputs(self) -> dict[str, str]:
        """Digests of the files that the results come from, by what they are."""

    def paths(self) -> list[str]:
        """Files that must not be written over, folders that must not be written into."""

    def check_target(self, out: str | os.PathLike) -> None:
        """Raise a UserError unless refined results can be written under that name."""

    def write(self, path: Path, refined: Callable[[int], Mapping[int, str]]) -> None:
        """Write the results to a new file or folder.

        Args:
            path: Has the ending of the name that it will get.
            refined: Gives, for the place of an image, the counts (of a compressed RLE) of each mask
                that has changed, by its entry in ``ImageInstances.records``.
        """


def find_format(results: str | os.PathLike) -> str:
    """Tell the format of results by their name, and of a folder by what it holds.

    Returns:
        One of :data:`FORMATS`.

    Raises:
        UserError: There is no such file or folder, or it is of none of the formats.
    """
    path = Path(results)
    if path.is_dir():
        if holds_predictions(path):
            return "cityscapes"
        raise UserError(f"{path}: holds no file *_pred.txt; a folder of results has one an image")
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder of results")
    endings = {".json": "coco", ".pkl": "mmdet", ".pickle": "mmdet"}
    if path.suffix.lower() not in endings:
        raise UserError(
            f"{path}: the format cannot be told from the name; known are COCO results (.json), "
            "predictions of tools/test.py --out (.pkl) and folders of Cityscapes results; or give "
            "--format"
        )
    return endings[path.suffix.lower()]


def open_results(
    results: str | os.PathLike,
    ann_file: str | os.PathLike | None,
    img_dir: str | os.PathLike,
    format: str = "auto",
    check_files: bool = True,
) -> ResultsSource:
    """Open results of any format.

    Args:
        results: The file or folder.
        ann_file: COCO JSON with the images and categories; Cityscapes results need none.
        img_dir: Folder of the images.
        format: One of :data:`FORMATS`, or ``'auto'``.
        check_files: Whether images with results must be there.

    Raises:
        UserError: Something is missing or unusable.
    """
    if format == "auto":
        format = find_format(results)
    if format == "cityscapes":
        return CityscapesResults(results, img_dir, check_files)
    if ann_file is None:
        raise UserError(
            f"{results}: these results need the annotation file that they were made for (--ann); "
            "its `images` and `categories` suffice"
        )
    kind = {"coco": CocoResults, "mmdet": MMDetResults}[format]
    return kind(results, ann_file, img_dir, check_files)
