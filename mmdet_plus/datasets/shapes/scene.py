"""Scenes: which things stand where, how deep, and what of each remains visible."""

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from .catalog import (
    CUSTOMARY_SHARE,
    HUE_NOISE,
    LAYER_NOISE,
    LAYERS,
    RIDERS,
    THING_CLASSES,
)
from .outlines import OUTLINES

# Half lengths in pixels of a 256 px picture (least, most), and height over width (least, most).
_RADIUS = dict(
    blob=(18, 60),
    slab=(28, 62),
    ring=(7, 38),
    star=(6, 36),
    crescent=(9, 44),
    ribbon=(24, 60),
    comb=(12, 48),
    lattice=(18, 50),
)
_ASPECT = dict(
    blob=(0.45, 0.85),
    slab=(0.4, 0.85),
    ring=(0.7, 1.0),
    star=(0.85, 1.0),
    crescent=(0.8, 1.0),
    ribbon=(0.7, 1.0),
    comb=(0.6, 1.0),
    lattice=(0.6, 1.0),
)
_HUDDLERS = ("blob", "slab", "ring", "star", "crescent", "comb")
# Less than this of a thing is no object that anyone would label.
_MIN_VISIBLE_RATIO = 0.25
_MIN_VISIBLE_AREA = 24
_SHIFT = 4


@dataclass
class Thing:
    """One thing of a scene; lengths in pixels.

    ``mask`` is its whole silhouette inside the picture, a bool array whose upper left pixel is
    ``(x, y)``; ``colour`` is BGR in [0, 255]; ``z`` grows towards the viewer.
    """

    name: str
    radius: float
    z: float
    colour: np.ndarray
    x: int
    y: int
    mask: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Rows and columns of the picture that ``mask`` covers."""
        height, width = self.mask.shape
        return slice(self.y, self.y + height), slice(self.x, self.x + width)

    @property
    def amodal_area(self) -> int:
        """Pixels of the whole silhouette inside the picture."""
        return int(np.count_nonzero(self.mask))


def random_colour(rng: Generator) -> np.ndarray:
    """A BGR colour in [0, 255], of any hue and of middling saturation and brightness."""
    grey = rng.uniform(60, 205)
    return np.clip(grey + rng.uniform(-60, 60, 3), 15, 240)


def class_colour(rng: Generator, name: str) -> np.ndarray:
    """A BGR colour in [0, 255] for a thing: mostly of its class's hue, now and then of any."""
    if rng.random() >= CUSTOMARY_SHARE:
        return random_colour(rng)
    hue = 360 * THING_CLASSES.index(name) / len(THING_CLASSES) + rng.normal(0, HUE_NOISE)
    red, green, blue = colorsys.hsv_to_rgb(
        hue / 360 % 1, rng.uniform(0.35, 0.75), rng.uniform(0.45, 0.9)
    )
    return np.array([blue, green, red]) * 255


