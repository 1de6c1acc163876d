"""Drawing of masks, grids of pictures and their files."""

import io

import numpy as np
import pytest
from PIL import Image

from mmdet_plus.visualization import (
    UNMATCHED,
    distinct_colours,
    draw_masks,
    encode_png,
    match_masks,
    picture_grid,
    write_png,
)

RED, BLUE = (0, 0, 255), (255, 0, 0)


def box_mask(x1, y1, x2, y2, size=20):
    mask = np.zeros((size, size), bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_colours_differ_and_are_not_grey():
    colours = distinct_colours(24)
    assert len(set(colours)) == 24
    assert all(max(colour) - min(colour) > 80 for colour in colours)
    assert distinct_colours(0) == []
    assert colours[:3] == distinct_colours(3)


def test_masks_are_matched_once_and_in_order():
    references = np.stack([box_mask(0, 0, 10, 10), box_mask(10, 0, 20, 10)])
    masks = np.stack(
        [
            box_mask(10, 0, 20, 9),
            box_mask(10, 0, 20, 10),  # a better match, but a later one
            box_mask(0, 0, 10, 6),
            box_mask(0, 12, 10, 20),
        ]
    )
    assert match_masks(masks, references) == [1, -1, 0, -1]
    assert match_masks(masks, references, iou_thr=0.7) == [1, -1, -1, -1]


def test_the_second_best_reference_is_no_match_if_it_overlaps_too_little():
    references = np.stack([box_mask(0, 0, 10, 10), box_mask(0, 8, 10, 18)])
    masks = np.stack([box_mask(0, 0, 10, 10), box_mask(0, 1, 10, 11)])
    assert match_masks(masks, references) == [0, -1]


@pytest.mark.parametrize(("masks", "references"), [(0, 2), (2, 0), (0, 0)])
def test_nothing_matches_nothing(masks, references):
    planes = np.ones((2, 5, 5), bool)
    assert match_masks(planes[:masks], planes[:references]) == [-1] * masks


def test_an_empty_mask_matches_nothing():
    empty = np.zeros((1, 5, 5), bool)
    assert match_masks(empty, empty) == [-1]


def test_fill_outline_and_ground():
    image = np.full((20, 20, 3), 100, np.uint8)
    drawn = draw_masks(image, box_mask(5, 5, 15, 15)[None], [RED], scale=2, opacity=0.5)
    assert drawn.shape == (40, 40, 3) and drawn.dtype == np.uint8
    assert drawn[20, 20].tolist() == [50, 50, 178]
    assert drawn[10, 20].tolist() == list(RED)
    assert drawn[2, 2].tolist() == [100, 100, 100]
    assert (image == 100).all()


def test_holes_have_an_outline_and_no_fill():
    mask = box_mask(2, 2, 18, 18) & ~box_mask(7, 7, 13, 13)
    drawn = draw_masks(np.full((20, 20, 3), 100, np.uint8), mask[None], [RED])
    assert drawn[20, 20].tolist() == [100, 100, 100]
    inner_ring = drawn[12:16, 20]
    assert (inner_ring == RED).all(1).any()


def test_unmatched_masks_are_outlined_and_not_filled():
    image = np.full((20, 20, 3), 100, np.uint8)
    drawn = draw_masks(image, box_mask(5, 5, 15, 15)[None], [UNMATCHED], scale=2)
    assert drawn[20, 20].tolist() == [100, 100, 100]
    assert drawn[10, 20].tolist() == list(UNMATCHED)
    assert drawn[11, 20].tolist() == [100, 100, 100]


def test_few_colours_keep_the_rare_ones():
    rng = np.random.default_rng(0)
    image = (rng.normal(0, 12, (200, 200, 3)) + (90, 140, 60)).clip(0, 255).astype(np.uint8)
    image[100:102, 50:100] = RED
    image[104:106, 50:60] = BLUE
    small = encode_png(image, max_bytes=len(encode_png(image)) // 2)
    read = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(read[100:102, 50:100] - RED).max() < 20
    assert np.abs(read[104:106, 50:60] - BLUE).max() < 20


def test_small_masks_lie_on_top():
    masks = np.stack([box_mask(8, 8, 12, 12), box_mask(0, 0, 20, 20)])
    image = np.zeros((20, 20, 3), np.uint8)
    drawn = draw_masks(image, masks, [RED, BLUE], scale=1, opacity=1)
    assert drawn[9, 9].tolist() == list(RED)
    assert drawn[3, 3].tolist() == list(BLUE)


def test_without_masks_the_image_is_enlarged():
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    drawn = draw_masks(image, np.zeros((0, 6, 7), bool), [], scale=3)
    assert (drawn == image.repeat(3, 0).repeat(3, 1)).all()


def test_masks_that_do_not_fit_are_refused():
    image = np.zeros((20, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="do not fit an image of 20 x 20"):
        draw_masks(image, np.zeros((1, 10, 20), bool), [RED])
    with pytest.raises(ValueError, match="1 masks, but 2 colours"):
        draw_masks(image, box_mask(1, 1, 3, 3)[None], [RED, BLUE])


def test_grid_holds_every_picture_and_its_titles():
    pictures = [np.full((30, width, 3), value, np.uint8) for width, value in ((50, 10), (70, 20))]
    grid = picture_grid([pictures, pictures[::-1]], ["left", "right"], gap=8)
    assert grid.shape[1] == 70 + 70 + 3 * 8
    for value in (10, 20):
        assert (grid == value).all(2).sum() == 2 * 30 * (50 if value == 10 else 70)
    title = grid[:34]
    assert (title < 128).any() and (title[:, :8] == 255).all()


def test_a_long_title_stays_in_its_column():
    picture = np.full((10, 60, 3), 128, np.uint8)
    title = picture_grid([[picture, picture]], ["a title that is far too long", ""])[:34]
    assert (title[:, :70] < 128).any()
    assert (title[:, 76:] == 255).all()


def test_rows_that_do_not_fit_are_refused():
    picture = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match=r"rows of \[1\] pictures do not fit 2 titles"):
        picture_grid([[picture]], ["a", "b"])
    with pytest.raises(ValueError, match="do not fit 1 titles"):
        picture_grid([], ["a"])


def test_png_in_full_colour_and_in_few(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    full = encode_png(noise)
    read = np.asarray(Image.open(io.BytesIO(full)))
    assert (read[..., ::-1] == noise).all()
    small = encode_png(noise, max_bytes=5000)
    assert len(small) <= 5000 < len(full)
    read = np.asarray(Image.open(io.BytesIO(small)).convert("RGB"))[..., ::-1]
    assert np.abs(read.astype(int) - noise).mean() < 60


def test_a_picture_too_large_leaves_no_file(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="64 x 64 does not fit into 500 bytes"):
        write_png(tmp_path / "pictures" / "a.png", noise, max_bytes=500)
    assert not list(tmp_path.rglob("*.png"))


def test_written_pictures_replace_older_ones(tmp_path):
    path = tmp_path / "new" / "a.png"
    for value in (10, 200):
        write_png(path, np.full((5, 6, 3), value, np.uint8))
    assert (np.asarray(Image.open(path)) == 200).all()
    assert [file.name for file in path.parent.iterdir()] == ["a.png"]
