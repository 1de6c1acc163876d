"""Finding, cropping and putting back of boundary patches: slow references, both ways, odd inputs.

What the authors' code answers is in test_bpr_fixture.py.
"""

import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import WAYS, layouts, needs_compiled_ops, random_masks, use_way

from mmplus_ops import crop_patches, extract_boundary_patches, reassemble_patches
from mmplus_ops.boundary_patches import (
    SCHEMES,
    plain_crop_patches,
    plain_extract_boundary_patches,
    plain_reassemble_patches,
)


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


def some_masks(seed=0, n=3, rows=90, cols=150):
    return random_masks(n, rows, cols, torch.Generator().manual_seed(seed))


def support_by_opencv(mask):
    """min(s, 9 - s) for s mask pixels among the nine around each, zeros outside the image."""
    total = cv2.boxFilter(
        np.ascontiguousarray(mask, np.float32),
        -1,
        (3, 3),
        normalize=False,
        borderType=cv2.BORDER_CONSTANT,
    )
    return np.minimum(total, 9 - total).round().astype(int)


def covered(boxes, shape):
    cover = np.zeros(shape, bool)
    for x1, y1, x2, y2 in boxes.tolist():
        cover[y1:y2, x1:x2] = True
    return cover


# ---- extract_boundary_patches ----


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("size", [1, 8, 33, 64])
def test_patches_lie_inside_and_hold_a_boundary(way, scheme, size):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, size, 0.25, scheme)
    assert boxes.dtype == index.dtype == torch.int64 and len(boxes) == len(index) > 0
    assert torch.equal(index, index.sort().values)
    assert set(index.tolist()) == {0, 1, 2}
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2] <= 150).all() and (boxes[:, 3] <= 90).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert scheme == "instance" or (sides == size).all()
    for box, n in zip(boxes.tolist(), index.tolist(), strict=True):
        x1, y1, x2, y2 = box
        assert support_by_opencv(masks[n])[y1:y2, x1:x2].max() > 0


@pytest.mark.parametrize("iou_thr", [0.0, 0.15, 0.25, 0.55, 0.9])
@pytest.mark.parametrize("size", [5, 16])
def test_dense_patches_do_not_overlap_beyond_the_threshold(way, iou_thr, size):
    """Far from the image's border, where none is moved."""
    masks = F.pad(some_masks(rows=60, cols=80), (20, 20, 20, 20))
    boxes, index = extract_boundary_patches(masks, size, iou_thr)
    for n in range(3):
        corner = boxes[index == n, :2]
        gap = (size - (corner[:, None] - corner[None]).abs()).clamp(min=0)
        shared = (gap[..., 0] * gap[..., 1]).double()
        iou = shared / (2 * size * size - shared)
        iou.fill_diagonal_(0)
        assert iou.max() <= iou_thr + 1e-9
        # And no boundary pixel could be the centre of one more.
        centre = torch.from_numpy(np.argwhere(support_by_opencv(masks[n]) > 0))[:, [1, 0]]
        gap = (size - (centre[:, None] - size // 2 - corner[None]).abs()).clamp(min=0)
        shared = (gap[..., 0] * gap[..., 1]).double()
        assert ((shared / (2 * size * size - shared)).amax(1) > iou_thr).all()


@pytest.mark.parametrize("size", [7, 16, 100])
def test_grid_takes_the_squares_with_a_boundary(way, size):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, size, 0.25, "grid")
    expected = []
    for n in range(3):
        support = support_by_opencv(masks[n])
        for y in range(0, 90, size):
            for x in range(0, 150, size):
                if support[y : y + size, x : x + size].any():
                    x1, y1 = max(0, min(x, 150 - size)), max(0, min(y, 90 - size))
                    expected.append((n, x1, y1, min(150, x1 + size), min(90, y1 + size)))
    assert torch.cat([index[:, None], boxes], 1).tolist() == [list(row) for row in expected]


def test_instance_is_the_box_around_the_mask(way):
    masks = some_masks()
    masks[1] = False
    boxes, index = extract_boundary_patches(masks, 64, 0.25, "instance")
    for box, n in zip(boxes.tolist(), index.tolist(), strict=True):
        x, y, wide, tall = cv2.boundingRect(masks[n].numpy().astype(np.uint8))
        assert box == [x, y, x + wide, y + tall]
    assert index.tolist() == [0, 2]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1), (10, 10), (20, 90), (63, 64)])
