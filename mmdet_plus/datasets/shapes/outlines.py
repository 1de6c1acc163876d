"""Outlines of the thing classes, as closed contours in a frame where the shape spans about [-1, 1].

Every function takes a generator and returns a list of ``(n, 2)`` float64 arrays of x, y. Contours
are filled by the even-odd rule, so an inner contour is a hole.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

Contours = list[np.ndarray]


def _polar(radius: np.ndarray | float, angle: np.ndarray) -> np.ndarray:
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _turn(points: int) -> np.ndarray:
    return np.arange(points) * (2 * np.pi / points)


def _rectangle(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def blob(rng: Generator) -> Contours:
    """A smooth, lobed body; its lobes make it concave."""
    angle = _turn(48)
    radius = np.full(48, 0.8)
    for order, limit in ((2, 0.10), (3, 0.14), (4, 0.07), (5, 0.05)):
        radius += rng.uniform(-limit, limit) * np.cos(order * angle + rng.uniform(0, 2 * np.pi))
    return [_polar(radius, angle)]


def slab(rng: Generator) -> Contours:
    """A quadrilateral plate seen at a slant."""
    taper, shear = rng.uniform(0.7, 1.0), rng.uniform(-0.15, 0.15)
    return [np.array([(-taper + shear, -1), (taper + shear, -1), (1, 1), (-1, 1)]) * 0.9]


def ring(rng: Generator) -> Contours:
    """An annulus with its hole a little off the centre."""
    inner = rng.uniform(0.45, 0.7)
    shift = rng.uniform(-0.08, 0.08, 2)
    angle = _turn(40)
    return [_polar(0.95, angle), _polar(inner, angle) + shift]


def star(rng: Generator) -> Contours:
    """A star of five to seven points."""
    points = int(rng.integers(5, 8))
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.38, 0.55))
    return [_polar(radius, _turn(2 * points))]


def crescent(rng: Generator) -> Contours:
    """A disc less a smaller disc: thin horns around a bay."""
    shift, bite = rng.uniform(0.45, 0.65), rng.uniform(0.75, 0.9)
    # The two circles meet where the outer one has the angle `horn` and the inner one `bay`.
    meet = (1 + shift**2 - bite**2) / (2 * shift)
    horn = np.arccos(np.clip(meet, -1, 1))
    bay = np.arctan2(np.sin(horn), np.cos(horn) - shift)
    outer = _polar(1.0, np.linspace(horn, 2 * np.pi - horn, 32))
    inner = _polar(bite, np.linspace(2 * np.pi - bay, bay, 24)) + (shift, 0)
    return [np.concatenate([outer, inner]) * 0.95]


def ribbon(rng: Generator) -> Contours:
    """A thin winding band."""
    along = np.linspace(-1, 1, 28)
    wave = rng.uniform(0.08, 0.28) * np.sin(
        along * rng.uniform(1.5, 4.5) + rng.uniform(0, 2 * np.pi)
    )
    slope = np.gradient(wave, along)
    normal = np.stack([-slope, np.ones_like(slope)], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    centre = np.stack([along, wave], axis=1)
    half = rng.uniform(0.045, 0.085)
    return [np.concatenate([centre + half * normal, (centre - half * normal)[::-1]])]


def comb(rng: Generator) -> Contours:
    """A handle with three to five thin teeth."""
    teeth = int(rng.integers(3, 6))
    root, spine = rng.uniform(-0.1, 0.15), rng.uniform(0.12, 0.2)
    width = 0.36 / teeth + 0.02
    points = [(-1.0, -0.11), (root - spine, -0.11), (root - spine, -0.6), (root, -0.6)]
    for y in np.linspace(-0.6, 0.6 - width, teeth):
        points += [(root, y), (1.0, y), (1.0, y + width), (root, y + width)]
    points += [(root - spine, 0.6), (root - spine, 0.11), (-1.0, 0.11)]
    return [np.array(points)]


def lattice(rng: Generator) -> Contours:
    """A frame with bars: two to six rectangular holes."""
    columns, rows = int(rng.integers(2, 4)), int(rng.integers(1, 3))
    bar = rng.uniform(0.1, 0.17)
    contours = [_rectangle(-0.95, -0.95, 0.95, 0.95)]
    x, y = np.linspace(-0.95, 0.95 - bar, columns + 1), np.linspace(-0.95, 0.95 - bar, rows + 1)
    for column in range(columns):
        for row in range(rows):
            contours.append(_rectangle(x[column] + bar, y[row] + bar, x[column + 1], y[row + 1]))
    return contours


OUTLINES: dict[str, Callable[[Generator], Contours]] = dict(
    blob=blob,
    slab=slab,
    ring=ring,
    star=star,
    crescent=crescent,
    ribbon=ribbon,
    comb=comb,
    lattice=lattice,
)
