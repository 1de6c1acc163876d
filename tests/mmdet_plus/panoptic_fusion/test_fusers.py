"""The fusers differ in the order of pasting alone: each against a plain reference."""

import numpy as np
import pytest
import torch

from mmdet_plus.panoptic_fusion import (
    fuse_heuristic,
    fuse_occlusion,
    fuse_soft_occlusion,
    fuse_spatial_ranking,
)

SETTINGS = dict(overlap_thr=0.4, stuff_area_limit=6, score_thr=0.3)


def plain_fusion(masks, labels, sem, order):
    """Paste in a given order, fill in the stuff; ids by instance or stuff class."""
    panoptic, segments = np.zeros(sem.shape, int), []
    for instance in order:
        area = int(masks[instance].sum())
        free = masks[instance] & (panoptic == 0)
        if area and (area - free.sum()) / area <= SETTINGS["overlap_thr"]:
            segments.append((True, int(labels[instance]), instance))
            panoptic[free] = len(segments)
    for label in range(1, sem.max() + 1):
        free = (sem == label) & (panoptic == 0)
        if free.sum() >= SETTINGS["stuff_area_limit"]:
            segments.append((False, label, None))
            panoptic[free] = len(segments)
    return panoptic, segments


def plain_order(masks, scores, kept, soft):
    """By occlusion, in loops."""
    remaining, order = list(kept), []
    while remaining:

        def occluded(j):
            for i in remaining:
                shared = (masks[i] & masks[j]).sum()
                smaller = min(masks[i].sum(), masks[j].sum())
                if i != j and shared > 0.2 * smaller and soft[i, j] > soft[j, i]:
                    return True
            return False

        free = [j for j in remaining if not occluded(j)]
        taken = max(free or remaining, key=lambda i: scores[i])
        remaining.remove(taken)
        order.append(taken)
    return order


def random_case(seed):
    rng = np.random.default_rng(seed)
    number = int(rng.integers(0, 11))
    masks = np.zeros((number, 14, 15), bool)
    for mask in masks:
        (y, x), (h, w) = rng.integers(0, 9, 2), rng.integers(0, 8, 2)
        mask[y : y + h, x : x + w] = True
    scores, ranking = rng.permutation(number) / 10 + 0.1, rng.permutation(number) - 3.5
    labels = rng.integers(0, 5, number)
    sem = rng.integers(0, 4, (7, 5)).repeat(2, 0).repeat(3, 1)
    return masks, scores, labels, sem, ranking, rng.random((number, number))


def named(segments):
    return [(s["isthing"], s["category_id"], s.get("instance_id")) for s in segments]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("fuser", ["ranking", "hard", "soft", "soft, sigma 0.3"])
def test_equal_to_the_plain_reference(fuser, kind):
    dropped, unlike_heuristic = 0, 0
    for seed in range(100):
        masks, scores, labels, sem, ranking, occlusion = random_case(seed)
        kept = np.flatnonzero(scores >= SETTINGS["score_thr"]).tolist()
        if fuser == "ranking":
            function, more, options = fuse_spatial_ranking, ranking, {}
            order = sorted(kept, key=lambda i: -ranking[i])
        elif fuser == "hard":
            function, more, options = fuse_occlusion, occlusion, {}
            order = plain_order(masks, scores, kept, occlusion)
        else:
            function, more = fuse_soft_occlusion, occlusion
            options, sigma = {}, 2.5
            if "sigma" in fuser:
                options, sigma = dict(sigma=0.3), 0.3
            soft = scores[:, None] * np.exp(-((occlusion - 1) ** 2) / sigma)
            order = plain_order(masks, scores, kept, soft)
        given = [masks, scores, labels, sem, more]
        if kind == "torch":
            given = [torch.from_numpy(value) for value in given]
        panoptic, segments = function(*given, **options, **SETTINGS)
        expected, names = plain_fusion(masks, labels, sem, order)
        assert isinstance(panoptic, type(given[0]))
        assert np.array_equal(np.asarray(panoptic), expected) and named(segments) == names
        assert [s["id"] for s in segments] == list(range(1, len(segments) + 1))
        assert [s["score"] for s in segments if s["isthing"]] == [
            scores[s["instance_id"]] for s in segments if s["isthing"]
        ]
        dropped += len(order) - sum(s["isthing"] for s in segments)
        unlike_heuristic += named(segments) != named(
            fuse_heuristic(masks, scores, labels, sem, **SETTINGS)[1]
        )
    assert dropped > 20 and unlike_heuristic > 5


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    "fuser", [fuse_heuristic, fuse_spatial_ranking, fuse_occlusion, fuse_soft_occlusion]
)
def test_the_order_of_the_input_does_not_matter(fuser, ties):
    for seed in range(40):
        masks, scores, labels, sem, ranking, occlusion = random_case(seed)
        if ties:
            scores = np.maximum(scores, 0.3).round(0) * 0.5 + 0.3
            ranking, occlusion = ranking // 3, (occlusion * 2).round() / 2
        turn = np.random.default_rng(seed).permutation(len(masks))
        more, turned = [occlusion], [occlusion[turn][:, turn]]
        if fuser is fuse_spatial_ranking:
            more, turned = [ranking], [ranking[turn]]
        elif fuser is fuse_heuristic:
            more = turned = []
        panoptic, segments = fuser(masks, scores, labels, sem, *more, **SETTINGS)
        again, same = fuser(masks[turn], scores[turn], labels[turn], sem, *turned, **SETTINGS)
        assert np.array_equal(panoptic, again)
        for segment in same:
            if segment["isthing"]:
                segment["instance_id"] = turn[segment["instance_id"]]
        assert segments == same