def _silhouette(
    contours: list[np.ndarray], size: tuple[int, int]
) -> tuple[int, int, np.ndarray] | None:
    """Rasterise contours (pixels) to ``x, y, mask``; None where they miss the picture."""
    width, height = size
    every = np.concatenate(contours)
    x0, y0 = np.maximum(np.floor(every.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(every.max(axis=0)).astype(int) + 2, (width, height))
    if x1 <= x0 or y1 <= y0:
        return None
    mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
    fixed = [np.rint((c - (x0, y0)) * (1 << _SHIFT)).astype(np.int32) for c in contours]
    cv2.fillPoly(mask, fixed, 1, shift=_SHIFT)
    return int(x0), int(y0), mask.astype(bool)


class _Placer:
    """Draws things into a picture of ``size`` (W, H) and collects them."""

    def __init__(self, rng: Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.size = size
        self.unit = min(size) / 256
        self.things: list[Thing] = []

    def radius(self, name: str, largest: float = 1.0) -> float:
        """A half length; small ones are as frequent as large ones (log-uniform)."""
        least, most = _RADIUS[name]
        most = least + (most - least) * largest
        return float(np.exp(self.rng.uniform(np.log(least), np.log(most)))) * self.unit

    def spot(self) -> np.ndarray:
        """A centre anywhere but in the outermost 8 % of the picture."""
        return self.rng.uniform(0.08, 0.92, 2) * self.size

    def put(
        self,
        name: str,
        centre: np.ndarray,
        radius: float,
        angle: float,
        aspect: float,
        colour: np.ndarray,
        z_noise: float,
    ) -> None:
        cos, sin = np.cos(angle), np.sin(angle)
        frame = radius * np.array([(cos, sin), (-aspect * sin, aspect * cos)])
        contours = [contour @ frame + centre for contour in OUTLINES[name](self.rng)]
        drawn = _silhouette(contours, self.size)
        if drawn is None:
            return
        # Lower in the picture is nearer, as on the ground before a camera.
        z = LAYERS[name] + z_noise + 0.2 * (centre[1] / self.size[1] - 0.5)
        self.things.append(Thing(name, radius, float(z), colour, *drawn))

    def noise(self) -> float:
        return LAYER_NOISE * float(self.rng.standard_normal())

    def single(self, name: str, largest: float = 1.0) -> None:
        self.put(
            name,
            self.spot(),
            self.radius(name, largest),
            self.rng.uniform(0, 2 * np.pi),
            self.rng.uniform(*_ASPECT[name]),
            class_colour(self.rng, name),
            self.noise(),
        )

    def carrier(self, count: int) -> None:
        """A large thing with ``count`` riders on it."""
        rng = self.rng
        name = str(rng.choice(list(RIDERS)))
        centre, radius = self.spot(), self.radius(name) * 0.5 + 0.5 * _RADIUS[name][1] * self.unit
        angle, aspect = rng.uniform(0, 2 * np.pi), rng.uniform(*_ASPECT[name])
        self.put(name, centre, radius, angle, aspect, class_colour(rng, name), self.noise())
        for _ in range(count):
            rider = str(rng.choice(RIDERS[name]))
            offset = rng.uniform(-0.7, 0.7, 2) * (radius, aspect * radius)
            cos, sin = np.cos(angle), np.sin(angle)
            on = centre + (offset[0] * cos - offset[1] * sin, offset[0] * sin + offset[1] * cos)
            reach = min(self.radius(rider), 1.1 * radius)
            self.put(
                rider,
                on,
                reach,
                angle + rng.normal(0, 0.5),
                rng.uniform(*_ASPECT[rider]),
                class_colour(rng, rider),
                self.noise(),
            )

    def huddle(self, count: int) -> None:
        """``count`` alike things side by side along a slanting line, touching or overlapping."""
        rng = self.rng
        name = str(rng.choice(_HUDDLERS))
        radius = self.radius(name, largest=0.6)
        aspect = rng.uniform(*_ASPECT[name]) * (0.6 if name in ("blob", "slab", "comb") else 1.0)
        # At about 45 degrees the boxes of long neighbours overlap most while the masks hardly do.
        angle = rng.uniform(0.18, 0.32) * np.pi + rng.integers(0, 4) * np.pi / 2
        breadth = 2 * radius * aspect * (0.7 if name == "comb" else 0.85)
        across = np.array([-np.sin(angle), np.cos(angle)])
        along = np.array([np.cos(angle), np.sin(angle)])
        colour = class_colour(rng, name)
        noise = self.noise()
        centre = self.spot()
        for _ in range(count):
            near = np.clip(colour + rng.normal(0, 9, 3), 10, 245)
            self.put(
                name,
                centre,
                radius * rng.uniform(0.88, 1.12),
                angle + rng.normal(0, 0.12),
                aspect * rng.uniform(0.92, 1.08),
                near,
                noise + 0.1 * float(rng.standard_normal()),
            )
            step = breadth * rng.uniform(0.5, 0.95)
            centre = centre + step * across + radius * rng.uniform(-0.25, 0.25) * along


def compose(rng: Generator, size: tuple[int, int]) -> list[Thing]:
    """Draw the things of one scene.

    Args:
        rng: The scene's own generator.
        size: Width and height of the picture in pixels.

    Returns:
        The things that are worth a label, top first: each shows at least a quarter of its
        silhouette. What others hide further is left out of the scene altogether.
    """
    placer = _Placer(rng, size)
    budget = int(rng.integers(5, 11))
    while len(placer.things) < budget:
        left = budget - len(placer.things)
        kind = rng.random()
        if kind < 0.42 and left >= 2:
            placer.huddle(int(rng.integers(2, min(left, 5) + 1)))
        elif kind < 0.78 and left >= 2:
            placer.carrier(int(rng.integers(1, min(left - 1, 3) + 1)))
        else:
            placer.single(str(rng.choice(THING_CLASSES)), largest=0.9)
    # sorted() is stable, so equal depths keep the order of drawing.
    return _visible(sorted(placer.things, key=lambda thing: -thing.z), size, placer.unit)


def _visible(things: list[Thing], size: tuple[int, int], unit: float) -> list[Thing]:
    covered = np.zeros(size[::-1], bool)
    kept = []
    for thing in things:
        window = covered[thing.window]
        seen = np.count_nonzero(thing.mask & ~window)
        if seen < max(_MIN_VISIBLE_RATIO * thing.amodal_area, _MIN_VISIBLE_AREA * unit**2, 4):
            continue
        window |= thing.mask
        kept.append(thing)
    return kept
