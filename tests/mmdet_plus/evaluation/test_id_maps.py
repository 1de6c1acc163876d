"""PNGs of segment ids: every kind of picture, with and without the compiled reader."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import torch
from op_cases import WAYS, needs_compiled_ops, use_way
from panopticapi.utils import id2rgb
from PIL import Image, PngImagePlugin

from mmdet_plus.evaluation.id_maps import (
    encode_id_map,
    plain_scanlines,
    read_for_counting,
    read_id_map,
)
from mmplus_ops import _library, pair_areas
from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError

HEIGHT, WIDTH = 40, 53


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


@pytest.fixture(scope="module")
def ids():
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 2**24, (5, 6))
    return np.kron(blocks, np.ones((8, 9), int))[:HEIGHT, :WIDTH]


def picture_of(ids):
    return Image.fromarray(id2rgb(ids.copy()).astype(np.uint8))


def by_pillow(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, format=kind, **options)
    return file.getvalue()


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def in_parts(png):
    """The same PNG with its IDAT in many chunks, one of them empty."""
    at, parts = 8, [png[:8]]
    while at < len(png):
        length, name = struct.unpack_from(">I4s", png, at)
        data = png[at + 8 : at + 8 + length]
        cuts = range(0, length, 30) if name == b"IDAT" else [0]
        parts += [chunk(name, data[cut : cut + 30] if len(cuts) > 1 else data) for cut in cuts]
        parts += [chunk(name, b"")] if name == b"IDAT" else []
        at += 12 + length
    return b"".join(parts)


def plain_pngs(ids):
    """What the quick reader takes."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "IEND IDAT")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = picture_of(ids)
    return {
        "ours": encode_id_map(ids),
        "Pillow's": by_pillow(picture),
        "not compressed": by_pillow(picture, compress_level=0),
        "with a text": by_pillow(picture, pnginfo=info),
        # A tag of how the camera was held turns nothing.
        "with a camera's tag": by_pillow(picture, exif=exif),
        "one transparent colour": by_pillow(picture, transparency=(1, 2, 3)),
        "in parts": in_parts(by_pillow(picture)),
        "something after the end": encode_id_map(ids) + b"more",
    }


def other_pngs(ids):
    """What is left to OpenCV."""
    picture = picture_of(ids)
    return {
        "alpha": by_pillow(picture.convert("RGBA")),
        "palette": by_pillow(picture.quantize(256)),
        "no PNG": by_pillow(picture, kind="BMP"),
    }


def assert_same(map_, ids):
    """Pixel for pixel, whatever kind of map it is."""
    places = torch.arange(ids.size, dtype=torch.int32).view(ids.shape)
    pairs, _ = pair_areas(places, map_)
    assert pairs.tolist() == [[place, ident] for place, ident in enumerate(ids.flatten().tolist())]


def test_every_kind_of_picture(way, tmp_path, ids):
    assert len(np.unique(ids)) == 30
    for name, raw in {**plain_pngs(ids), **other_pngs(ids)}.items():
        path = tmp_path / f"{name}.png"
        path.write_bytes(raw)
        found = read_id_map(str(path), "image 1", (HEIGHT, WIDTH))
        assert found.dtype == np.int32, name
        np.testing.assert_array_equal(found, ids, err_msg=name)
        map_ = read_for_counting(str(path), "image 1", (HEIGHT, WIDTH))
        assert (map_.dtype is torch.uint8) == (way == "compiled" and name in plain_pngs(ids)), name
        assert_same(map_, ids)


@pytest.mark.parametrize("read", [read_id_map, read_for_counting])
def test_a_picture_without_colours_is_all_void(way, tmp_path, read):
    """As what makes PNGs small writes it."""
    cv2.imwrite(str(tmp_path / "void.png"), np.zeros((4, 5), np.uint8))
    np.testing.assert_array_equal(read(str(tmp_path / "void.png"), "x", (4, 5)), np.zeros((4, 5)))


