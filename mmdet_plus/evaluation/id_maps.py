"""Maps of segment ids as PNGs, the way of COCO's panoptic format: R + 256 G + 65536 B."""

import struct
from collections.abc import Iterator

import cv2
import deflate
import numpy as np
import torch
from mmengine.fileio import get
from torch import Tensor

from mmplus_ops import has_compiled_ops
from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError
from mmseg_plus.common.files import is_remote

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Of IHDR: 8 bits, three colours, the one compression and the one set of filters, not interlaced.
_PLAIN_COLOURS = (8, 2, 0, 0, 0)


def read_id_map(
    path: str,
    who: str,
    size: tuple[int, int] | None = None,
    backend_args: dict | None = None,
) -> np.ndarray:
    """Read the PNG of an image's segments.

    Args:
        path: The file; mmengine reads it if it is not local.
        who: The image, for messages.
        size: Height and width that it must have.
        backend_args: mmengine's.

    Returns:
        (H, W) int32 ids, R + 256 G + 65536 B.

    Raises:
        MissingDataError: There is no such file.
        AnnotationError: It is no picture, has not the size, or holds no colours of 8 bits.
    """
    return _decode(_read(path, who, backend_args), path, who, size)


def read_for_counting(
    path: str, who: str, size: tuple[int, int], backend_args: dict | None = None
) -> Tensor:
    """Read the PNG of an image's segments no further than :func:`mmplus_ops.pair_areas` needs.

    To decode the PNGs is most of the work of a panoptic quality.

    Args:
        path: As of :func:`read_id_map`, as are the others, and what is raised.
        who: The image.
        size: Height and width.
        backend_args: mmengine's.

    Returns:
        The map for ``pair_areas``: (H, 1 + 3 W) uint8 scanlines; (H, W) int32 ids if that op is not
        compiled, or the PNG is of an unusual kind.
    """
    raw = _read(path, who, backend_args)
    scanlines = plain_scanlines(raw, size) if has_compiled_ops("pair_areas") else None
    if scanlines is None:
        return torch.from_numpy(_decode(raw, path, who, size))
    return scanlines


def plain_scanlines(raw: bytes, size: tuple[int, int]) -> Tensor | None:
    """Inflate a PNG as it usually comes: three colours of 8 bits, not interlaced.

    Args:
        raw: The file's bytes.
        size: Height and width that it must have.

    Returns:
        (H, 1 + 3 W) uint8; None if it is another picture, or damaged.
    """
    height, width = size
    length = 1 + 3 * width
    try:
        header = struct.pack(">4sII5B", b"IHDR", width, height, *_PLAIN_COLOURS)
        if raw[:8] != _SIGNATURE or raw[12:29] != header:
            return None
        packed = b"".join(data for name, data in _chunks(raw) if name == b"IDAT")
        # It checks the sum that ends the data, and that there is no more.
        lines = deflate.zlib_decompress(packed, height * length)
    except (struct.error, deflate.DeflateError):
        return None
    if not lines or len(lines) != height * length or max(lines[::length]) > 4:
        return None
    return torch.frombuffer(lines, dtype=torch.uint8).view(height, length)


def _chunks(raw: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of a PNG's chunks, up to its end."""
    at, name = len(_SIGNATURE), b""
    while name != b"IEND":
        length, name = struct.unpack_from(">I4s", raw, at)
        yield name, raw[at + 8 : at + 8 + length]
        at += 12 + length


def _read(path: str, who: str, backend_args: dict | None) -> bytes:
    try:
        if is_remote(path, backend_args):
            return get(path, backend_args)
        with open(path, "rb", buffering=0) as file:
            return file.read()
    except OSError as error:
        raise MissingDataError(
            f"{who}: its PNG {path} cannot be read ({error.strerror or error}); put it there, or "
            "correct the folder or the annotation's `file_name`"
        ) from None


def _decode(raw: bytes, path: str, who: str, size: tuple[int, int] | None) -> np.ndarray:
    # As it is: neither turned as a camera was held, nor brought to 8 bits.
    picture = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_UNCHANGED) if raw else None
    if picture is None:
        raise AnnotationError(
            f"{who}: {path} cannot be read as a picture; is it cut short? Write it again"
        )
    if size is not None and picture.shape[:2] != tuple(size):
        raise AnnotationError(
            f"{who}: {path} is {list(picture.shape[:2])} (height, width) but the image is "
            f"{list(size)}; write it at the image's size, without interpolation: its colours are "
            "ids"
        )
    if picture.ndim == 2 and not picture.any():
        return np.zeros(picture.shape, np.int32)
    if picture.dtype != np.uint8 or picture.ndim == 2:
        kind = "grey" if picture.ndim == 2 else "a picture"
        raise AnnotationError(
            f"{who}: {path} is {kind} of {8 * picture.itemsize} bits; ids stand in three colours "
            "of 8 bits, R + 256 G + 65536 B: write it with panopticapi's id2rgb"
        )
    alpha = picture.shape[2] == 4
    rgba = cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA if alpha else cv2.COLOR_BGR2RGBA)
    ids = rgba.view("<i4")[..., 0]
    ids &= 0xFFFFFF
    return ids


def encode_id_map(ids: np.ndarray) -> bytes:
    """The PNG of (H, W) whole numbers in [0, 2^24), the reverse of :func:`read_id_map`."""
    bgr = np.stack([ids >> 16 & 255, ids >> 8 & 255, ids & 255], -1).astype(np.uint8)
    return cv2.imencode(".png", bgr)[1].tobytes()