def test_images_smaller_than_a_patch(way, scheme, shape):
    mask = torch.zeros(1, *shape, dtype=torch.bool)
    mask[:, : (shape[0] + 1) // 2] = True
    boxes, _ = extract_boundary_patches(mask, 64, 0.25, scheme)
    assert len(boxes) >= 1
    tall, wide = min(64, shape[0]), min(64, shape[1])
    if scheme != "instance":
        assert (boxes[:, 2:] - boxes[:, :2]).unique(dim=0).tolist() == [[wide, tall]]
        assert (boxes[:, 2] <= shape[1]).all() and (boxes[:, 3] <= shape[0]).all()
    # A side of any length: nothing of that size is ever allocated.
    if scheme != "instance":
        boxes, _ = extract_boundary_patches(mask, 2**31 - 1, 0.25, scheme)
        assert boxes.tolist() == [[0, 0, shape[1], shape[0]]]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(0, 20, 30), (2, 0, 30), (2, 20, 0), (2, 20, 30)])
@pytest.mark.parametrize("budget", [None, 3])
def test_nothing_to_cover(way, scheme, shape, budget):
    boxes, index = extract_boundary_patches(
        torch.zeros(shape, dtype=torch.bool), 8, 0.25, scheme, budget, torch.rand(shape)
    )
    assert boxes.shape == (0, 4) and index.shape == (0,) and boxes.dtype == torch.int64


def test_a_mask_that_fills_the_image_has_its_rim_as_boundary(way):
    boxes, _ = extract_boundary_patches(torch.ones(1, 64, 64, dtype=torch.bool), 16, 0.25)
    cover = covered(boxes, (64, 64))
    rim = np.concatenate([cover[0], cover[-1], cover[:, 0], cover[:, -1]])
    assert rim.mean() > 0.9 and not cover[17:47, 17:47].any()


@pytest.mark.parametrize("foreground", [1, 2, 128, 255])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_bytes_other_than_0_are_foreground(way, scheme, foreground):
    """Whichever: masks of 255 are as usual as masks of 1."""
    masks = some_masks(cols=200)
    expected = extract_boundary_patches(masks, 16, 0.25, scheme)
    ours = extract_boundary_patches(masks.byte() * foreground, 16, 0.25, scheme)
    assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
    mixed = torch.randint(1, 256, masks.shape, generator=torch.Generator().manual_seed(0))
    ours = extract_boundary_patches((masks * mixed).byte(), 16, 0.25, scheme)
    assert torch.equal(ours[0], expected[0])


@pytest.mark.parametrize("cols", [1, 2, 31, 63, 64, 65, 127, 128, 129])
def test_dense_with_threshold_1_finds_every_boundary_pixel(way, cols):
    """Widths around those of a word: boxes of one pixel are the boundary itself."""
    masks = random_masks(2, 9, cols, torch.Generator().manual_seed(cols), blobs=2)
    masks[1, :, cols - 1] = True
    boxes, index = extract_boundary_patches(masks, 1, 1.0)
    for n in range(2):
        cover = covered(boxes[index == n], (9, cols))
        assert np.array_equal(cover, support_by_opencv(masks[n]) > 0)


