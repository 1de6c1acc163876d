"""Drawing of panoptic maps."""

import numpy as np
import pytest

from mmdet_plus.visualization import distinct_colours
from mmdet_plus.visualization.panoptic_map import ERASED, draw_panoptic, pale_colours

IMAGE = np.full((20, 30, 3), 100, np.uint8)
STUFF, THING = {1: (10, 200, 200)}, {7: (250, 0, 0)}


def drawn_ids():
    ids = np.zeros((20, 30), np.int64)
    ids[:, :10] = 1
    ids[4:16, 12:28] = 7
    return ids


def is_red(picture):
    return (picture == np.array(ERASED, np.uint8)).all(2)


def test_pale_colours_differ_and_are_neither_dark_nor_those_of_things():
    colours = pale_colours(40)
    assert len(set(colours)) == 40 and colours[:5] == pale_colours(5) and pale_colours(0) == []
    assert all(min(colour) > 80 for colour in colours)
    spread = max(max(colour) - min(colour) for colour in colours)
    assert spread < min(max(colour) - min(colour) for colour in distinct_colours(40))


def test_segments_are_coloured_things_outlined_and_void_is_black():
    picture = draw_panoptic(IMAGE, drawn_ids(), STUFF, THING, scale=3, opacity=0.5)
    assert picture.shape == (60, 90, 3) and picture.dtype == np.uint8
    assert picture[30, 10].tolist() == [55, 150, 150]
    assert picture[30, 60].tolist() == [175, 50, 50]
    assert picture[30, 33].tolist() == [0, 0, 0]  # neither stuff nor thing
    assert picture[12, 50].tolist() == [255, 255, 255]  # the thing's upper row
    white = (picture == 255).all(2)
    assert white[12:48, 36:84].sum() == white.sum() > 0
    assert not is_red(picture).any()


def test_what_was_erased_is_hatched_in_red():
    erased = np.zeros((20, 30), bool)
    erased[0:18, 0:8] = True
    picture = draw_panoptic(IMAGE, drawn_ids(), STUFF, THING, erased, scale=2)
    red = is_red(picture)
    assert 0.2 < red[:36, :16].mean() < 0.7  # stripes, not all of it
    assert red[:36, 15].all() and red[35, :16].all()  # and the outline
    assert not red[36:].any() and not red[:, 16:].any()
    plain = draw_panoptic(IMAGE, drawn_ids(), STUFF, THING, np.zeros((20, 30), bool), scale=2)
    assert np.array_equal(plain, draw_panoptic(IMAGE, drawn_ids(), STUFF, THING, scale=2))


@pytest.mark.parametrize("name", ["ids", "erased"])
def test_maps_of_another_size_are_refused(name):
    planes = dict(ids=drawn_ids(), erased=np.zeros((20, 30), bool))
    planes[name] = planes[name][:10]
    with pytest.raises(ValueError, match=rf"{name} of shape \(10, 30\) .* 20 x 30"):
        draw_panoptic(IMAGE, planes["ids"], STUFF, THING, planes["erased"])
