"""pair_areas against a count of all pixels, of scanlines against the PNG specification."""

import io
import struct
import zlib
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from op_cases import WAYS, layouts, needs_compiled_ops, use_way
from PIL import Image

from mmplus_ops import pair_areas
from mmplus_ops.id_maps import plain_pair_areas


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


def runs(rows, cols, seed, kinds=5, mean=9):
    """(H, W) int32: ids in runs of random lengths, some of them over the ends of rows."""
    rng = np.random.default_rng(seed)
    ids = rng.choice(2**24, kinds, replace=False).astype(np.int32)
    lengths = rng.geometric(1 / mean, rows * cols + 1)
    values = np.repeat(ids[rng.integers(0, kinds, len(lengths))], lengths)
    return torch.from_numpy(values[: rows * cols].reshape(rows, cols).copy())


# ---- pair_areas ----


def areas_by_pixel(first, second):
    pixels = zip(first.flatten().tolist(), second.flatten().tolist(), strict=True)
    return sorted(Counter(pixels).items())


def assert_areas(found, expected):
    pairs, areas = found
    assert pairs.dtype == areas.dtype == torch.int64 and pairs.shape == (len(expected), 2)
    pairs = [tuple(pair) for pair in pairs.tolist()]
    assert list(zip(pairs, areas.tolist(), strict=True)) == expected


@pytest.mark.parametrize("mean", [1, 4, 40, 400])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (17, 16), (23, 131)])
def test_areas_equal_a_count_of_pixels(way, shape, mean):
    first, second = runs(*shape, seed=mean, mean=mean), runs(*shape, seed=99, kinds=9)
    assert_areas(pair_areas(first, second), areas_by_pixel(first, second))


def test_areas_of_ids_at_the_ends_of_their_range(way):
    ends = [-(2**31), -1, 0, 1, 2**31 - 1]
    first = torch.tensor(ends, dtype=torch.int32)[:, None].expand(5, 5)
    expected = [((a, b), 1) for a in ends for b in ends]
    assert_areas(pair_areas(first, first.T), expected)


def test_areas_whatever_the_memory_layout(way):
    first, second = runs(13, 50, seed=1), runs(13, 50, seed=2)
    expected = areas_by_pixel(first, second)
    for name, other in layouts(first[None]).items():
        assert areas_by_pixel(other[0], second) == expected, name
        assert_areas(pair_areas(other[0], second), expected)
        assert_areas(pair_areas(second.new_tensor(second.tolist()), other[0]),
                     areas_by_pixel(second, first))  # fmt: skip


@pytest.mark.parametrize("shape", [(0, 0), (0, 7), (7, 0)])
def test_areas_of_nothing(way, shape):
    nothing = torch.zeros(shape, dtype=torch.int32)
    assert_areas(pair_areas(nothing, nothing), [])


@needs_compiled_ops
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(0, 9), st.integers(0, 90)),
    mean=st.integers(1, 60),
)
def test_compiled_areas_equal_plain(seed, shape, mean):
    maps = runs(*shape, seed=seed, mean=mean), runs(*shape, seed=seed + 1, mean=mean)
    for ours, plain in zip(pair_areas(*maps), plain_pair_areas(*maps), strict=True):
        assert torch.equal(ours, plain)


ZEROS, LINES = torch.zeros(3, 4, dtype=torch.int32), torch.zeros(3, 13, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("first", "second", "error", "text"),
    [
        (ZEROS.long(), ZEROS, TypeError, "first must be int32, or uint8 scanlines, got .*int64"),
        (ZEROS, ZEROS.float(), TypeError, "second must be int32, .*, got torch.float32"),
        (ZEROS, ZEROS.numpy(), TypeError, "second must be a tensor, got ndarray"),
        (ZEROS[0], ZEROS[0], ValueError, r"first must be \(H, W\), got shape \(4,\)"),
        (ZEROS, ZEROS.T, ValueError, r"of one size, not \(3, 4\) and \(4, 3\)"),
        (LINES, ZEROS.T, ValueError, r"of one size, not \(3, 4\) and \(4, 3\)"),
        (ZEROS, LINES[:, 1:], ValueError, r"second must be \(H, 1 \+ 3 W\) .*shape \(3, 12\)"),
        (LINES.flatten(), ZEROS, ValueError, r"first must be \(H, 1 \+ 3 W\) .*shape \(39,\)"),
        (ZEROS, ZEROS.to("meta"), TypeError, "second must be on cpu"),
    ],
)
def test_wrong_maps_are_named(way, first, second, error, text):
    with pytest.raises(error, match=text):
        pair_areas(first, second)


@needs_compiled_ops
def test_the_operator_itself_reads_no_further_than_the_maps():
    for other in (ZEROS[:2], ZEROS[:, :3], LINES[:2]):
        with pytest.raises(ValueError, match="maps of 3 x 4 and "):
            torch.ops.mmplus.pair_areas(ZEROS, other)


