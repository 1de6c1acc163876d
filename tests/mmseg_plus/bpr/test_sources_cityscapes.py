"""Instances of Cityscapes' files."""

import pickle
import shutil

import cv2
import numpy as np
import pytest
import tiny_results
from PIL import Image
from tiny_results import CITY_NAMES, COUNTS, SIZES

from mmseg_plus.bpr.sources import CityscapesGroundTruth, CityscapesResults
from mmseg_plus.common.errors import UserError


@pytest.fixture
def masks(tmp_path):
    return tiny_results.write_cityscapes(tmp_path)


def results(root, **kwargs):
    return CityscapesResults(root / "coarse", root / "images", **kwargs)


def first_file(root):
    return root / "coarse" / "ulm_000000_000019_leftImg8bit_pred.txt"


def test_results_come_by_image(tmp_path, masks):
    source = results(tmp_path)
    assert len(source) == len(SIZES)
    for index, item in enumerate(source):
        assert source.count(index) == COUNTS[index]
        assert item.image_id == source.image_id(index) == f"ulm_{index:06d}_000019"
        assert item.image_path == str(tmp_path / "images" / CITY_NAMES[index])
        assert (item.height, item.width) == SIZES[index]
        assert item.masks.dtype == bool and np.array_equal(item.masks, masks[index])
        assert item.labels.tolist() == [24 + number for number in range(COUNTS[index])]
        assert item.scores == pytest.approx([0.95 - 0.1 * n for n in range(COUNTS[index])])
        assert list(item.records) == list(range(COUNTS[index]))
    again = pickle.loads(pickle.dumps(source))
    assert np.array_equal(again[0].masks, source[0].masks)


def test_images_in_one_folder_of_any_ending(tmp_path, masks):
    flat = tmp_path / "flat"
    flat.mkdir()
    for name in CITY_NAMES:
        picture = cv2.imread(str(tmp_path / "images" / name))
        stem = name.split("/")[1].removesuffix("_leftImg8bit.png")
        cv2.imwrite(str(flat / f"{stem}.jpg"), picture)
    item = CityscapesResults(tmp_path / "coarse", flat)[1]
    assert item.image_path == str(flat / "ulm_000001_000019.jpg")


def test_results_in_folders_of_their_own(tmp_path, masks):
    deep = tmp_path / "deep" / "ulm"
    shutil.copytree(tmp_path / "coarse", deep)
    (tmp_path / "deep" / "shared").mkdir()
    (deep / "masks" / "ulm_000001_000019_leftImg8bit_0.png").rename(
        tmp_path / "deep" / "shared" / "mask of 1.png"
    )
    # Out of the file's folder, but not of the results'; and with blanks.
    (deep / "ulm_000001_000019_leftImg8bit_pred.txt").write_text("../shared/mask of 1.png 26 0.5\n")
    source = CityscapesResults(tmp_path / "deep", tmp_path / "images")
    assert np.array_equal(source[1].masks, masks[1]) and source[1].labels.tolist() == [26]
    assert np.array_equal(source[0].masks, masks[0])
    source.write(tmp_path / "out", lambda index: {})
    assert np.array_equal(
        CityscapesResults(tmp_path / "out", tmp_path / "images")[1].masks, masks[1]
    )


def test_palettes_and_single_bits(tmp_path, masks):
    path = tmp_path / "coarse" / "masks" / "ulm_000001_000019_leftImg8bit_0.png"
    picture = Image.fromarray(masks[1][0].astype(np.uint8), "P")
    # Colour 1 is black too.
    picture.putpalette([0] * 768)
    picture.save(path)
    assert np.array_equal(results(tmp_path)[1].masks, masks[1])
    Image.fromarray(masks[1][0]).save(path)
    assert np.array_equal(results(tmp_path)[1].masks, masks[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("only.png 24", r"line 3: 'only.png 24' is not `mask.png labelID score`"),
        ("../../x.png 24 0.5", r"line 3: the mask '../../x.png' leaves the folder of results"),
        ("/etc/x.png 24 0.5", "line 3: the mask '/etc/x.png' leaves the folder"),
        ("masks/x.tif 24 0.5", "line 3: the mask 'masks/x.tif' is no PNG"),
        ("masks/x.png car 0.5", "line 3: the label id 'car' is not a whole number"),
        ("masks/x.png 24.5 0.5", "line 3: the label id '24.5'"),
        ("masks/x.png 24 high", "line 3: the score 'high' is not a finite number"),
        ("masks/x.png 24 nan", "line 3: the score 'nan'"),
        ("masks/x.png 24 0.5", "_pred.txt: its mask masks/x.png does not exist"),
        (
            "masks/ulm_000003_000019_leftImg8bit_0.png 24 0.5",
            "is listed twice, before in ulm_000000",
        ),
    ],
)
def test_a_bad_line_is_named(tmp_path, masks, line, message):
    lines = first_file(tmp_path).read_text().splitlines()
    first_file(tmp_path).write_text("\n".join([lines[0], "", line]))
    with pytest.raises(UserError, match=message):
        results(tmp_path)


