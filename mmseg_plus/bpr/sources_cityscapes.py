"""Instances in Cityscapes' files: results as its server takes them, and its ground truth.

Shape legend: N instances of an image of H x W pixels.
"""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError, raise_faults
from mmseg_plus.common.coco_masks import decode_mask
from mmseg_plus.common.coco_results import is_score
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import files_digest

from .instances import ImageInstances
from .sources_files import inside

_PREDICTIONS = "_pred.txt"
_INSTANCE_IDS = "_gtFine_instanceIds.png"
_IMAGE = "_leftImg8bit"
_ENDINGS = (".png", ".jpg", ".jpeg")
#: The label ids whose objects Cityscapes tells apart, person to bicycle.
INSTANCE_LABELS = range(24, 34)
# Ids of single objects are 1000 times their label and more; below, they are groups.
_PER_LABEL = 1000


class _Line(NamedTuple):
    """One line of a file of predictions; the mask's path counts from the folder of results."""

    text: str
    mask: str
    label: int
    score: float


class CityscapesResults:
    """Cityscapes results: for each image a ``*_pred.txt`` and a PNG per instance.

    A line is ``mask.png labelID score``, the mask's path relative to the file's folder; what is not
    0 in the mask is the instance. An image is called what its file is called without ``_pred.txt``
    and ``_leftImg8bit``, and found under ``img_dir`` as ``<city>/<name>.png`` or ``<name>.png``
    (``.jpg`` too). Held are the lines; masks are read when an image is asked for.

    Args:
        pred_dir: Folder of the results; files are also found in folders below it.
        img_dir: Folder of the images.
        check_files: Whether images with results must be there.

    Raises:
        MissingDataError: A folder, a mask or an image is missing.
        AnnotationError: A line is unusable; the message names it and the mend.
    """

    def __init__(
        self,
        pred_dir: str | os.PathLike,
        img_dir: str | os.PathLike,
        check_files: bool = True,
    ) -> None:
        self._folder, self._img_dir = os.fspath(pred_dir), os.fspath(img_dir)
        self._files = _find(self._folder, _PREDICTIONS)
        if not self._files:
            raise MissingDataError(f"{self._folder}: holds no file *{_PREDICTIONS} of results")
        raise_faults(self._folder, _twice(self._files, _PREDICTIONS))
        self._lines = [self._read(file) for file in self._files]
        raise_faults(self._folder, self._masks_twice())
        raise_faults(self._folder, self._masks_missing(), MissingDataError)
        names = [file.removesuffix(_PREDICTIONS) for file in self._files]
        self._images, missing = _find_images(self._img_dir, names)
        if check_files:
            wanted = (missing[i] for i in sorted(missing) if self.count(i))
            raise_faults(self._folder, wanted, MissingDataError)

    def __len__(self) -> int:
        """The number of images: of files of results."""
        return len(self._files)

    def count(self, index: int) -> int:
        """The number of an image's instances."""
        return len(self._lines[index])

    def image_id(self, index: int) -> str:
        """The id of an image, told without decoding its instances."""
        return _image_id(self._files[index], _PREDICTIONS)

    def __getitem__(self, index: int) -> ImageInstances:
        """Read the masks of one image; records are the lines of its file that are not blank.

        Raises:
            AnnotationError: A mask cannot be read, or is not as large as the image's first one.
        """
        lines = self._lines[index]
        file, image = self._files[index], self._images[index]
        if not lines:
            return _empty(_image_id(file, _PREDICTIONS), image)
        masks = None
        for place, line in enumerate(lines):
            plane = _read_plane(os.path.join(self._folder, line.mask)) != 0
            if masks is None:
                masks = np.zeros((len(lines), *plane.shape), bool)
            if plane.shape != masks.shape[1:]:
                raise AnnotationError(
                    f"{os.path.join(self._folder, file)}: mask {line.mask} is {list(plane.shape)} "
                    f"(height, width), but the image's first one is {list(masks.shape[1:])}; "
                    "write all of an image's masks at its size"
                )
            masks[place] = plane
        return ImageInstances(
            image_id=_image_id(file, _PREDICTIONS),
            image_path=image,
            height=masks.shape[1],
            width=masks.shape[2],
            masks=masks,
            labels=np.array([line.label for line in lines], np.int64),
            scores=np.array([line.score for line in lines], float),
            crowd=np.zeros(len(lines), bool),
            records=list(range(len(lines))),
        )

    def inputs(self) -> dict[str, str]:
        """What the results are, as a digest of all their files."""
        names = [*self._files, *(line.mask for lines in self._lines for line in lines)]
        return {"results": files_digest(os.path.join(self._folder, name) for name in names)}

    def paths(self) -> list[str]:
        """The folder that must not be written into."""
        return [self._folder]

    def check_target(self, out: str | os.PathLike) -> None:
        """Raise a UserError unless the refined results can go there."""
        if Path(out).suffix.lower() in (".json", ".pkl", ".pickle"):
            raise UserError(f"{out}: refined Cityscapes results are a folder; give its name")
        if Path(out).exists() and not Path(out).is_dir():
            raise UserError(f"{out}: is a file; give the name of a folder")

    def write(self, path: Path, refined: Callable[[int], Mapping[int, str]]) -> None:
        """Write the same files with refined masks: 255 where the instance is.

        Files of masks that have not changed are copied; the lines stay as they are.

        Args:
            path: The folder; made.
            refined: Gives, for the place of an image, the counts of each changed mask by its line.
        """
        path.mkdir(parents=True)
        for index, (file, lines) in enumerate(zip(self._files, self._lines, strict=True)):
            changed = refined(index)
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            for place, line in enumerate(lines):
                old, new = os.path.join(self._folder, line.mask), path / line.mask
                new.parent.mkdir(parents=True, exist_ok=True)
                if place not in changed:
                    shutil.copyfile(old, new)
                    continue
                with Image.open(old) as picture:
                    width, height = picture.size
                rle = {"size": [height, width], "counts": changed[place]}
                plane = decode_mask(rle, height, width).view(np.uint8) * np.uint8(255)
                new.write_bytes(cv2.imencode(".png", plane)[1].tobytes())
            (path / file).write_text("".join(f"{line.text}\n" for line in lines))

    def _read(self, file: str) -> list[_Line]:
        path = os.path.join(self._folder, file)
        try:
            content = Path(path).read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise AnnotationError(f"{path}: cannot be read as text ({error})") from None
        lines, faults = [], []
        for number, text in enumerate(content.splitlines(), 1):
            if text.strip():
                line = self._parse(file, text)
                if isinstance(line, str):
                    faults.append(f"line {number}: {line}")
                else:
                    lines.append(line)
        raise_faults(path, faults)
        return lines

    def _parse(self, file: str, text: str) -> _Line | str:
        """Read a line; a text instead tells what is wrong with it."""
        parts = text.strip().rsplit(maxsplit=2)
        if len(parts) != 3:
            return f"{text!r} is not `mask.png labelID score`"
        name, label, score = parts
        mask = inside(name, os.path.dirname(file))
        if mask is None:
            return f"the mask {name!r} leaves the folder of results; write it relative to this file"
        if not mask.lower().endswith(".png"):
            return f"the mask {name!r} is no PNG; masks of Cityscapes are"
        values = [_number(label), _number(score)]
        if not is_score(values[0]) or values[0] != int(values[0]):
            return f"the label id {label!r} is not a whole number"
        if not is_score(values[1]):
            return f"the score {score!r} is not a finite number"
        return _Line(text.strip(), mask, int(values[0]), values[1])

    def _masks_twice(self) -> Iterator[str]:
        seen: dict[str, str] = {}
        for file, lines in zip(self._files, self._lines, strict=True):
            for line in lines:
                if line.mask in seen:
                    yield (
                        f"{file}: its mask {line.mask} is listed twice, before in "
                        f"{seen[line.mask]}; write a mask for each instance"
                    )
                seen[line.mask] = file

    def _masks_missing(self) -> Iterator[str]:
        for file, lines in zip(self._files, self._lines, strict=True):
            for line in lines:
                if not os.path.isfile(os.path.join(self._folder, line.mask)):
                    yield f"{file}: its mask {line.mask} does not exist; put it there"