def test_budget_without_uncertainty_keeps_the_highest_scores_over_all_masks(way):
    # Away from the image's border, where boxes are moved off their centres.
    masks = F.pad(some_masks(), (8, 8, 8, 8))
    boxes, index = extract_boundary_patches(masks, 8, 0.25)
    scores = [
        support_by_opencv(masks[n])[y1 + 4, x1 + 4]
        for (x1, y1, _, _), n in zip(boxes.tolist(), index.tolist(), strict=True)
    ]
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    assert len(set(scores)) > 1
    for budget in (0, 1, 5, len(boxes) - 1, len(boxes), 10**6):
        kept = sorted(order[:budget])
        ours = extract_boundary_patches(masks, 8, 0.25, max_patches=budget)
        assert torch.equal(ours[0], boxes[kept]) and torch.equal(ours[1], index[kept])


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_budget_with_uncertainty_keeps_the_most_uncertain(way, scheme, dtype):
    masks = some_masks(n=6)
    doubt = torch.rand(masks.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    boxes, index = extract_boundary_patches(masks, 16, 0.25, scheme)
    means = []
    for (x1, y1, x2, y2), n in zip(boxes.tolist(), index.tolist(), strict=True):
        boundary = support_by_opencv(masks[n])[y1:y2, x1:x2] > 0
        means.append(doubt[n, y1:y2, x1:x2].double().numpy()[boundary].mean())
    for budget in (1, 3, len(boxes) // 2):
        kept = sorted(np.argsort(-np.array(means), kind="stable")[:budget].tolist())
        ours = extract_boundary_patches(masks, 16, 0.25, scheme, budget, doubt)
        assert torch.equal(ours[0], boxes[kept]) and torch.equal(ours[1], index[kept])


def test_among_equally_uncertain_patches_the_first_stay(way):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16)
    ours = extract_boundary_patches(
        masks, 16, max_patches=5, uncertainty=torch.full(masks.shape, 0.5)
    )
    assert torch.equal(ours[0], boxes[:5]) and torch.equal(ours[1], index[:5])


def test_uncertainty_of_nan_counts_most(way):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16)
    doubt = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    doubt[1] = math.nan
    of_second = int((index == 1).sum())
    for budget in (of_second // 2, of_second, of_second + 2):
        kept = extract_boundary_patches(masks, 16, max_patches=budget, uncertainty=doubt)[1]
        assert int((kept == 1).sum()) == min(budget, of_second) and len(kept) == budget
    # As much as infinity: of the two the first stays.
    doubt[0] = math.inf
    kept = extract_boundary_patches(masks, 16, max_patches=4, uncertainty=doubt)[1]
    assert kept.tolist() == [0] * 4


def test_uncertainty_is_read_in_float32(way):
    """Where two differ by less, the first stays; so says the compiled form, so says the plain."""
    masks = some_masks()
    doubt = 0.5 + 1e-10 * torch.arange(3.0, dtype=torch.float64)[:, None, None].expand(3, 90, 150)
    kept = extract_boundary_patches(masks, 16, max_patches=4, uncertainty=doubt)[1]
    assert kept.tolist() == [0] * 4


@needs_compiled_ops
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 140)),
    size=st.integers(1, 50),
    iou_thr=st.floats(0, 1),
    scheme=st.sampled_from(SCHEMES),
    budget=st.none() | st.integers(0, 20),
    ranked=st.booleans(),
)
def test_compiled_patches_equal_plain(seed, shape, size, iou_thr, scheme, budget, ranked):
    generator = torch.Generator().manual_seed(seed)
    masks = random_masks(*shape, generator, blobs=2)
    # Of few values, so that many patches are equal.
    doubt = torch.randint(0, 3, shape, generator=generator) / 4 if ranked else None
    arguments = (masks, size, iou_thr, scheme, budget, doubt)
    ours, plain = extract_boundary_patches(*arguments), plain_extract_boundary_patches(*arguments)
    assert torch.equal(ours[0], plain[0]) and torch.equal(ours[1], plain[1])


@needs_compiled_ops
def test_patches_are_the_same_on_every_number_of_threads():
    masks = some_masks(n=7)
    doubt = torch.rand(masks.shape, generator=torch.Generator().manual_seed(0))
    before = torch.get_num_threads()
    try:
        answers = []
        for threads in (1, 2, 1, 3):
            torch.set_num_threads(threads)
            boxes, index = extract_boundary_patches(masks, 16, 0.25, "dense", 40, doubt)
            patches = torch.rand(len(boxes), 20, 20, generator=torch.Generator().manual_seed(1))
            refined = reassemble_patches(masks, boxes, index, patches, 0.5, 2)
            image = torch.arange(90 * 150 * 3).view(90, 150, 3).byte()
            crops = crop_patches(image, masks, boxes, index, 24, 2)
            answers.append((boxes, index, refined, *crops))
    finally:
        torch.set_num_threads(before)
    for answer in answers[1:]:
        assert all(torch.equal(a, b) for a, b in zip(answer, answers[0], strict=True))


