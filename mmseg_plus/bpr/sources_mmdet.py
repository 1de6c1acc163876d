"""Instances in the pickles of ``tools/test.py --out``, read without running what they may hold.

Shape legend: N instances of an image of H x W pixels.
"""

import collections
import io
import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError, raise_faults
from mmseg_plus.common.coco_masks import as_text, mask_box, mask_faults
from mmseg_plus.common.files import file_digest

from .instances import ImageInstances
from .sources_coco import CocoImages
from .sources_files import require_ending

# What mmengine writes its pickles with.
_PROTOCOL = 2
_ENDINGS = (".pkl", ".pickle")


class _Plain:
    """A function that a pickle may call and can do nothing else to.

    A pickle may also set attributes of what it has named, and would change a plain function so.
    """

    __slots__ = ("_function",)

    def __init__(self, function: Callable) -> None:
        object.__setattr__(self, "_function", function)

    def __setattr__(self, name: str, value: object) -> None:
        raise pickle.UnpicklingError(f"sets the attribute {name!r} of a function")

    def __call__(self, *args) -> Any:
        return self._function(*args)


def _storage(content: bytes) -> Any:
    """A tensor's memory; in a pickle of its own, which torch's reader of weights opens."""
    storage = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError(f"holds a {type(storage).__name__} as a tensor's memory")
    return storage


def _tensor(storage: Any, offset: int, size: tuple, stride: tuple, *_hooks) -> torch.Tensor:
    if not isinstance(storage, torch.storage.TypedStorage):
        raise pickle.UnpicklingError("holds a tensor without memory")
    last = offset + sum((side - 1) * step for side, step in zip(size, stride, strict=True))
    if min((offset, *size, *stride)) < 0 or (0 not in size and last >= storage._size()):
        raise pickle.UnpicklingError("holds a tensor that reaches beyond its memory")
    return torch._utils._rebuild_tensor_v2(
        storage, offset, tuple(size), tuple(stride), False, collections.OrderedDict()
    )


