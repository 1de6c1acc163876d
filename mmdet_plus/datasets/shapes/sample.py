"""One image and its records: a pure function of seed, split and index."""

from dataclasses import dataclass

import numpy as np
from pycocotools import mask as mask_utils

from .catalog import CLASSES, THING_CLASSES, category_id
from .render import UNKNOWN, kinds_in, paint_ground, paint_things, photograph, stuff_regions
from .scene import compose

SPLITS = ("train", "val")
VOID_LABEL = 255
_MAX_SEGMENTS = 64
# Segment ids are 24-bit colours: an odd factor permutes them, which spreads the colours and keeps
# every id of a split different from all others and from 0, the void.
_SPREAD = 0x9E3779
MAX_IMAGES = (1 << 24) // _MAX_SEGMENTS - 1


@dataclass
class Sample:
    """A finished image.

    Attributes:
        image: (H, W, 3) uint8 BGR.
        panoptic: (H, W, 3) uint8 RGB, COCO's encoding ``id = R + 256 G + 256^2 B``; 0 is void.
        stuff: (H, W) uint8 labels: 0 to 7 things, 8 to 12 stuff, 255 void.
        instances: COCO annotations of the things, top first, without ``image_id``.
        segments: COCO panoptic ``segments_info``, things top first, then stuff.
    """

    image: np.ndarray
    panoptic: np.ndarray
    stuff: np.ndarray
    instances: list[dict]
    segments: list[dict]


def _segment_id(index: int, number: int) -> int:
    return ((index + 1) * _MAX_SEGMENTS + number) * _SPREAD % (1 << 24)


def _encode(index_map: np.ndarray, numbers: np.ndarray) -> list[dict]:
    """Compressed RLEs of ``index_map == number`` for every number."""
    # pycocotools wants (H, W, N) in Fortran order, which is (N, W, H) in C order.
    upright = np.ascontiguousarray(index_map.T)
    stack = (upright[None] == numbers[:, None, None]).astype(np.uint8)
    return mask_utils.encode(stack.transpose(2, 1, 0))


def draw_sample(seed: int, split: str, index: int, size: tuple[int, int]) -> Sample:
    """Draw image ``index`` of a split.

    Args:
        seed: The data set's seed, >= 0.
        split: 'train' or 'val'.
        index: Position in the split, from 0.
        size: Width and height in pixels.

    Returns:
        The same arrays and records on every call with the same arguments.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    things = compose(rng, size)
    regions = stuff_regions(rng, size)
    picture = paint_ground(rng, regions)
    paint_things(rng, picture, things)

    # 0 is void, then the things, top first, then the stuff.
    grounds = [kind for kind in kinds_in(regions) if kind != UNKNOWN]
    index_map = np.zeros(regions.shape, np.uint8)
    for offset, kind in enumerate(grounds):
        index_map[regions == kind] = 1 + len(things) + offset
    for depth in reversed(range(len(things))):
        index_map[things[depth].window][things[depth].mask] = 1 + depth

    names = [t.name for t in things] + [CLASSES[len(THING_CLASSES) + kind] for kind in grounds]
    numbers = np.arange(1, len(names) + 1, dtype=np.uint8)
    areas = np.bincount(index_map.ravel(), minlength=len(names) + 1)[1:].tolist()
    rles = _encode(index_map, numbers)
    boxes = np.rint(mask_utils.toBbox(rles)).astype(int).tolist()

    instances, segments = [], []
    for k, name in enumerate(names):
        # Ground that things cover wholly is no segment.
        if areas[k] == 0:
            continue
        ident = _segment_id(index, k)
        common = dict(id=ident, category_id=category_id(name), bbox=boxes[k], area=areas[k])
        segments.append(dict(common, iscrowd=0))
        if k < len(things):
            whole = things[k].amodal_area
            rle = dict(size=list(rles[k]["size"]), counts=rles[k]["counts"].decode("ascii"))
            instances.append(
                dict(
                    common,
                    iscrowd=0,
                    segmentation=rle,
                    depth=k,
                    amodal_area=whole,
                    visible_ratio=round(areas[k] / whole, 4),
                )
            )

    colours = np.zeros((len(names) + 1, 3), np.uint8)
    labels = np.full(len(names) + 1, VOID_LABEL, np.uint8)
    for k, name in enumerate(names):
        ident = _segment_id(index, k)
        colours[k + 1] = (ident & 255, ident >> 8 & 255, ident >> 16)
        labels[k + 1] = CLASSES.index(name)
    return Sample(
        image=photograph(rng, picture),
        panoptic=np.take(colours, index_map, axis=0),
        stuff=np.take(labels, index_map),
        instances=instances,
        segments=segments,
    )