def test_bad_masks_are_named(tmp_path, masks):
    source = results(tmp_path)
    path = tmp_path / "coarse" / "masks" / "ulm_000000_000019_leftImg8bit_1.png"
    cv2.imwrite(str(path), np.zeros((9, 9), np.uint8))
    with pytest.raises(UserError, match=r"leftImg8bit_1.png is \[9, 9\].*first one is \[40, 56\]"):
        source[0]
    cv2.imwrite(str(path), np.zeros((40, 56, 3), np.uint8))
    with pytest.raises(UserError, match="leftImg8bit_1.png: has 3 channels"):
        source[0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="leftImg8bit_1.png: cannot be read as a mask"):
        source[0]


def test_missing_files_and_folders(tmp_path, masks):
    with pytest.raises(UserError, match="absent: there is no such folder"):
        CityscapesResults(tmp_path / "absent", tmp_path / "images")
    with pytest.raises(UserError, match=r"images: holds no file \*_pred.txt"):
        CityscapesResults(tmp_path / "images", tmp_path / "images")
    with pytest.raises(UserError, match="absent: there is no such folder of images"):
        CityscapesResults(tmp_path / "coarse", tmp_path / "absent")
    # The third image has no instances, so that nothing is read of it.
    (tmp_path / "images" / CITY_NAMES[2]).unlink()
    source = results(tmp_path)
    with pytest.raises(UserError, match="image 'ulm_000002_000019': .* is missing or cannot"):
        source[2]
    (tmp_path / "images" / CITY_NAMES[3]).unlink()
    with pytest.raises(UserError, match="image 'ulm_000003_000019': no image file under"):
        results(tmp_path)
    assert results(tmp_path, check_files=False).count(3) == COUNTS[3]


def test_two_files_of_one_image(tmp_path, masks):
    shutil.copy(first_file(tmp_path), tmp_path / "coarse" / "ulm_000000_000019_pred.txt")
    with pytest.raises(UserError, match="are of the same image"):
        results(tmp_path)


def test_written_results_differ_in_the_changed_masks_alone(tmp_path, masks):
    source = results(tmp_path)
    new = np.zeros(SIZES[3], bool)
    new[4:10, 6:20] = True
    counts = tiny_results.rle(new)["counts"]
    source.write(tmp_path / "out", lambda index: {2: counts} if index == 3 else {})
    names = {path.relative_to(tmp_path / "coarse") for path in (tmp_path / "coarse").rglob("*")}
    assert {path.relative_to(tmp_path / "out") for path in (tmp_path / "out").rglob("*")} == names
    changed = []
    for name in names:
        if (tmp_path / "coarse" / name).is_file():
            old, made = ((tmp_path / folder / name).read_bytes() for folder in ("coarse", "out"))
            if old != made:
                changed.append(name.name)
    assert changed == ["ulm_000003_000019_leftImg8bit_2.png"]
    again = CityscapesResults(tmp_path / "out", tmp_path / "images")[3]
    assert np.array_equal(again.masks[2], new)
    assert np.array_equal(again.masks[3], masks[3][3])


def test_ground_truth(tmp_path):
    tiny_results.make_images(tmp_path, names=CITY_NAMES)
    folder = tmp_path / "gt" / "ulm"
    folder.mkdir(parents=True)
    ids = np.zeros(SIZES[0], np.uint16)
    ids[:5] = 7  # stuff
    ids[5:10] = 26  # a group of cars
    ids[10:15, :8] = 26001
    ids[10:15, 8:] = 24000
    ids[20:] = 34001  # no label of instances
    cv2.imwrite(str(folder / "ulm_000000_000019_gtFine_instanceIds.png"), ids)
    source = CityscapesGroundTruth(tmp_path / "gt", tmp_path / "images")
    assert len(source) == 1
    item = source[0]
    # As in results of the same image.
    assert item.image_id == "ulm_000000_000019"
    assert item.image_path == str(tmp_path / "images" / CITY_NAMES[0])
    assert item.labels.tolist() == [26, 24, 26]
    assert item.crowd.tolist() == [True, False, False]
    assert item.masks.dtype == bool
    for mask, ident in zip(item.masks, (26, 24000, 26001), strict=True):
        assert np.array_equal(mask, ids == ident)
    assert len(pickle.loads(pickle.dumps(source))) == 1


def test_ground_truth_without_instances_or_image(tmp_path):
    tiny_results.make_images(tmp_path, names=CITY_NAMES)
    (tmp_path / "gt").mkdir()
    path = tmp_path / "gt" / "ulm_000001_000019_gtFine_instanceIds.png"
    cv2.imwrite(str(path), np.full(SIZES[1], 7, np.uint16))
    source = CityscapesGroundTruth(tmp_path / "gt", tmp_path / "images")
    item = source[0]
    assert item.image_id == source.image_id(0)
    assert item.masks.shape == (0, *SIZES[1]) and item.labels.shape == (0,)
    path.rename(path.with_name("rom_000001_000019_gtFine_instanceIds.png"))
    with pytest.raises(UserError, match="image 'rom_000001_000019': no image file"):
        CityscapesGroundTruth(tmp_path / "gt", tmp_path / "images")
    with pytest.raises(UserError, match=r"images: holds no file \*_gtFine_instanceIds.png"):
        CityscapesGroundTruth(tmp_path / "images", tmp_path / "images")