def _encoded(text: str, encoding: str) -> bytes:
    """What protocol 2 writes for bytes."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encodes a text as {encoding!r}")
    return text.encode("latin-1")


def _allowed() -> dict[tuple[str, str], Any]:
    """What a file of predictions names for its tensors, arrays and bytes, and what each becomes."""
    array = _Plain(np.zeros(1).__reduce__()[0])
    scalar = _Plain(np.float64(1).__reduce__()[0])
    allowed = {
        ("torch._utils", "_rebuild_tensor_v2"): _Plain(_tensor),
        ("torch.storage", "_load_from_bytes"): _Plain(_storage),
        ("torch", "Size"): torch.Size,
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("_codecs", "encode"): _Plain(_encoded),
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }
    # numpy moved its core package in version 2.
    for core in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed[core, "_reconstruct"] = array
        allowed[core, "scalar"] = scalar
    return allowed


class _PredictionUnpickler(pickle.Unpickler):
    """Reads plain containers, tensors and arrays; refuses every other name."""

    _names = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        """Look a name up among those that predictions need."""
        try:
            return self._names[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"names {module}.{name}") from None


def load_predictions(path: str | os.PathLike) -> list[dict]:
    """Read what ``tools/test.py --out`` wrote, running no code that the file may hold.

    Args:
        path: A pickle of plain containers, tensors and numpy arrays.

    Returns:
        One dictionary an image.

    Raises:
        MissingDataError: There is no such file.
        AnnotationError: It is damaged, or holds anything else.
    """
    if not os.path.isfile(path):
        raise MissingDataError(f"{path}: there is no such file of predictions")
    try:
        with open(path, "rb") as file:
            content = _PredictionUnpickler(file).load()
    except pickle.UnpicklingError as error:
        raise AnnotationError(
            f"{path}: not loaded, because it holds more than predictions, or is damaged ({error}); "
            "give the file that tools/test.py wrote with --out"
        ) from error
    except Exception as error:
        # A damaged pickle fails in any way there is.
        raise AnnotationError(
            f"{path}: not a pickle of predictions, or a damaged one "
            f"({type(error).__name__}: {error}); write it again with tools/test.py --out"
        ) from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise AnnotationError(
            f"{path}: holds a {type(content).__name__} of something else than predictions by image "
            "(a list of dictionaries); give the file that tools/test.py wrote with --out"
        )
    return content


class MMDetResults:
    """The predictions that a test of mmdet's has dumped.

    The file is a list with one dictionary an image: ``img_id``, ``ori_shape`` and
    ``pred_instances`` with ``bboxes``, ``labels``, ``scores`` and ``masks`` as compressed RLEs.
    Label i is the category at place i of the annotation file. All of the file is held, as it is
    in it (masks as RLEs); masks are decoded when an image is asked for.

    Args:
        results: The pickle.
        ann_file: The COCO JSON that was tested on, with ``images`` and ``categories``.
        img_dir: Folder of the images.
        check_files: Whether images with predictions must be there.

    Raises:
        MissingDataError: A file, the folder or an image is missing.
        AnnotationError: A record is unusable, or the pickle holds anything but predictions.
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
        self._entries = load_predictions(self._file)
        raise_faults(self._file, self._faults())
        raise_faults(self._file, mask_faults(self._masks()))
        self._places = [self._images.places[entry["img_id"]] for entry in self._entries]
        if check_files:
            wanted = [place for i, place in enumerate(self._places) if self.count(i)]
            self._images.require_files(wanted)

    def __len__(self) -> int:
        """The number of images in the pickle."""
        return len(self._entries)

    def count(self, index: int) -> int:
        """The number of an image's instances."""
        return len(self._entries[index]["pred_instances"]["masks"])

    def image_id(self, index: int) -> int | str:
        """The id of an image, told without decoding its instances."""
        return self._entries[index]["img_id"]

    def __getitem__(self, index: int) -> ImageInstances:
        """Decode the predictions on one image; records are places in its ``pred_instances``."""
        predicted = self._entries[index]["pred_instances"]
        labels = np.asarray(predicted["labels"]).astype(np.int64)
        return self._images.instances(
            self._places[index],
            [as_text(mask) for mask in predicted["masks"]],
            [self._name(index, number) for number in range(len(labels))],
            self._file,
            labels=np.array(self._images.category_ids, np.int64)[labels],
            scores=np.asarray(predicted["scores"]).astype(float),
            crowd=np.zeros(len(labels), bool),
            records=list(range(len(labels))),
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
        require_ending(out, *_ENDINGS, ".json")

    def write(self, path: Path, refined: Callable[[int], Mapping[int, str]]) -> None:
        """Write the predictions with refined masks: a pickle of the same structure, or COCO JSON.

        The boxes of changed masks become those around the new ones, except around empty ones. All
        else stays as it is. COCO results (a path that ends in ``.json``) come image by image.

        Args:
            path: The file.
            refined: Gives, for the place of an image in the pickle, the counts of each changed mask
                by its place in the image.
        """
        if path.suffix == ".json":
            with open(path, "w") as file:
                separator = "[\n"
                for index in range(len(self)):
                    for record in self._coco_records(index, self._refined(index, refined(index))):
                        file.write(separator + json.dumps(record))
                        separator = ",\n"
                file.write("[]\n" if separator == "[\n" else "\n]\n")
            return
        entries = [
            {**entry, "pred_instances": self._refined(index, refined(index))}
            for index, entry in enumerate(self._entries)
        ]
        with open(path, "wb") as file:
            pickle.dump(entries, file, protocol=_PROTOCOL)

    def _refined(self, index: int, changed: Mapping[int, str]) -> dict:
        predicted = dict(self._entries[index]["pred_instances"])
        if not changed:
            return predicted
        _, _, height, width = self._images.images[self._places[index]]
        predicted["masks"] = list(predicted["masks"])
        boxes = predicted.get("bboxes")
        if boxes is not None:
            predicted["bboxes"] = boxes = boxes.clone() if torch.is_tensor(boxes) else boxes.copy()
        for number, counts in changed.items():
            old = predicted["masks"][number]
            predicted["masks"][number] = {**old, "counts": _like(counts, old["counts"])}
            left, top, across, down = mask_box(counts, height, width)
            if boxes is not None and across > 0:
                for place, value in enumerate((left, top, left + across, top + down)):
                    boxes[number, place] = value
        return predicted

    def _coco_records(self, index: int, predicted: dict) -> Iterator[dict]:
        boxes = predicted.get("bboxes")
        boxes = None if boxes is None else np.asarray(boxes).astype(float).tolist()
        labels = np.asarray(predicted["labels"]).tolist()
        scores = np.asarray(predicted["scores"]).astype(float).tolist()
        for number, (label, score) in enumerate(zip(labels, scores, strict=True)):
            record = {
                "image_id": self._entries[index]["img_id"],
                "category_id": self._images.category_ids[label],
                "score": score,
            }
            if boxes is not None:
                left, top, right, bottom = boxes[number]
                record["bbox"] = [left, top, right - left, bottom - top]
            record["segmentation"] = as_text(predicted["masks"][number])
            yield record

    def _faults(self) -> Iterator[str]:
        seen = set()
        for index, entry in enumerate(self._entries):
            ident = entry.get("img_id")
            who = f"entry {index} (img_id {ident!r})"
            if not isinstance(ident, (int, str)) or ident not in self._images.places:
                yield (
                    f"{who}: {self._images.ann_file} has no such image; give the annotation file "
                    "that was tested on"
                )
                continue
            if ident in seen:
                yield f"{who}: the image occurs twice; test again, each image once"
                continue
            seen.add(ident)
            fault = self._entry_fault(entry, self._images.places[ident])
            if fault:
                yield f"{who}: {fault}"

    def _entry_fault(self, entry: dict, place: int) -> str | None:
        predicted = entry.get("pred_instances")
        if not isinstance(predicted, dict):
            return "has no pred_instances; give the predictions of a model of instances"
        masks = predicted.get("masks")
        if not isinstance(masks, list):
            return (
                "its pred_instances have no list of masks as RLEs; give the predictions of a model "
                "of instance masks, dumped by DumpDetResults (tools/test.py --out)"
            )
        for key in ("labels", "scores"):
            if not _is_vector(predicted.get(key), len(masks)):
                return f"its {key} are not one number for each of {len(masks)} masks"
        scores, labels = (np.asarray(predicted[key]) for key in ("scores", "labels"))
        if not np.isfinite(scores).all():
            return "a score is not a finite number"
        number = len(self._images.category_ids)
        if labels.dtype.kind not in "iu":
            return "its labels are not whole numbers"
        if len(masks) and not (labels.min() >= 0 and labels.max() < number):
            return (
                f"has labels {labels.min()} to {labels.max()}, but {self._images.ann_file} has "
                f"{number} categories; give the annotation file that was tested on"
            )
        boxes = predicted.get("bboxes")
        if boxes is not None and not _is_matrix(boxes, len(masks)):
            return f"its bboxes are not 4 numbers for each of {len(masks)} masks"
        _, _, height, width = self._images.images[place]
        shape = entry.get("ori_shape")
        if shape is not None and tuple(shape)[:2] != (height, width):
            return (
                f"ori_shape {tuple(shape)} is not the {(height, width)} of the image's record; "
                "give the annotation file that was tested on"
            )
        return None

    def _masks(self) -> Iterator[tuple[str, object, int, int]]:
        for index, entry in enumerate(self._entries):
            _, _, height, width = self._images.images[self._images.places[entry["img_id"]]]
            for number, mask in enumerate(entry["pred_instances"]["masks"]):
                yield self._name(index, number), as_text(mask), height, width

    def _name(self, index: int, number: int) -> str:
        return f"entry {index} (img_id {self._entries[index].get('img_id')!r}), mask {number}"


def _is_vector(value: object, length: int) -> bool:
    return isinstance(value, (torch.Tensor, np.ndarray)) and tuple(value.shape) == (length,)


def _is_matrix(value: object, length: int) -> bool:
    if not isinstance(value, (torch.Tensor, np.ndarray)):
        return False
    return tuple(value.shape) == (length, 4)


def _like(counts: str, old: str | bytes) -> str | bytes:
    """Counts as text or bytes, as they were."""
    return counts.encode() if isinstance(old, bytes) else counts