@pytest.mark.parametrize("read", [read_id_map, read_for_counting])
@pytest.mark.parametrize("name", ["grey", "16 bits"])
def test_other_colours_are_refused(way, tmp_path, read, name):
    deep = name == "16 bits"
    picture = np.full((4, 5, 3), 7, np.uint16) if deep else np.full((4, 5), 7, np.uint8)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    with pytest.raises(AnnotationError, match=f"a.png is .* of {16 if deep else 8} bits; "):
        read(str(tmp_path / "a.png"), "image 1", (4, 5))


@pytest.mark.parametrize("read", [read_id_map, read_for_counting])
def test_another_size_is_refused(way, tmp_path, ids, read):
    (tmp_path / "a.png").write_bytes(encode_id_map(ids))
    expected = rf"image 1: .*a.png is \[{HEIGHT}, {WIDTH}\] .* the image is \[{WIDTH}, {HEIGHT}\]"
    with pytest.raises(AnnotationError, match=expected):
        read(str(tmp_path / "a.png"), "image 1", (WIDTH, HEIGHT))


@pytest.mark.parametrize("read", [read_id_map, read_for_counting])
def test_no_file(way, tmp_path, read):
    with pytest.raises(MissingDataError, match="image 1: its PNG .*a.png cannot be read .No such"):
        read(str(tmp_path / "a.png"), "image 1", (4, 5))


def test_pictures_that_are_cut_short(way, tmp_path, ids):
    whole = by_pillow(picture_of(ids))
    path = tmp_path / "a.png"
    for end in [*range(0, 60, 3), len(whole) // 2]:
        path.write_bytes(whole[:end])
        with pytest.raises(AnnotationError, match="image 1: .*a.png cannot be read as a picture"):
            read_for_counting(str(path), "image 1", (HEIGHT, WIDTH))


@needs_compiled_ops
def test_changed_bytes_are_noticed(ids):
    """Never ids that are not the picture's: such a file is left to OpenCV."""
    whole = encode_id_map(ids)
    assert plain_scanlines(whole, (HEIGHT, WIDTH)) is not None
    start = whole.index(b"IDAT") + 4
    for at in [*range(8), *range(12, 29), *range(start, len(whole) - 16)]:
        changed = bytearray(whole)
        changed[at] ^= 0x10
        assert plain_scanlines(bytes(changed), (HEIGHT, WIDTH)) is None, at


def test_data_that_is_no_picture(way, tmp_path, ids):
    """Too much, too little, nothing, or a filter that there is not."""
    whole = encode_id_map(ids)
    good = plain_scanlines(whole, (HEIGHT, WIDTH)).numpy().tobytes()
    wrong = bytearray(good)
    wrong[3 * (1 + 3 * WIDTH)] = 5
    path = tmp_path / "a.png"
    for lines in (good, b"", good[:-1], good[: len(good) // 2], good + b"0", bytes(wrong)):
        png = whole[:33] + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
        assert (plain_scanlines(png, (HEIGHT, WIDTH)) is not None) == (lines == good)
        path.write_bytes(png)
        try:
            found = read_for_counting(str(path), "image 1", (HEIGHT, WIDTH))
        except AnnotationError as error:
            assert "image 1: " in str(error) and "a.png cannot be read as a pict" in str(error)
        else:
            # Too much is no fault to OpenCV.
            assert lines in (good, good + b"0")
            assert_same(found, ids)


@pytest.mark.parametrize("size", [(HEIGHT, 2**33), (-HEIGHT, WIDTH), (0, 0)])
def test_sizes_that_cannot_be(way, tmp_path, ids, size):
    (tmp_path / "a.png").write_bytes(encode_id_map(ids))
    with pytest.raises(AnnotationError, match=rf"the image is \[{size[0]}, {size[1]}\]"):
        read_for_counting(str(tmp_path / "a.png"), "image 1", size)


def test_a_library_without_the_operator_leaves_pngs_to_opencv(tmp_path, ids, monkeypatch):
    """Built before there was one: the plain form reads scanlines pixel by pixel."""
    (tmp_path / "a.png").write_bytes(encode_id_map(ids))
    monkeypatch.setattr(_library, "LACKING", {"pair_areas"})
    found = read_for_counting(str(tmp_path / "a.png"), "image 1", (HEIGHT, WIDTH))
    assert found.dtype is torch.int32
    assert_same(found, ids)
