"""Pictures of panoptic maps: free functions on BGR arrays of 8 bits.

Shape letters: H x W pixels of a map, s the enlargement of the drawing.
"""

import colorsys
from collections.abc import Mapping

import cv2
import numpy as np

Colour = tuple[int, int, int]

# BGR, of what was erased.
ERASED = (0, 0, 255)
_OUTLINE = (255, 255, 255)
# Pixels of the drawing from one stripe of the hatching to the next, and across a stripe.
_PERIOD, _STRIPE = 10, 3


def pale_colours(count: int) -> list[Colour]:
    """Choose colours for stuff, which those of ``distinct_colours`` stand out from.

    Args:
        count: How many, >= 0.

    Returns:
        ``count`` BGR triples, pale ones.
    """
    colours = []
    for i in range(count):
        # As far as possible from one another whatever their number; never dark, for void is black.
        hue, lightness = (0.3 + i * 0.618034) % 1, (0.62, 0.76, 0.5)[i % 3]
        red, green, blue = colorsys.hls_to_rgb(hue, lightness, 0.25)
        colours.append((round(blue * 255), round(green * 255), round(red * 255)))
    return colours


def draw_panoptic(
    image: np.ndarray,
    ids: np.ndarray,
    stuff: Mapping[int, Colour],
    things: Mapping[int, Colour],
    erased: np.ndarray | None = None,
    scale: int = 2,
    opacity: float = 0.7,
) -> np.ndarray:
    """Draw a panoptic map over its image: segments in colours, things outlined, void black.

    Args:
        image: (H, W, 3) uint8 BGR.
        ids: (H, W) whole numbers, the same within a segment.
        stuff: Colours by id.
        things: Colours by id. What is neither is void.
        erased: (H, W) bool, to be hatched and outlined in red, or None.
        scale: s, whole enlargement >= 1.
        opacity: Of the colours, in [0, 1].

    Returns:
        (s H, s W, 3) uint8 BGR.

    Raises:
        ValueError: The maps are not of the image's size.
    """
    for name, plane in (("ids", ids), ("erased", erased)):
        if plane is not None and plane.shape != image.shape[:2]:
            height, width = image.shape[:2]
            raise ValueError(
                f"{name} of shape {plane.shape} do not fit an image of {height} x {width}"
            )
    canvas = np.zeros(image.shape, np.float32)
    for ident, colour in {**stuff, **things}.items():
        inside = ids == ident
        canvas[inside] = (1 - opacity) * image[inside] + opacity * np.float32(colour)
    size = (image.shape[1] * scale, image.shape[0] * scale)
    canvas = cv2.resize(canvas.round().astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    for ident in things:
        _outline(canvas, ids == ident, _OUTLINE)
    if erased is not None and erased.any():
        rows, cols = np.indices(canvas.shape[:2])
        stripes = (rows + cols) % _PERIOD < _STRIPE
        canvas[stripes & (_enlarged(erased, canvas) > 0)] = ERASED
        _outline(canvas, erased, ERASED)
    return canvas


def _outline(canvas: np.ndarray, mask: np.ndarray, colour: Colour) -> None:
    """Draw the outline of a mask of the unenlarged size."""
    rings, _ = cv2.findContours(_enlarged(mask, canvas), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, rings, -1, colour, 1)


def _enlarged(mask: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    size = (canvas.shape[1], canvas.shape[0])
    return cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