def stripes(*spans):
    masks = torch.zeros(len(spans), 1, 12, dtype=torch.bool)
    for mask, (start, end) in zip(masks, spans, strict=True):
        mask[:, start:end] = True
    return masks


def nothing(masks):
    return torch.zeros(masks.shape[1:], dtype=torch.long)


def test_all_agree_where_they_say_the_same():
    masks, scores, labels, sem, _, occlusion = random_case(5)
    assert len(masks) > 4
    expected = fuse_heuristic(masks, scores, labels, sem, **SETTINGS)
    undecided = np.full_like(occlusion, 0.5)
    for fuser, more in (
        (fuse_spatial_ranking, scores * 3 - 1),
        (fuse_occlusion, undecided),
        (fuse_soft_occlusion, undecided),
    ):
        panoptic, segments = fuser(masks, scores, labels, sem, more, **SETTINGS)
        assert np.array_equal(panoptic, expected[0]) and segments == expected[1]


def test_the_network_can_put_the_lower_score_on_top():
    masks, scores = stripes((0, 8), (6, 9)), torch.tensor([0.9, 0.6])
    labels, occlusion = torch.tensor([1, 2]), torch.tensor([[0.0, 0.1], [1.0, 0.0]])
    given = (masks, scores, labels, nothing(masks), occlusion)
    for fuser, options in ((fuse_occlusion, {}), (fuse_soft_occlusion, dict(sigma=1.0))):
        panoptic, segments = fuser(*given, **options)
        assert [s["instance_id"] for s in segments] == [1, 0]
        assert panoptic[0].tolist() == [2] * 6 + [1] * 3 + [0] * 3
        # As a pair that hardly overlaps they follow their scores, and 1 is covered too much.
        _, segments = fuser(*given, **options, occlusion_thr=0.7)
        assert [s["instance_id"] for s in segments] == [0]
    # With the paper's sigma the higher score wins.
    _, segments = fuse_soft_occlusion(*given)
    assert [s["instance_id"] for s in segments] == [0]


def test_who_is_below_the_threshold_takes_no_part():
    masks, scores = stripes((0, 8), (4, 12), (0, 12)), torch.tensor([0.7, 0.8, 0.4])
    # 0 upon 1; 1 upon 2 and 2 upon 0, which would be a cycle that 1 wins.
    occlusion = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    given = (masks, scores, torch.arange(3), nothing(masks), occlusion)
    panoptic, segments = fuse_occlusion(*given)
    assert [s["instance_id"] for s in segments] == [0, 1]
    assert panoptic[0].tolist() == [1] * 8 + [2] * 4
    _, segments = fuse_occlusion(*given, score_thr=0.0)
    assert [s["instance_id"] for s in segments] == [1, 0]


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("fuser", [fuse_spatial_ranking, fuse_occlusion, fuse_soft_occlusion])
def test_nothing_at_all(fuser, kind):
    more = torch.zeros(0) if fuser is fuse_spatial_ranking else torch.zeros(0, 0)
    given = [torch.zeros(0, 3, 4).bool(), torch.zeros(0), torch.zeros(0), torch.zeros(3, 4).long()]
    given.append(more)
    if kind == "numpy":
        given = [value.numpy() for value in given]
    panoptic, segments = fuser(*given)
    assert segments == [] and not panoptic.any() and panoptic.shape == (3, 4)
    given[3] = given[3] + 6
    panoptic, segments = fuser(*given, stuff_area_limit=12)
    assert (panoptic == 1).all()
    assert segments == [dict(id=1, isthing=False, category_id=6, area=12)]


def test_what_does_not_fit_is_refused():
    masks, two = stripes((0, 2), (1, 3)), torch.ones(2)
    given = (masks, two, two.long(), nothing(masks))
    for ranking in (torch.ones(3), torch.ones(2, 1)):
        with pytest.raises(ValueError, match=r"ranking_scores must be \(2,\)"):
            fuse_spatial_ranking(*given, ranking)
    with pytest.raises(ValueError, match="ranking_scores holds NaN"):
        fuse_spatial_ranking(*given, torch.tensor([1.0, torch.nan]))
    for fuser in (fuse_occlusion, fuse_soft_occlusion):
        for shape in ((3, 3), (2,), (2, 3)):
            with pytest.raises(ValueError, match=r"occlusion must be \(2, 2\), one row and one"):
                fuser(*given, torch.ones(shape))
        for value in (1.1, -0.1, torch.nan):
            occlusion = torch.tensor([[0.5, value], [0.5, 0.5]])
            with pytest.raises(ValueError, match=r"occlusion must be in \[0, 1\]"):
                fuser(*given, occlusion)
            # Nobody lies upon himself, whatever stands there.
            fuser(*given, occlusion.flip(1))
        with pytest.raises(ValueError, match=r"labels must be \(2,\)"):
            fuser(masks, two, torch.ones(3).long(), nothing(masks), torch.ones(2, 2))
        with pytest.raises(TypeError, match="sem must be whole numbers"):
            fuser(masks, two, two.long(), nothing(masks).float(), torch.ones(2, 2))
    with pytest.raises(ValueError, match="sigma must be a positive number"):
        fuse_soft_occlusion(*given, torch.ones(2, 2), sigma=0)
