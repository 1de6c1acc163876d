"""An image's files, opened and checked: masks, semantic map, probabilities, occlusion.

Shape legend: N records of an image of H x W pixels, K of them of sufficient score, C channels.
"""

import zipfile
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError, raise_faults
from mmseg_plus.common.coco_masks import stack_masks

from .files_inputs import SEM_VALUES, ClassTable, ImageFiles, ambiguity

# Modes of PIL with one number a pixel; of pictures with a palette that is the colour's number.
_GREY_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
# Interpolation and half precision may leave [0, 1] by so much.
_SLACK = 1e-3
# Sums of many classes in half precision, or rounded to 8 bits once, stray farther.
_SUM_SLACK = 0.05


def read_masks(image: ImageFiles, kept: Sequence[int], source: str) -> np.ndarray:
    """Decode the masks of some of an image's records.

    Args:
        image: The image.
        kept: Places of K records among those of the image.
        source: The file of results, for messages.

    Returns:
        (K, H, W) bool.

    Raises:
        AnnotationError: A mask cannot be decoded.
    """
    segmentations = [image.records[place]["segmentation"] for place in kept]
    names = [image.names[place] for place in kept]
    masks, faults = stack_masks(segmentations, names, image.height, image.width)
    raise_faults(source, faults)
    return masks


def read_semantic_map(image: ImageFiles, table: ClassTable) -> np.ndarray:
    """Read an image's semantic map.

    Returns:
        (H, W) int64 stuff numbers.

    Raises:
        AnnotationError: The file is no map of this image's size, or holds an unknown class.
    """
    path = image.paths["sem"]
    try:
        with Image.open(path) as picture:
            mode, values = picture.mode, np.asarray(picture)
    except FileNotFoundError:
        raise MissingDataError(f"{path}: does not exist any more; put it back") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise AnnotationError(
            f"{path}: cannot be read as a picture ({error}); write it again"
        ) from None
    if mode not in _GREY_MODES:
        raise AnnotationError(
            f"{path}: is a picture of mode {mode}; a semantic map has one channel, whose values "
            f"are {_meaning(table)}"
        )
    _require_size(path, values.shape, image, "encode the map at the image's size")
    values = values.astype(np.int64)
    known = (values >= 0) & (values < len(table.by_value))
    numbers = np.where(known, table.by_value[np.where(known, values, 0)], -1)
    if (numbers == -1).any():
        wrong = np.unique(values[numbers == -1]).tolist()
        shown = ", ".join(map(str, wrong[:8])) + (" and more" if len(wrong) > 8 else "")
        other = next(name for name in SEM_VALUES if name != table.sem_values)
        raise AnnotationError(
            f"{path}: holds {shown}, which no class is; the values of a map must be "
            f"{_meaning(table)}: write it so, or say --sem-values {other} if it holds those"
        )
    return numbers


def read_probs(image: ImageFiles, table: ClassTable) -> tuple[np.ndarray, list[int]]:
    """Read an image's probabilities.

    Returns:
        (C, H, W) float, and the stuff number of each channel.

    Raises:
        AnnotationError: The file does not hold such probabilities of this image's size.
    """
    path = image.paths["probs"]
    probs = _read_array(path, "probs")
    if probs.ndim != 3 or probs.dtype.kind != "f" or probs.itemsize > 8:
        raise AnnotationError(
            f"{path}: `probs` is {probs.dtype} of shape {list(probs.shape)}; it must be of "
            "float16, float32 or float64, (classes, height, width)"
        )
    numbers = table.by_channel(len(probs))
    if numbers is None:
        raise AnnotationError(
            f"{path}: `probs` has {len(probs)} channels; it must have {len(table.ids)}, one for "
            f"each category, or {len(table.stuff) + 1}: things as one, then the stuff categories"
        )
    if len(probs) == len(table.ids) and table.ambiguous:
        raise AnnotationError(f"{path}: {ambiguity('the channels of `probs`')}")
    _require_size(path, probs.shape[1:], image, "resize them to the image")
    if not (probs.min(initial=0) >= -_SLACK and probs.max(initial=0) <= 1 + _SLACK):
        raise AnnotationError(
            f"{path}: `probs` is not in [0, 1]; if these are logits, save their softmax"
        )
    sums = probs.sum(axis=0, dtype=np.float32)
    off = np.abs(sums - 1)
    if off.max(initial=0) > _SUM_SLACK:
        row, column = np.unravel_index(off.argmax(), off.shape)
        raise AnnotationError(
            f"{path}: `probs` is {sums[row, column]:.3g} in all over the classes at row {row}, "
            f"column {column}; the probabilities of a pixel must sum to 1: save the softmax over "
            "all classes, and divide by the sums where a class was left out"
        )
    # PyTorch knows the machine's own byte order alone.
    return probs.astype(probs.dtype.newbyteorder("="), copy=False), numbers


def read_occlusion(image: ImageFiles) -> np.ndarray:
    """Read an image's occlusion matrix.

    Returns:
        (N, N) float64 in [0, 1] off the diagonal.

    Raises:
        AnnotationError: The file does not hold such a matrix of this image's records.
    """
    path, number = image.paths["occlusion"], len(image.records)
    pairs = _read_array(path, "occlusion")
    if pairs.dtype.kind not in "fiub" or pairs.shape != (number, number):
        raise AnnotationError(
            f"{path}: `occlusion` is {pairs.dtype} of shape {list(pairs.shape)}; it must be "
            f"numbers of shape [{number}, {number}], a row and a column for each of the "
            f"{number} records of image {image.image_id!r}, in their order"
        )
    pairs = pairs.astype(np.float64)
    apart = ~np.eye(number, dtype=bool)
    if not ((pairs >= 0) & (pairs <= 1))[apart].all():
        raise AnnotationError(
            f"{path}: `occlusion` is not in [0, 1]; it tells how likely the row's instance lies "
            "upon the column's"
        )
    return pairs


def _read_array(path: str, name: str) -> np.ndarray:
    """An array of an .npz file; nothing that it may hold is executed."""
    mend = f"write it with numpy.savez_compressed(path, {name}=...)"
    try:
        with open(path, "rb") as file:
            content = np.load(file, allow_pickle=False)
            arrays = content if isinstance(content, np.lib.npyio.NpzFile) else {}
            if name in arrays:
                return arrays[name]
            held = ", ".join(f"`{key}`" for key in arrays) or "nothing by a name"
    except FileNotFoundError:
        raise MissingDataError(f"{path}: does not exist any more; put it back") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise AnnotationError(f"{path}: cannot be read as an .npz file ({error}); {mend}") from None
    raise AnnotationError(f"{path}: holds {held}, but no `{name}`; {mend}")


def _require_size(path: str, shape: Sequence[int], image: ImageFiles, mend: str) -> None:
    if tuple(shape) != (image.height, image.width):
        raise AnnotationError(
            f"{path}: is {list(shape)} (height, width) but image {image.image_id!r} is "
            f"{[image.height, image.width]}; {mend}"
        )


def _meaning(table: ClassTable) -> str:
    if table.sem_values == "ids":
        return "category ids (0 and 255 for none, unless a category has that id)"
    order = "with all things first" if table.sem_order == "things-first" else "in their order"
    return f"labels, 0 to {len(table.ids) - 1} for `categories` {order}, 255 for none"