def test_masks_in_any_memory_layout(way):
    masks = some_masks()
    expected = extract_boundary_patches(masks, 16)
    for name, other in layouts(masks).items():
        ours = extract_boundary_patches(other, 16)
        assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1]), name
    wide = masks[:1].expand(4, -1, -1)
    boxes, index = extract_boundary_patches(wide, 16)
    assert torch.equal(boxes, expected[0][expected[1] == 0].repeat(4, 1))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (dict(masks=torch.zeros(2, 9, 9)), TypeError, "masks must be bool or uint8"),
        (dict(masks=torch.zeros(9, 9).bool()), ValueError, r"masks must be \(N, H, W\)"),
        (dict(masks=np.zeros((1, 9, 9), bool)), TypeError, "masks must be a tensor"),
        (dict(patch_size=0), ValueError, "patch_size must be a whole number of at least 1, got 0"),
        (dict(patch_size=8.0), ValueError, "patch_size must be"),
        (dict(patch_size=True), ValueError, "patch_size must be"),
        (dict(patch_size=2**31), ValueError, "patch_size must be below 2.31"),
        (dict(iou_thr=-0.1), ValueError, r"iou_thr must lie in \[0, 1\], got -0.1"),
        (dict(iou_thr=math.nan), ValueError, r"iou_thr must lie in \[0, 1\], got nan"),
        (dict(scheme="sparse"), ValueError, "scheme must be one of dense, grid, instance"),
        (dict(max_patches=-1), ValueError, "max_patches must be"),
        (dict(max_patches=2.5), ValueError, "max_patches must be"),
        (dict(uncertainty=torch.zeros(2, 9, 8)), ValueError, r"uncertainty must be \(2, 9, 9\)"),
        (dict(uncertainty=torch.zeros(2, 9, 9).int()), TypeError, "uncertainty must be floating"),
        (dict(uncertainty=torch.zeros(2, 9, 9, device="meta")), TypeError, "must be on cpu"),
    ],
)
def test_wrong_arguments_of_extraction_are_named(way, change, error, text):
    arguments = dict(masks=torch.ones(2, 9, 9, dtype=torch.bool))
    with pytest.raises(error, match=text):
        extract_boundary_patches(**(arguments | change))


# ---- crop_patches ----


def crop_case(seed=0, padding=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (90, 150, 3), generator=generator, dtype=torch.uint8)
    masks = some_masks(seed)
    boxes, index = extract_boundary_patches(masks, 16)
    more = torch.tensor([[0, 0, 150, 90], [3, 5, 4, 6], [149, 0, 150, 90], [0, 80, 100, 90]])
    return image, masks, torch.cat([boxes, more]), torch.cat([index, torch.tensor([0, 1, 2, 1])])


def cropped_by_opencv(image, masks, boxes, index, size, padding):
    """cv2.resize has pixel centres at halves too, and repeats the border of what it is given."""
    pixels = np.pad(image.numpy().astype(np.float32), ((padding,) * 2, (padding,) * 2, (0, 0)))
    planes = np.pad(masks.numpy(), ((0, 0), (padding,) * 2, (padding,) * 2))
    images, crops = [], []
    for (x1, y1, x2, y2), n in zip(boxes.tolist(), index.tolist(), strict=True):
        part = (slice(y1, y2 + 2 * padding), slice(x1, x2 + 2 * padding))
        resized = cv2.resize(pixels[part], (size, size), interpolation=cv2.INTER_LINEAR)
        images.append(torch.from_numpy(resized).permute(2, 0, 1))
        mask = torch.from_numpy(planes[n][part]).float()[None, None]
        crops.append(F.interpolate(mask, (size, size))[0])
    return torch.stack(images), torch.stack(crops)


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("size", [1, 16, 24, 37])
def test_crops_equal_opencv(way, size, padding):
    case = crop_case()
    images, crops = crop_patches(*case, size, padding)
    expected = cropped_by_opencv(*case, size, padding)
    torch.testing.assert_close(images, expected[0], rtol=0, atol=1e-2)
    assert torch.equal(crops, expected[1])
    assert images.shape == (len(case[2]), 3, size, size) and crops.shape[1] == 1
    assert images.is_contiguous() and crops.is_contiguous()


