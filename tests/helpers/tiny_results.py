"""Tiny images with masks, as results in every format, and a stand-in for the refiner."""

import json
import pickle

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask

#: (height, width) of the images, in the order of the annotation file.
SIZES = [(40, 56), (33, 33), (24, 70), (48, 40), (30, 30), (52, 44)]
#: How many instances each has; the third has none.
COUNTS = [3, 1, 0, 4, 1, 2]
CATEGORY_IDS = [3, 7, 12]


def refine(image, masks):
    """Change masks near their boundaries, by what the image shows there."""
    grown = masks.copy()
    for axis in (1, 2):
        for step in (-1, 1):
            grown |= np.roll(masks, step, axis)
    odd = image.astype(int).sum(2) % 3 == 0
    return masks ^ (grown & odd)


def make_masks(count, height, width, seed):
    """(count, H, W) bool: ellipses, some of which touch the border."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    masks = np.zeros((count, height, width), bool)
    for mask in masks:
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        b, a = rng.uniform(4, height / 2), rng.uniform(4, width / 2)
        mask[:] = ((rows - y) / b) ** 2 + ((columns - x) / a) ** 2 <= 1
    return masks


def make_images(root, sizes=SIZES, counts=COUNTS, names=None, folder="images"):
    """Draw images and an annotation file; return the masks of each image."""
    rng = np.random.default_rng(5)
    (root / folder).mkdir(parents=True, exist_ok=True)
    images, masks = [], []
    for index, (height, width) in enumerate(sizes):
        name = names[index] if names else f"{index:03d}.png"
        (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / folder / name), picture)
        images.append(dict(id=100 + index, file_name=name, height=height, width=width))
        masks.append(make_masks(counts[index], height, width, seed=index))
    categories = [dict(id=ident, name=f"class {ident}") for ident in CATEGORY_IDS]
    (root / "ann.json").write_text(json.dumps(dict(images=images, categories=categories)))
    return masks


def rle(mask, text=True):
    """pycocotools' RLE of a mask, its counts as text or as bytes."""
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = encoded["counts"].decode() if text else encoded["counts"]
    return dict(size=[int(side) for side in mask.shape], counts=counts)


def coded(*numbers):
    """The first few counts of a compressed RLE (at most three), whatever they are."""
    text = ""
    for number in numbers:
        while True:
            low, number = number & 31, number >> 5
            ends = number == -1 if low & 16 else number == 0
            text += chr(48 + (low if ends else low | 32))
            if ends:
                break
    return text


def decode(record):
    """The mask of a record's RLE."""
    return coco_mask.decode(record["segmentation"]).astype(bool)


def coco_records(masks):
    """Results whose images are all mixed up."""
    records = [
        dict(
            image_id=100 + index,
            category_id=CATEGORY_IDS[number % len(CATEGORY_IDS)],
            bbox=[1.5, 2.5, 3.0, 4.0],
            score=round(0.9 - 0.13 * number - 0.01 * index, 3),
            segmentation=rle(mask),
            note=f"{index}/{number}",
        )
        for index, planes in enumerate(masks)
        for number, mask in enumerate(planes)
    ]
    return [records[i] for i in np.random.default_rng(1).permutation(len(records))]


def write_coco(root, masks=None):
    """Write images, annotations and COCO results; return the records."""
    masks = make_images(root) if masks is None else masks
    records = coco_records(masks)
    (root / "coarse.json").write_text(json.dumps(records))
    return records


def predictions(masks):
    """What DumpDetResults dumps."""
    entries = []
    for index, planes in enumerate(masks):
        count = len(planes)
        predicted = dict(
            bboxes=torch.full((count, 4), 2.0),
            labels=torch.arange(count) % len(CATEGORY_IDS),
            scores=torch.linspace(0.9, 0.3, count),
            masks=[rle(mask, text=False) for mask in planes],
        )
        shape = tuple(planes.shape[1:])
        meta = dict(img_id=100 + index, img_path=f"images/{index:03d}.png", ori_shape=shape)
        entries.append(dict(**meta, scale_factor=(1.5, 1.5), pred_instances=predicted))
    return entries


def write_mmdet(root, masks=None):
    """Write images, annotations and a pickle of predictions; return its entries."""
    masks = make_images(root) if masks is None else masks
    entries = predictions(masks)
    (root / "coarse.pkl").write_bytes(pickle.dumps(entries, protocol=2))
    return entries


CITY_NAMES = [f"ulm/ulm_{index:06d}_000019_leftImg8bit.png" for index in range(len(SIZES))]


def write_cityscapes(root):
    """Write images by city and a folder of Cityscapes results; return the masks."""
    masks = make_images(root, names=CITY_NAMES)
    folder = root / "coarse"
    (folder / "masks").mkdir(parents=True)
    for name, planes in zip(CITY_NAMES, masks, strict=True):
        stem = name.split("/")[1].removesuffix(".png")
        lines = ""
        for number, mask in enumerate(planes):
            # Any value that is not 0 is the instance.
            cv2.imwrite(str(folder / "masks" / f"{stem}_{number}.png"), mask * np.uint8(1 + number))
            lines += f"masks/{stem}_{number}.png {24 + number} {0.95 - 0.1 * number:.10f}\n"
        (folder / f"{stem}_pred.txt").write_text(lines)
    return masks
