"""From a scene to a picture: backgrounds, surfaces, light and a camera's faults.

Pictures are float32 BGR in [0, 255] until the camera makes them uint8.
"""

import cv2
import numpy as np
from numpy.random import Generator

from .catalog import STUFF_CLASSES
from .scene import Thing, random_colour

# Ground of no class, in the place after the last stuff class.
UNKNOWN = len(STUFF_CLASSES)


def _soft_field(rng: Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise in about [-1, 1] with ``cells`` bumps a side, (H, W) float32."""
    coarse = rng.uniform(-1, 1, (cells, cells)).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def stuff_regions(rng: Generator, size: tuple[int, int]) -> np.ndarray:
    """Divide the ground into two to four regions with winding borders.

    Returns:
        (H, W) uint8: an index into ``STUFF_CLASSES``, or ``UNKNOWN`` for ground of no class, which
        about a third of the pictures contain.
    """
    width, height = size
    count = int(rng.integers(2, 5))
    kinds = rng.permutation(len(STUFF_CLASSES))[:count].astype(np.uint8)
    if rng.random() < 0.35:
        kinds[-1] = UNKNOWN
    seeds = rng.uniform(0, 1, (count, 2)).astype(np.float32)
    x = np.linspace(0, 1, width, dtype=np.float32)[None] + 0.12 * _soft_field(rng, size, 6)
    y = np.linspace(0, 1, height, dtype=np.float32)[:, None] + 0.12 * _soft_field(rng, size, 6)
    # Stretched along x: grounds lie more often above each other than side by side.
    regions = np.full((height, width), kinds[0])
    least = 0.4 * (x - seeds[0, 0]) ** 2 + (y - seeds[0, 1]) ** 2
    for kind, (seed_x, seed_y) in zip(kinds[1:], seeds[1:], strict=True):
        distance = 0.4 * (x - seed_x) ** 2 + (y - seed_y) ** 2
        np.copyto(regions, kind, where=distance < least)
        np.minimum(least, distance, out=least)
    return regions


def kinds_in(regions: np.ndarray) -> list[int]:
    """The kinds of ground that occur, ascending."""
    return np.flatnonzero(np.bincount(regions.ravel(), minlength=UNKNOWN + 1)).tolist()


def _pattern(kind: int, rng: Generator, size: tuple[int, int], unit: float) -> np.ndarray:
    """The texture of a stuff class (or of unknown ground), (H, W) float32 in about [-1, 1]."""
    width, height = size
    turn = rng.uniform(0, np.pi)
    period = rng.uniform(7, 14) * unit
    x = np.arange(width, dtype=np.float32)[None] * np.float32(2 * np.pi / period)
    y = np.arange(height, dtype=np.float32)[:, None] * np.float32(2 * np.pi / period)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    if kind == UNKNOWN:
        return np.sign(_soft_field(rng, size, 28)) * np.float32(0.8)
    name = STUFF_CLASSES[kind]
    if name == "speckle":
        return rng.standard_normal((height, width), dtype=np.float32) * np.float32(0.6)
    if name == "stripe":
        return np.sin(x * cos + y * sin)
    if name == "check":
        # Slow enough that a cell spans several pixels; the sign makes hard cells.
        u, v = np.sin(0.6 * (x * cos + y * sin)), np.sin(0.6 * (y * cos - x * sin))
        return np.sign(u * v) * np.float32(0.8)
    if name == "wave":
        return np.sin(0.8 * y + np.float32(1.6) * np.sin(0.35 * x + np.float32(turn)))
    return _soft_field(rng, size, 9)


def paint_ground(rng: Generator, regions: np.ndarray) -> np.ndarray:
    """Fill the regions with their textures: (H, W) uint8 -> (H, W, 3) float32."""
    height, width = regions.shape
    unit = min(width, height) / 256
    relief = np.zeros((height, width), np.float32)
    colours, contrasts = np.zeros((2, UNKNOWN + 1, 3), np.float32)
    for kind in kinds_in(regions):
        np.copyto(relief, _pattern(kind, rng, (width, height), unit), where=regions == kind)
        colours[kind] = random_colour(rng)
        contrasts[kind] = rng.uniform(0.35, 1.0) * rng.uniform(10, 38, 3)
    picture = np.take(contrasts, regions, axis=0)
    picture *= relief[..., None]
    picture += np.take(colours, regions, axis=0)
    return picture


def _grown(thing: Thing, margin: int, size: tuple[int, int]) -> tuple[np.ndarray, int, int]:
    """The thing's mask as float32 in a window larger by ``margin``, and the window's origin."""
    width, height = size
    rows, columns = thing.window
    x0, y0 = max(columns.start - margin, 0), max(rows.start - margin, 0)
    x1, y1 = min(columns.stop + margin, width), min(rows.stop + margin, height)
    window = np.zeros((y1 - y0, x1 - x0), np.float32)
    window[
        rows.start - y0 : rows.stop - y0,
        columns.start - x0 : columns.stop - x0,
    ] = thing.mask
    return window, x0, y0


def paint_things(rng: Generator, picture: np.ndarray, things: list[Thing]) -> None:
    """Paint things (top first) into the picture in place, each with a shadow and a rounded look."""
    height, width = picture.shape[:2]
    unit = min(width, height) / 256
    turn = rng.uniform(0, 2 * np.pi)
    light = np.array([np.cos(turn), np.sin(turn)])
    depth = rng.uniform(0.15, 0.4)
    grain = _soft_field(rng, (width, height), 48)
    margin = max(2, round(4 * unit))
    for thing in reversed(things):
        soft, x0, y0 = _grown(thing, margin, (width, height))
        rows, columns = slice(y0, y0 + soft.shape[0]), slice(x0, x0 + soft.shape[1])
        soft = cv2.GaussianBlur(soft, (0, 0), 1.6 * unit, borderType=cv2.BORDER_REPLICATE)
        dx, dy = np.rint(-2.0 * unit * light)
        shadow = cv2.warpAffine(soft, np.float32([[1, 0, dx], [0, 1, dy]]), soft.shape[::-1])
        picture[rows, columns] *= (1 - np.float32(depth) * shadow)[..., None]

        rows, columns = thing.window
        inner = soft[rows.start - y0 : rows.stop - y0, columns.start - x0 : columns.stop - x0]
        h, w = thing.mask.shape
        slope_x = np.linspace(-1, 1, w, dtype=np.float32)[None] * np.float32(light[0])
        slope_y = np.linspace(-1, 1, h, dtype=np.float32)[:, None] * np.float32(light[1])
        slant, texture = rng.uniform(0.05, 0.2), rng.uniform(0.02, 0.12)
        shade = np.float32(slant) * (slope_x + slope_y) + np.float32(texture) * grain[rows, columns]
        shade += np.float32(0.72) + np.float32(0.3) * inner
        mask = thing.mask
        picture[rows, columns][mask] = shade[mask][:, None] * thing.colour.astype(np.float32)


def _noise(rng: Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Bell-shaped noise of deviation 1, float32: the sum of three uniform bytes.

    A tenth of the time of normal deviates, the most costly step of a picture otherwise.
    """
    count = int(np.prod(shape))
    words = rng.integers(0, 1 << 64, -(-3 * count // 8), dtype=np.uint64, endpoint=False)
    # Little-endian on every machine, so that the bytes come in the same order.
    a, b, c = words.astype("<u8", copy=False).view(np.uint8)[: 3 * count].reshape(3, *shape)
    total = cv2.add(a, b, dtype=cv2.CV_16U)
    total = cv2.add(total, c, dtype=cv2.CV_32F)
    # Three bytes have mean 3 * 127.5 and variance 3 * (256^2 - 1) / 12.
    total -= np.float32(382.5)
    total *= np.float32((3 * (256**2 - 1) / 12) ** -0.5)
    return total


def photograph(rng: Generator, picture: np.ndarray) -> np.ndarray:
    """Uneven light, blur and sensor noise (read and shot): float32 -> uint8.

    The picture is used up.
    """
    height, width = picture.shape[:2]
    light = 1 + np.float32(0.18) * _soft_field(rng, (width, height), 3)
    picture *= light[..., None]
    sigma = rng.uniform(0.4, 1.0) * max(min(width, height) / 256, 0.5)
    cv2.GaussianBlur(picture, (0, 0), sigma, dst=picture, borderType=cv2.BORDER_REFLECT)
    np.clip(picture, 0, 255, out=picture)
    read, shot = rng.uniform(1.5, 5), rng.uniform(0.02, 0.12)
    noise = _noise(rng, picture.shape)
    deviation = picture * np.float32(shot)
    deviation += np.float32(read**2)
    noise *= cv2.sqrt(deviation, dst=deviation)
    return cv2.add(picture, noise, dtype=cv2.CV_8U)