def test_crops_of_their_own_size_are_the_pixels(way):
    image, masks, boxes, index = crop_case()
    images, crops = crop_patches(image, masks, boxes[:-4], index[:-4], 16)
    for i, (x1, y1, x2, y2) in enumerate(boxes[:-4].tolist()):
        assert torch.equal(images[i], image[y1:y2, x1:x2].permute(2, 0, 1).float())
        assert torch.equal(crops[i, 0], masks[index[i], y1:y2, x1:x2].float())


def test_padding_is_black_outside_the_image(way):
    image = torch.full((10, 12, 3), 200, dtype=torch.uint8)
    masks = torch.full((1, 10, 12), 255, dtype=torch.uint8)
    boxes, index = torch.tensor([[0, 0, 6, 6]]), torch.tensor([0])
    images, crops = crop_patches(image, masks, boxes, index, 10, 2)
    expected = torch.zeros(10, 10)
    expected[2:, 2:] = 1
    assert torch.equal(crops[0, 0], expected)
    assert torch.equal(images[0], 200 * expected.expand(3, -1, -1))


@needs_compiled_ops
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    count=st.integers(0, 6),
    size=st.integers(1, 40),
    padding=st.integers(0, 9),
)
def test_compiled_crops_and_reassembly_equal_plain(seed, shape, count, size, padding):
    generator = torch.Generator().manual_seed(seed)
    rows, cols = shape
    image = torch.randint(0, 256, (rows, cols, 3), generator=generator, dtype=torch.uint8)
    masks = torch.rand(3, rows, cols, generator=generator) < 0.5
    corner = (torch.rand(count, 2, generator=generator) * torch.tensor([cols, rows])).long()
    room = torch.tensor([cols, rows]) - corner
    boxes = torch.cat(
        [corner, corner + 1 + (torch.rand(count, 2, generator=generator) * room).long()], 1
    )
    boxes = torch.minimum(boxes, torch.tensor([cols, rows, cols, rows]))
    index = torch.randint(0, 3, (count,), generator=generator)
    arguments = (image, masks, boxes, index, size, padding)
    ours, plain = crop_patches(*arguments), plain_crop_patches(*arguments)
    torch.testing.assert_close(ours[0], plain[0], rtol=0, atol=1e-3)
    assert torch.equal(ours[1], plain[1])
    patches = torch.rand(count, size, size, generator=generator)
    arguments = (masks, boxes, index, patches, 0.5, padding)
    ours, plain = reassemble_patches(*arguments), plain_reassemble_patches(*arguments)
    # A mean can lie within rounding of the threshold, once in a million.
    assert (ours != plain).sum() <= 1


@pytest.mark.parametrize("foreground", [1, 2, 255])
def test_crops_of_byte_masks_hold_0_and_1(way, foreground):
    image, masks, boxes, index = crop_case()
    expected = crop_patches(image, masks, boxes, index, 20)[1]
    ours = crop_patches(image, masks.byte() * foreground, boxes, index, 20)[1]
    assert torch.equal(ours, expected) and set(ours.unique().tolist()) == {0.0, 1.0}


def test_no_patch(way):
    image, masks, boxes, index = crop_case()
    images, crops = crop_patches(image, masks, boxes[:0], index[:0], 8)
    assert images.shape == (0, 3, 8, 8) and crops.shape == (0, 1, 8, 8)
    for none in (torch.zeros(0, 8, 8), torch.zeros(0, 0, 0)):
        assert torch.equal(reassemble_patches(masks, boxes[:0], index[:0], none), masks)
    empty = masks[:0]
    assert reassemble_patches(empty, boxes[:0], index[:0], torch.zeros(0, 8, 8)).shape == (
        0,
        90,
        150,
    )


def test_crops_in_any_memory_layout(way):
    image, masks, boxes, index = crop_case()
    expected = crop_patches(image, masks, boxes, index, 20, 3)
    turned = image.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    strided = torch.stack([index, index], 1)[:, 0]
    for other_image in (turned, torch.cat([image, image], 2)[..., :3]):
        for other_masks in layouts(masks).values():
            for other_boxes in layouts(boxes).values():
                ours = crop_patches(other_image, other_masks, other_boxes, strided, 20, 3)
                assert torch.equal(ours[0], expected[0]) and torch.equal(ours[1], expected[1])
                assert ours[0].is_contiguous() and ours[1].is_contiguous()