# ---- scanlines ----


def scanlines_of(png, height):
    packed, at = b"", 8
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        packed += png[at + 8 : at + 8 + length] if name == b"IDAT" else b""
        at += 12 + length
    return torch.frombuffer(bytearray(zlib.decompress(packed)), dtype=torch.uint8).view(height, -1)


def filtered(ids, kinds):
    """Scanlines of a map, one filter a row, by the PNG specification: value - prediction."""
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(int)
    padded = np.pad(rgb, ((1, 0), (1, 0), (0, 0)))
    left, above, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distance = np.abs(left + above - corner - np.stack([left, above, corner]))
    paeth = np.choose(distance.argmin(0), [left, above, corner])
    guesses = [np.zeros_like(rgb), left, above, (left + above) // 2, paeth]
    lines = [
        [kind, *((rgb[row] - guesses[kind][row]) % 256).flatten()] for row, kind in enumerate(kinds)
    ]
    return torch.tensor(np.array(lines), dtype=torch.uint8)


def assert_reads(scanlines, ids):
    """Every pixel has the right id: beside a map of other ids for all of them."""
    places = torch.arange(ids.numel(), dtype=torch.int32).view(ids.shape)
    pairs, areas = pair_areas(places, scanlines)
    assert torch.equal(pairs[:, 0], torch.arange(ids.numel())) and (areas == 1).all()
    assert torch.equal(pairs[:, 1].view(ids.shape), ids.long())
    # Runs that go on are counted as they are read.
    assert_areas(pair_areas(scanlines, ids), areas_by_pixel(ids, ids))


@pytest.mark.parametrize("kind", range(5))
@pytest.mark.parametrize("width", [1, 15, 16, 17, 33, 100])
@pytest.mark.parametrize("mean", [1, 5, 200])
def test_every_filter(way, kind, width, mean):
    """The first row has nothing above; blocks of 16 pixels within runs go a way of their own."""
    ids = runs(6, width, seed=width, mean=mean)
    assert_reads(filtered(ids.numpy(), [kind] * 6), ids)


@pytest.mark.parametrize("noise", [False, True])
def test_rows_of_different_filters(way, noise):
    ids = runs(40, 70, seed=5, mean=30)
    if noise:
        ids = torch.randint(0, 2**24, (40, 70), generator=torch.Generator().manual_seed(1)).int()
    kinds = np.random.default_rng(7).integers(0, 5, 40)
    assert_reads(filtered(ids.numpy(), kinds), ids)


def test_columns_that_run_down(way):
    """Paeth beside a run that begins above, and one that ends there."""
    ids = torch.full((30, 80), 77, dtype=torch.int32)
    ids[4:20, 16:48] = 0x30201
    ids[10:, 33:] = 0xFFFFFE
    assert_reads(filtered(ids.numpy(), [4] * 30), ids)


@needs_compiled_ops
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    height=st.integers(0, 5),
    width=st.integers(0, 60),
    zeros=st.sampled_from([0.0, 0.9, 0.995]),
)
def test_compiled_reading_equals_plain(seed, height, width, zeros):
    """Any bytes are some picture."""
    rng = np.random.default_rng(seed)
    maps = rng.integers(0, 256, (2, height, 1 + 3 * width))
    maps *= rng.random(maps.shape) >= zeros
    maps[..., 0] = rng.integers(0, 5, maps.shape[:2])
    maps = torch.from_numpy(maps.astype(np.uint8))
    for ours, plain in zip(pair_areas(*maps), plain_pair_areas(*maps), strict=True):
        assert torch.equal(ours, plain)


@pytest.mark.parametrize("strategy", [0, 1, 2, 3, 4])
def test_pictures_of_opencv_and_pillow(way, strategy):
    ids = runs(50, 60, seed=strategy, mean=25)
    rgb = np.stack([ids & 255, ids >> 8 & 255, ids >> 16 & 255], -1).astype(np.uint8)
    options = [cv2.IMWRITE_PNG_STRATEGY, strategy]
    by_opencv = cv2.imencode(".png", rgb[..., ::-1], options)[1].tobytes()
    by_pillow = io.BytesIO()
    Image.fromarray(rgb).save(by_pillow, format="PNG", compress_type=strategy)
    for png in (by_opencv, by_pillow.getvalue()):
        assert_reads(scanlines_of(png, 50), ids)


def test_scanlines_whatever_the_memory_layout(way):
    ids = runs(5, 20, seed=3)
    for other in layouts(filtered(ids.numpy(), [0, 1, 2, 3, 4])[None]).values():
        assert_reads(other[0], ids)


def test_a_filter_that_there_is_not(way):
    lines = LINES.clone()
    lines[1, 0] = 5
    with pytest.raises(ValueError, match="scanline 1 begins with 5, filters are 0 to 4"):
        pair_areas(lines, ZEROS)
