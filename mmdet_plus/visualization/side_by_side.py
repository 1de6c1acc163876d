"""Pictures of instance masks side by side: free functions on BGR arrays of 8 bits.

Shape letters: N masks of H x W pixels, s the enlargement of the drawing.
"""

import colorsys
import io
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmseg_plus.common.files import write_file

# BGR, for a mask that belongs to none of the reference masks: outlined thinly, never filled, so
# that a heap of them leaves the image and the others in sight.
UNMATCHED = (255, 255, 255)
_PAPER, _INK = (255, 255, 255), (40, 40, 40)


def distinct_colours(count: int) -> list[tuple[int, int, int]]:
    """Choose colours that can be told apart, neighbours in the list most of all.

    Args:
        count: How many, >= 0.

    Returns:
        ``count`` BGR triples, none of them grey.
    """
    colours = []
    for i in range(count):
        # The golden ratio spreads any number of hues; lightness tells those apart that come close.
        hue, lightness = (0.02 + i * 0.618034) % 1, (0.5, 0.66, 0.4)[i % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.95)
        colours.append((round(blue * 255), round(green * 255), round(red * 255)))
    return colours


def match_masks(masks: np.ndarray, references: np.ndarray, iou_thr: float = 0.5) -> list[int]:
    """Find for every mask the reference that it shows, each reference being taken once.

    Args:
        masks: (N, H, W) bool, best first: an earlier mask takes its reference from later ones.
        references: (M, H, W) bool.
        iou_thr: Least intersection over union, in (0, 1].

    Returns:
        N indices into the references, -1 where none is left that overlaps enough.
    """
    if not len(masks) or not len(references):
        return [-1] * len(masks)
    flat = masks.reshape(len(masks), -1).astype(np.float32)
    other = references.reshape(len(references), -1).astype(np.float32)
    shared = flat @ other.T
    union = flat.sum(1)[:, None] + other.sum(1)[None] - shared
    iou = shared / np.maximum(union, 1)
    matches = []
    for row in iou:
        best = int(row.argmax())
        if row[best] < iou_thr:
            matches.append(-1)
            continue
        matches.append(best)
        iou[:, best] = 0
    return matches


def draw_masks(
    image: np.ndarray,
    masks: np.ndarray,
    colours: Sequence[tuple[int, int, int]],
    scale: int = 2,
    opacity: float = 0.4,
) -> np.ndarray:
    """Draw masks over an image, filled and outlined.

    Args:
        image: (H, W, 3) uint8 BGR.
        masks: (N, H, W) bool. Smaller ones are drawn over larger ones.
        colours: N BGR triples; masks of the colour ``UNMATCHED`` have a thin outline alone.
        scale: s, whole enlargement >= 1; outlines are two pixels wide after it.
        opacity: Of the fill, in [0, 1].

    Returns:
        (s H, s W, 3) uint8 BGR.

    Raises:
        ValueError: The masks are not of the image's size, or there are not N colours.
    """
    height, width = image.shape[:2]
    if masks.ndim != 3 or masks.shape[1:] != (height, width):
        raise ValueError(f"masks of shape {masks.shape} do not fit an image of {height} x {width}")
    if len(colours) != len(masks):
        raise ValueError(f"{len(masks)} masks, but {len(colours)} colours")
    size = (width * scale, height * scale)
    canvas = cv2.resize(image, size, interpolation=cv2.INTER_NEAREST).astype(np.float32)
    order = np.argsort([-np.count_nonzero(mask) for mask in masks], kind="stable")
    large = [
        cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) for mask in masks
    ]
    matched = [tuple(int(c) for c in colour) != UNMATCHED for colour in colours]
    for i in order:
        if not matched[i]:
            continue
        inside = large[i] > 0
        canvas[inside] = (1 - opacity) * canvas[inside] + opacity * np.float32(colours[i])
    canvas = canvas.round().astype(np.uint8)
    for i in order:
        rings, _ = cv2.findContours(large[i], cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(canvas, rings, -1, tuple(int(c) for c in colours[i]), 1 + matched[i])
    return canvas


def picture_grid(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], gap: int = 8
) -> np.ndarray:
    """Put pictures into rows under column titles, on white.

    Args:
        rows: Rows of (H, W, 3) uint8 BGR pictures, as many in each as there are titles; a column
            is as wide as its widest picture, a row as high as its highest.
        titles: One for each column.
        gap: Pixels between and around the pictures.

    Returns:
        The grid, uint8 BGR.

    Raises:
        ValueError: There is no row, or a row has another number of pictures.
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        found = [len(row) for row in rows]
        raise ValueError(f"rows of {found} pictures do not fit {len(titles)} titles")
    widths = [max(row[i].shape[1] for row in rows) for i in range(len(titles))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    font, size, head = cv2.FONT_HERSHEY_SIMPLEX, 0.8, 34
    canvas = np.full(
        (head + sum(heights) + gap * (len(rows) + 1), sum(widths) + gap * (len(widths) + 1), 3),
        _PAPER,
        np.uint8,
    )
    left = gap
    for column, (title, width) in enumerate(zip(titles, widths, strict=True)):
        # A title that is too long for its column is set smaller.
        length = cv2.getTextSize(title, font, size, 2)[0][0]
        fitting = size * min(1, width / max(length, 1))
        cv2.putText(canvas, title, (left, head - 6), font, fitting, _INK, 2, cv2.LINE_AA)
        top = head + gap
        for row, height in zip(rows, heights, strict=True):
            picture = row[column]
            canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
            top += height + gap
        left += width + gap
    return canvas


def encode_png(image: np.ndarray, max_bytes: int | None = None) -> bytes:
    """Encode a picture as PNG, with fewer colours where it would be too large.

    Args:
        image: (H, W, 3) uint8 BGR.
        max_bytes: Size that the result must not exceed; None for a true-colour PNG of any size.

    Returns:
        The PNG.

    Raises:
        ValueError: Even with 16 colours it is larger than ``max_bytes``.
    """
    picture = Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    content = _png(picture)
    if max_bytes is None or len(content) <= max_bytes:
        return content
    # What was enlarged twice without smoothing loses no colour when every second pixel is left out.
    sample = picture.resize(
        (max(1, picture.width // 2), max(1, picture.height // 2)), Image.Resampling.NEAREST
    )
    for colours in (256, 128, 64, 32, 16):
        # Maximum coverage keeps the rare colours, which outlines have; the means then settle.
        palette = sample.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=2)
        few = picture.quantize(palette=palette, dither=Image.Dither.NONE)
        content = _png(few)
        if len(content) <= max_bytes:
            return content
    height, width = image.shape[:2]
    raise ValueError(
        f"a picture of {width} x {height} does not fit into {max_bytes} bytes: it takes "
        f"{len(content)} with 16 colours; draw fewer or smaller pictures"
    )


def write_png(path: str | os.PathLike, image: np.ndarray, max_bytes: int | None = None) -> Path:
    """Write a picture so that the file appears whole or not at all.

    Args:
        path: The file; its folder is made if need be.
        image: (H, W, 3) uint8 BGR.
        max_bytes: As for :func:`encode_png`.

    Returns:
        The path.

    Raises:
        ValueError: As :func:`encode_png`.
    """
    return write_file(path, encode_png(image, max_bytes))


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()