WRONG_PLACES = [
    (dict(boxes=torch.zeros(2, 5).long()), ValueError, r"boxes must be \(P, 4\)"),
    (dict(boxes=torch.zeros(4).long()), ValueError, r"boxes must be \(P, 4\)"),
    (dict(boxes=[[0, 0, 4, 4]]), TypeError, "boxes must be a tensor, got list"),
    (dict(boxes=torch.ones(2, 4)), TypeError, "boxes must be int64, got torch.float32"),
    (dict(boxes=torch.tensor([[0, 0, 4, 4], [0, 0, 10, 4]])), ValueError, r"9 x 9.*in row 1"),
    (dict(boxes=torch.tensor([[0, -1, 4, 4], [0, 0, 4, 4]])), ValueError, "in row 0"),
    (dict(boxes=torch.tensor([[0, 0, 4, 4], [3, 0, 3, 4]])), ValueError, "non-empty.*in row 1"),
    (dict(mask_index=torch.tensor([0, 2])), ValueError, r"mask_index must lie in \[0, 2\), got 2"),
    (dict(mask_index=torch.tensor([0, -1])), ValueError, "mask_index must lie in"),
    (dict(mask_index=torch.tensor([0])), ValueError, r"mask_index must be \(2,\)"),
    (dict(mask_index=torch.tensor([0, 1]).int()), TypeError, "mask_index must be int64"),
    (dict(mask_index=torch.tensor([0, 1]).to("meta")), TypeError, "mask_index must be on cpu"),
    (dict(masks=torch.zeros(2, 9, 9)), TypeError, "masks must be bool or uint8"),
    (dict(padding=-1), ValueError, "padding must be a whole number of at least 0"),
]
PLACES = dict(
    masks=torch.ones(2, 9, 9, dtype=torch.bool),
    boxes=torch.tensor([[0, 0, 4, 4], [1, 1, 9, 9]]),
    mask_index=torch.tensor([0, 1]),
)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        *WRONG_PLACES,
        (dict(image=torch.zeros(9, 9, 3)), TypeError, "image must be uint8"),
        (dict(image=torch.zeros(3, 9, 9).byte()), ValueError, r"image must be \(H, W, 3\)"),
        (dict(masks=torch.ones(2, 9, 8).bool()), ValueError, r"masks must be \(N, 9, 9\) like"),
        (dict(output_size=0), ValueError, "output_size must be"),
    ],
)
def test_wrong_arguments_of_cropping_are_named(way, change, error, text):
    arguments = PLACES | dict(image=torch.zeros(9, 9, 3, dtype=torch.uint8), output_size=8)
    with pytest.raises(error, match=text):
        crop_patches(**(arguments | change))


# ---- reassemble_patches ----


def reassembled_by_loop(masks, boxes, index, patches, threshold=0.5):
    """Float maps of the size of the image, one for each mask."""
    refined = []
    for n, mask in enumerate(masks.numpy()):
        total, count = np.zeros(mask.shape, np.float32), np.zeros(mask.shape, np.float32)
        for p in np.flatnonzero(index.numpy() == n):
            x1, y1, x2, y2 = boxes[p].tolist()
            total[y1:y2, x1:x2] += patches[p].numpy()
            count[y1:y2, x1:x2] += 1
        mean = total / np.maximum(count, 1)
        refined.append(np.where(count > 0, mean > np.float32(threshold), mask))
    return torch.from_numpy(np.stack(refined))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_reassembly_equals_a_loop(way, threshold):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16, 0.5)
    mixed = torch.randperm(len(boxes), generator=torch.Generator().manual_seed(0))
    boxes, index = boxes[mixed], index[mixed]
    patches = torch.rand(len(boxes), 16, 16, generator=torch.Generator().manual_seed(1))
    ours = reassemble_patches(masks, boxes, index, patches, threshold)
    assert ours.dtype == torch.bool
    assert torch.equal(ours, reassembled_by_loop(masks, boxes, index, patches, threshold))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_patches_of_other_types_are_summed_in_float32(way, dtype):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16, 0.5)
    patches = torch.rand(len(boxes), 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = reassemble_patches(masks, boxes, index, patches)
    assert torch.equal(ours, reassembled_by_loop(masks, boxes, index, patches.float()))


@pytest.mark.parametrize("padding", [0, 3])
def test_patches_of_another_size_are_resized_then_trimmed(way, padding):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16, 0.5)
    patches = torch.rand(len(boxes), 24, 40, generator=torch.Generator().manual_seed(2))
    full = F.interpolate(patches[:, None], (16 + 2 * padding,) * 2, mode="bilinear")[:, 0]
    trimmed = full[:, padding : 16 + padding, padding : 16 + padding]
    ours = reassemble_patches(masks, boxes, index, patches, 0.5, padding)
    expected = reassembled_by_loop(masks, boxes, index, trimmed)
    assert (ours != expected).sum() <= 1 and (ours != masks).any()


