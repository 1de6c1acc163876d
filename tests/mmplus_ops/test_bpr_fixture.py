"""Boundary patches beside what the authors' code answers for 40 coarse masks of real images.

Their suppression breaks ties in no defined order, so extraction is held to what it achieves;
reassembly is held to their result exactly.
"""

import json
from typing import NamedTuple

import numpy as np
import pytest
import torch
from op_cases import WAYS, needs_compiled_ops, use_way
from pycocotools import mask as coco_mask

from mmplus_ops import extract_boundary_patches, reassemble_patches
from mmplus_ops.boundary_patches import boundary_support


class Case(NamedTuple):
    """One mask with one setting, and the authors' answer."""

    seed: int
    mask: torch.Tensor  # (H, W) bool
    size: int
    iou_thr: float
    boxes: torch.Tensor  # (P, 4) int64
    refined: torch.Tensor  # (H, W) bool


@pytest.fixture(scope="module")
def cases(repo_root):
    path = repo_root.parent / "shared" / "fixtures" / "bpr_patches.json"
    if not path.is_file():
        pytest.skip("needs ../shared/fixtures beside the repository")
    found = []
    for record in json.loads(path.read_text()):
        mask = torch.from_numpy(coco_mask.decode(record["coarse"])).bool()
        for setting in record["settings"]:
            found.append(
                Case(
                    record["ann_id"] % 2**31,
                    mask,
                    setting["patch_size"],
                    setting["iou_thr"],
                    torch.tensor(setting["boxes"], dtype=torch.int64).view(-1, 4),
                    torch.from_numpy(coco_mask.decode(setting["refined"])).bool(),
                )
            )
    return found


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    use_way(monkeypatch, request.param)
    return request.param


def test_reassembly_is_exactly_the_authors(way, cases):
    for case in cases:
        noise = np.random.RandomState(case.seed).rand(len(case.boxes), case.size, case.size)
        refined = reassemble_patches(
            case.mask[None],
            case.boxes,
            torch.zeros(len(case.boxes), dtype=torch.int64),
            torch.from_numpy(noise.astype(np.float32)),
        )
        assert torch.equal(refined[0], case.refined), case[2:4]
    assert len(cases) >= 100


def share_covered(boxes, boundary):
    cover = torch.zeros_like(boundary)
    for x1, y1, x2, y2 in boxes.tolist():
        cover[y1:y2, x1:x2] = True
    return float((cover & boundary).sum() / boundary.sum())


@needs_compiled_ops
def test_extraction_takes_no_more_patches_and_covers_no_less(cases):
    """In sum over the masks, for each setting; the plain form gives the same boxes."""
    counts, shares = {}, {}
    for case in cases:
        boxes, _ = extract_boundary_patches(case.mask[None], case.size, case.iou_thr)
        boundary = boundary_support(case.mask[None])[0] > 0
        setting = (case.size, case.iou_thr)
        counts.setdefault(setting, []).append((len(boxes), len(case.boxes)))
        shares.setdefault(setting, []).append(
            (share_covered(boxes, boundary), share_covered(case.boxes, boundary))
        )
    assert len(counts) == 4
    for setting, pairs in counts.items():
        ours, theirs = np.sum(pairs, axis=0)
        assert ours <= theirs, setting
        ours, theirs = np.mean(shares[setting], axis=0)
        assert ours >= theirs, setting


def test_no_two_patches_overlap_beyond_the_threshold(way, cases):
    """Before they are moved inside: on a canvas with a border that is wide enough."""
    for case in cases[:24] if way == "plain" else cases:
        border = case.size
        padded = torch.nn.functional.pad(case.mask, (border,) * 4)
        boxes, _ = extract_boundary_patches(padded[None], case.size, case.iou_thr)
        corner = boxes[:, :2]
        gap = (case.size - (corner[:, None] - corner[None]).abs()).clamp(min=0)
        shared = (gap[..., 0] * gap[..., 1]).double().fill_diagonal_(0)
        iou = shared / (2 * case.size**2 - shared)
        assert iou.max() <= case.iou_thr + 1e-9, case[2:4]


@needs_compiled_ops
def test_compiled_and_plain_choose_the_same(cases, monkeypatch):
    for case in cases[::7]:
        ours, _ = extract_boundary_patches(case.mask[None], case.size, case.iou_thr)
        with monkeypatch.context() as context:
            context.setenv("MMPLUS_WITH_OPS", "0")
            plain, _ = extract_boundary_patches(case.mask[None], case.size, case.iou_thr)
        assert torch.equal(ours, plain), case[2:4]


@needs_compiled_ops
def test_all_masks_at_once_choose_as_one_by_one(cases):
    """On any number of threads, at every run."""
    shape = cases[0].mask.shape
    of_shape = [case.mask for case in cases if case.mask.shape == shape][::4]
    masks = torch.stack(of_shape)
    alone = [extract_boundary_patches(mask[None])[0] for mask in masks]
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 2):
            torch.set_num_threads(threads)
            boxes, index = extract_boundary_patches(masks)
            assert torch.equal(boxes, torch.cat(alone))
            assert index.bincount(minlength=len(masks)).tolist() == [len(part) for part in alone]
    finally:
        torch.set_num_threads(before)
    assert len(masks) > 1
