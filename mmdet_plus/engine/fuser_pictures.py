"""Pictures of what several panoptic fusers make of the same predictions, beside ground truth.

Shape letters: H x W the image. Maps are mmdet's: of a thing its label + ``INSTANCE_OFFSET`` times
its number, of stuff its label, of void any label after the last class.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
from mmdet.evaluation.functional import INSTANCE_OFFSET

from mmdet_plus.visualization import (
    distinct_colours,
    draw_panoptic,
    match_masks,
    pale_colours,
    picture_grid,
    write_png,
)

# Pictures are enlarged to about so many pixels, and so many stand in a row.
_WIDTH, _COLUMNS = 480, 4


class Panel(NamedTuple):
    """What one fuser made of an image: the map (H, W), and what it erased (H, W) bool, or None."""

    codes: np.ndarray
    erased: np.ndarray | None = None


def draw_panels(
    image: np.ndarray, truth: np.ndarray, panels: Mapping[str, Panel], num_classes: int
) -> np.ndarray:
    """Draw an image, its ground truth and the fusers' maps, four in a row.

    A thing has the colour of the ground truth that it shows (IoU from 0.5 on), otherwise one of
    its own; a class of stuff has one pale colour everywhere; void is black; regions that Unknown
    Erasing made void are hatched and outlined in red.

    Args:
        image: (H, W, 3) uint8 BGR.
        truth: (H, W) map.
        panels: By caption.
        num_classes: Classes of things and stuff.

    Returns:
        The picture, uint8 BGR.
    """
    scale = max(1, round(_WIDTH / image.shape[1]))
    pale = dict(enumerate(pale_colours(num_classes)))
    real = _things(truth)
    real_masks = _masks(truth, real)
    large = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
    pictures = {"image": large}
    for name, panel in {"ground truth": Panel(truth), **panels}.items():
        things = _things(panel.codes)
        matches = match_masks(_masks(panel.codes, things), real_masks)
        # Those of no match come after all that ground truth can have.
        colours = distinct_colours(len(real) + len(things))
        own = {
            code: colours[len(real) + place if match < 0 else match]
            for place, (code, match) in enumerate(zip(things, matches, strict=True))
        }
        pictures[name] = draw_panoptic(image, panel.codes, pale, own, panel.erased, scale)
    return _in_rows(pictures)


def write_panels(
    folder: str | os.PathLike,
    img_path: str,
    truth: np.ndarray,
    panels: Mapping[str, Panel],
    num_classes: int,
) -> Path:
    """Write the picture of an image as a PNG of its name.

    Args:
        folder: Made if need be.
        img_path: The image.
        truth: See :func:`draw_panels`, as for the rest.
        panels: See there.
        num_classes: See there.

    Returns:
        The file.
    """
    image = mmcv.imread(img_path)
    picture = draw_panels(image, truth, panels, num_classes)
    return write_png(Path(folder) / f"{Path(img_path).stem}.png", picture)


def _things(codes: np.ndarray) -> list[int]:
    """The codes of the things in a map."""
    return np.unique(codes[codes >= INSTANCE_OFFSET]).tolist()


def _masks(codes: np.ndarray, things: Sequence[int]) -> np.ndarray:
    return codes[None] == np.array(things, codes.dtype)[:, None, None]


def _in_rows(pictures: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures of one size under their captions, in rows of equal width."""
    names = list(pictures)
    rows = []
    for first in range(0, len(names), _COLUMNS):
        titles = names[first : first + _COLUMNS]
        row = picture_grid([[pictures[name] for name in titles]], titles)
        missing = (rows[0].shape[1] if rows else row.shape[1]) - row.shape[1]
        rows.append(np.pad(row, ((0, 0), (0, missing), (0, 0)), constant_values=255))
    return np.concatenate(rows)