def test_what_was_cropped_goes_back_where_it_was(way):
    """The coarse mask's own crops change nothing, padded or not."""
    image, masks, boxes, index = crop_case()
    for padding in (0, 4):
        size = 16 + 2 * padding
        crops = crop_patches(image, masks, boxes[:-4], index[:-4], size, padding)[1][:, 0]
        assert torch.equal(
            reassemble_patches(masks, boxes[:-4], index[:-4], crops, 0.5, padding), masks
        )


@pytest.mark.parametrize("foreground", [1, 2, 255])
def test_reassembly_of_byte_masks_is_bool(way, foreground):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16)
    patches = torch.rand(len(boxes), 16, 16, generator=torch.Generator().manual_seed(1))
    expected = reassemble_patches(masks, boxes, index, patches)
    coarse = masks.byte() * foreground
    before = coarse.clone()
    ours = reassemble_patches(coarse, boxes, index, patches)
    assert ours.dtype == torch.bool and torch.equal(ours, expected) and torch.equal(coarse, before)
    assert torch.equal(ours.view(torch.uint8), expected.to(torch.uint8))


def test_reassembly_in_any_memory_layout(way):
    masks = some_masks()
    boxes, index = extract_boundary_patches(masks, 16)
    patches = torch.rand(len(boxes), 16, 16, generator=torch.Generator().manual_seed(1))
    expected = reassemble_patches(masks, boxes, index, patches)
    for other in layouts(masks).values():
        ours = reassemble_patches(other, boxes, index, patches)
        assert torch.equal(ours, expected) and ours.is_contiguous()
    for other in layouts(patches).values():
        assert torch.equal(reassemble_patches(masks, boxes, index, other), expected)
    for other in layouts(boxes).values():
        assert torch.equal(reassemble_patches(masks, other, index, patches), expected)
    wide = masks[:1].expand(3, -1, -1)
    assert torch.equal(
        reassemble_patches(wide, boxes, index, patches),
        reassemble_patches(wide.contiguous(), boxes, index, patches),
    )


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        *WRONG_PLACES,
        (dict(patches=torch.zeros(3, 4, 4)), ValueError, r"patches must be \(2, h, w\)"),
        (dict(patches=torch.zeros(2, 1, 4, 4)), ValueError, r"patches must be \(2, h, w\)"),
        (dict(patches=torch.zeros(2, 4, 0)), ValueError, "patches must have pixels"),
        (dict(patches=torch.zeros(2, 4, 4).bool()), TypeError, "patches must be floating point"),
        (dict(patches=torch.zeros(2, 4, 4, device="meta")), TypeError, "patches must be on cpu"),
    ],
)
def test_wrong_arguments_of_reassembly_are_named(way, change, error, text):
    arguments = PLACES | dict(patches=torch.zeros(2, 4, 4))
    with pytest.raises(error, match=text):
        reassemble_patches(**(arguments | change))


@needs_compiled_ops
def test_a_compiled_graph_looks_at_places_too():
    """There the checks in Python are left out; memory of somebody else must stay untouched."""
    image, masks = torch.zeros(9, 9, 3, dtype=torch.uint8), PLACES["masks"]
    for change, _, text in WRONG_PLACES[4:9]:
        boxes, index = (PLACES | change)["boxes"], (PLACES | change)["mask_index"]
        with pytest.raises(ValueError, match=text):
            torch.ops.mmplus.crop_patches(image, masks, boxes, index, 8, 0)
        with pytest.raises(ValueError, match=text):
            torch.ops.mmplus.reassemble_patches(masks, boxes, index, torch.zeros(2, 4, 4), 0.5, 0)