class CityscapesGroundTruth:
    """Cityscapes' fine annotations, from ``*_gtFine_instanceIds.png``.

    An id of 1000 and more is one object, its label id // 1000; one of 24 to 33 is a group that is
    not told apart, a crowd. Labels other than 24 to 33 are left out. Images are called and found as
    by :class:`CityscapesResults`, with ``_leftImg8bit`` in the file's name or without.

    Args:
        gt_dir: Folder of the maps; they are also found in folders below it.
        img_dir: Folder of the images.
        check_files: Whether the images must be there.

    Raises:
        MissingDataError: A folder or an image is missing.
    """

    def __init__(
        self,
        gt_dir: str | os.PathLike,
        img_dir: str | os.PathLike,
        check_files: bool = True,
    ) -> None:
        self._folder = os.fspath(gt_dir)
        self._files = _find(self._folder, _INSTANCE_IDS)
        if not self._files:
            raise MissingDataError(f"{self._folder}: holds no file *{_INSTANCE_IDS}")
        raise_faults(self._folder, _twice(self._files, _INSTANCE_IDS))
        names = [file.removesuffix(_INSTANCE_IDS) for file in self._files]
        self._images, missing = _find_images(os.fspath(img_dir), names)
        if check_files:
            raise_faults(self._folder, missing.values(), MissingDataError)

    def __len__(self) -> int:
        """The number of images."""
        return len(self._files)

    def image_id(self, index: int) -> str:
        """The id of an image, told without reading its map."""
        return _image_id(self._files[index], _INSTANCE_IDS)

    def __getitem__(self, index: int) -> ImageInstances:
        """Read the instances of one image, in the order of their ids; the scores are ones.

        Raises:
            AnnotationError: The map cannot be read.
        """
        file = self._files[index]
        plane = _read_plane(os.path.join(self._folder, file))
        ids = np.unique(plane).astype(np.int64)
        labels = np.where(ids >= _PER_LABEL, ids // _PER_LABEL, ids)
        kept = np.isin(labels, INSTANCE_LABELS)
        ids, labels = ids[kept], labels[kept]
        masks = np.zeros((len(ids), *plane.shape), bool)
        for ident, mask in zip(ids, masks, strict=True):
            np.equal(plane, ident, out=mask)
        return ImageInstances(
            image_id=_image_id(file, _INSTANCE_IDS),
            image_path=self._images[index],
            height=plane.shape[0],
            width=plane.shape[1],
            masks=masks,
            labels=labels,
            scores=np.ones(len(ids)),
            crowd=ids < _PER_LABEL,
            records=list(range(len(ids))),
        )


def holds_predictions(folder: str | os.PathLike) -> bool:
    """Whether a folder, or one below it, holds Cityscapes results."""
    return any(name.endswith(_PREDICTIONS) for _, _, names in os.walk(folder) for name in names)


def _find(folder: str, ending: str) -> list[str]:
    """Files below a folder, relative to it, by name."""
    if not os.path.isdir(folder):
        raise MissingDataError(f"{folder}: there is no such folder")
    return sorted(
        os.path.relpath(os.path.join(root, name), folder).replace(os.sep, "/")
        for root, _, names in os.walk(folder)
        for name in names
        if name.endswith(ending)
    )


def _image_id(file: str, ending: str) -> str:
    return os.path.basename(file).removesuffix(ending).removesuffix(_IMAGE)


def _twice(files: list[str], ending: str) -> Iterator[str]:
    seen: dict[str, str] = {}
    for file in files:
        ident = _image_id(file, ending)
        if ident in seen:
            yield f"{file} and {seen[ident]} are of the same image; remove one of them"
        seen[ident] = file


def _find_images(img_dir: str, names: list[str]) -> tuple[list[str], dict[int, str]]:
    """The image of each name, and the faults of those without one by their place."""
    if not os.path.isdir(img_dir):
        raise MissingDataError(f"{img_dir}: there is no such folder of images")
    images, missing = [], {}
    for index, name in enumerate(names):
        folder, stem = os.path.split(name)
        bare = stem.removesuffix(_IMAGE)
        places = dict.fromkeys((bare.split("_")[0], folder, ""))
        stems = dict.fromkeys((stem, bare + _IMAGE, bare))
        candidates = [
            os.path.join(img_dir, place, stem + ending)
            for place in places
            for stem in stems
            for ending in _ENDINGS
        ]
        found = next((path for path in candidates if os.path.isfile(path)), None)
        images.append(found or candidates[0])
        if found is None:
            missing[index] = (
                f"image {bare!r}: no image file under {img_dir}; looked for {candidates[0]}, "
                f"{os.path.join(img_dir, stem + _ENDINGS[0])} and the like"
            )
    return images, missing


def _read_plane(path: str) -> np.ndarray:
    """Read a picture of one channel as it is, palette indices and 16 bits included."""
    try:
        with Image.open(path) as picture:
            plane = np.asarray(picture)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AnnotationError(
            f"{path}: cannot be read as a mask ({error}); write it again"
        ) from None
    if plane.ndim != 2:
        raise AnnotationError(f"{path}: has {plane.shape[2]} channels; a mask has one")
    return plane


def _empty(image_id: str, path: str) -> ImageInstances:
    """An image without instances; its size is that of the file."""
    picture = cv2.imread(path, cv2.IMREAD_COLOR)
    if picture is None:
        raise AnnotationError(
            f"image {image_id!r}: image file {path} is missing or cannot be read as a picture"
        )
    height, width = picture.shape[:2]
    return ImageInstances(
        image_id=image_id,
        image_path=path,
        height=height,
        width=width,
        masks=np.zeros((0, height, width), bool),
        labels=np.zeros(0, np.int64),
        scores=np.zeros(0),
        crowd=np.zeros(0, bool),
        records=[],
    )


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
