"""The heuristic fusion: equal to the reference's answers, and right on cases of its own."""

import json

import numpy as np
import pytest
import torch

from mmdet_plus.panoptic_fusion import fuse_heuristic

SIZE = (6, 8)


@pytest.fixture(scope="module")
def reference(repo_root):
    path = repo_root.parent / "shared/fixtures/panoptic_fusion.npz"
    if not path.is_file():
        pytest.skip("needs ../shared/fixtures beside the repository")
    return np.load(path)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_every_case_of_the_reference(reference, kind):
    answers = [name for name in reference.files if name.endswith("_panoptic")]
    assert len(answers) == 36
    for answer in answers:
        case = answer.split("_")[0]
        shape = reference[f"{case}_shape"]
        masks = np.unpackbits(reference[f"{case}_masks"], axis=-1, count=int(shape[-1]))
        given = [masks.astype(bool)]
        given += [reference[f"{case}_{name}"] for name in ("scores", "labels", "sem")]
        if kind == "torch":
            given = [torch.from_numpy(value) for value in given]
        meta = json.loads(str(reference[answer.replace("panoptic", "meta")]))
        panoptic, segments = fuse_heuristic(*given, **meta["cfg"])
        assert np.array_equal(np.asarray(panoptic), reference[answer]), answer
        assert segments == meta["segments"], answer


def box(x1, y1, x2, y2):
    mask = torch.zeros(SIZE, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def fuse(boxes, scores, sem=None, labels=None, **settings):
    masks = torch.stack([box(*b) for b in boxes]) if boxes else torch.zeros(0, *SIZE).bool()
    labels = torch.arange(len(boxes)) if labels is None else torch.tensor(labels)
    sem = torch.zeros(SIZE, dtype=torch.long) if sem is None else sem
    return fuse_heuristic(masks, torch.tensor(scores), labels, sem, **settings)


def test_the_higher_score_lies_on_top():
    panoptic, segments = fuse([(0, 0, 4, 4), (2, 0, 6, 4)], [0.6, 0.9], labels=[5, 7])
    assert [(s["id"], s["instance_id"], s["category_id"]) for s in segments] == [
        (1, 1, 7),
        (2, 0, 5),
    ]
    assert (panoptic[:4, 2:6] == 1).all() and (panoptic[:4, :2] == 2).all()
    assert panoptic.dtype is torch.int32 and int((panoptic > 0).sum()) == 24


def test_of_equal_scores_the_smaller_comes_first_then_the_upper_then_the_lower_label():
    boxes = [(0, 0, 3, 1), (4, 0, 6, 1), (0, 2, 2, 3), (0, 2, 2, 3), (7, 0, 8, 2)]
    _, segments = fuse(boxes, [0.7, 0.7, 0.7, 0.7, 0.8], labels=[1, 5, 4, 3, 2], overlap_thr=1.0)
    assert [s["instance_id"] for s in segments] == [4, 1, 3, 2, 0]


def test_a_score_that_is_no_number():
    with pytest.raises(ValueError, match="scores holds NaN"):
        fuse([(0, 0, 1, 1)], [float("nan")])


@pytest.mark.parametrize(("overlap_thr", "kept"), [(0.49, 1), (0.5, 2), (1.0, 2)])
def test_a_covered_share_at_the_threshold_is_allowed(overlap_thr, kept):
    _, segments = fuse([(0, 0, 4, 1), (2, 0, 6, 1)], [0.9, 0.8], overlap_thr=overlap_thr)
    assert len(segments) == kept


def test_scores_at_the_threshold_count_and_empty_masks_do_not():
    boxes = [(0, 0, 1, 1), (3, 3, 3, 3), (5, 5, 6, 6)]
    _, segments = fuse(boxes, [0.5, 0.9, 0.4999])
    assert [s["instance_id"] for s in segments] == [0]


def test_stuff_fills_what_is_left_if_it_is_large_enough():
    sem = torch.full(SIZE, 3)
    sem[:, 4:] = 9
    sem[0] = 0
    panoptic, segments = fuse([(0, 0, 4, 3)], [0.9], sem=sem, stuff_area_limit=13)
    assert segments[1:] == [dict(id=2, isthing=False, category_id=9, area=20)]
    # Twelve pixels of class 3 are too few, and class 0 is no stuff: both are void.
    assert (panoptic[3:, :4] == 0).all() and (panoptic[0, 4:] == 0).all()
    _, segments = fuse([(0, 0, 4, 3)], [0.9], sem=sem, stuff_area_limit=12)
    assert [(s["category_id"], s["area"]) for s in segments[1:]] == [(3, 12), (9, 20)]


@pytest.mark.parametrize("largest", [7, 200_000])
def test_stuff_comes_by_label_and_only_what_occurs(largest):
    sem = torch.full(SIZE, 3)
    sem[:, 4:] = largest
    sem[5] = -5
    panoptic, segments = fuse([(0, 0, 4, 5)], [0.9], sem=sem, stuff_area_limit=0)
    # Class 3 is covered, which detectron2 counts without a limit; 0, 4 and 6 are not there.
    assert [(s["category_id"], s["area"]) for s in segments[1:]] == [(-5, 8), (3, 0), (largest, 20)]
    assert (panoptic[5] == 2).all() and (panoptic[:5, 4:] == 4).all()


def test_a_label_map_of_another_type_and_a_mirrored_view():
    sem = np.full(SIZE, 200, np.uint16)[:, ::-1]
    panoptic, segments = fuse_heuristic(
        np.zeros((0, *SIZE), bool), np.zeros(0), np.zeros(0), sem, stuff_area_limit=1
    )
    assert isinstance(panoptic, np.ndarray) and (panoptic == 1).all()
    assert segments == [dict(id=1, isthing=False, category_id=200, area=48)]


def test_nothing_at_all():
    panoptic, segments = fuse([], [])
    assert segments == [] and not panoptic.any() and panoptic.shape == SIZE


def test_what_does_not_fit_together_is_refused():
    masks, sem = torch.zeros(2, *SIZE).bool(), torch.zeros(SIZE, dtype=torch.long)
    two, three = torch.zeros(2), torch.zeros(3)
    with pytest.raises(ValueError, match=r"masks must be \(K, 6, 8\) like sem, got .*\(2, 6, 7\)"):
        fuse_heuristic(masks[:, :, 1:], two, two.long(), sem)
    with pytest.raises(ValueError, match=r"scores must be \(2,\)"):
        fuse_heuristic(masks, three, two.long(), sem)
    with pytest.raises(ValueError, match=r"labels must be \(2,\)"):
        fuse_heuristic(masks, two, three.long(), sem)
    with pytest.raises(ValueError, match=r"sem must be \(H, W\)"):
        fuse_heuristic(masks, two, two.long(), sem[None])
    with pytest.raises(TypeError, match="sem must be whole numbers, got torch.float32"):
        fuse_heuristic(masks, two, two.long(), sem.float())
    with pytest.raises(TypeError, match="labels must be whole numbers"):
        fuse_heuristic(masks, two, two, sem)
