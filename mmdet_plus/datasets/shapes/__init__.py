"""Shapes: a data set drawn from a seed, with every difficulty that the five papers are about.

Occlusion by class priors, huddles of alike neighbours, thin parts, holes, textured stuff, blur and
noise; classes differ in shape and texture, of which colour tells but a part.
"""

from .catalog import CLASSES, PALETTE, STUFF_CLASSES, THING_CLASSES
from .generate import make_shapes
from .sample import Sample, draw_sample

__all__ = [
    "CLASSES",
    "PALETTE",
    "STUFF_CLASSES",
    "THING_CLASSES",
    "Sample",
    "draw_sample",
    "make_shapes",
]
