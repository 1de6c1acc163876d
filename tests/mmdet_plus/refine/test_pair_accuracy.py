"""How often the predicted order of overlapping instances is that of the ground truth."""

import pytest
import torch
from mmengine.structures import InstanceData
from tiny_refine import CHANNELS, THINGS, drawn

from mmdet_plus.refine import OcclusionHead, SpatialRankingHead, occlusion

# Two squares that overlap by a quarter, once more far away from them; the last one is alone.
BOXES = torch.tensor(
    [[0, 0, 20, 20], [10, 10, 30, 30], [32, 32, 52, 52], [42, 42, 62, 62], [0, 44, 16, 60]]
)
LABELS = torch.tensor([0, 1, 0, 0, 2])


@pytest.fixture
def head():
    extractor = dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=CHANNELS,
        featmap_strides=[4],
    )
    return OcclusionHead(THINGS, extractor, score_thr=0.3, conv_channels=4, fc_channels=4)


def true_segments(fronts):
    """The squares without overlap; ``fronts`` lie before all others."""
    segments = drawn(BOXES)
    for front in fronts:
        for other in range(len(segments)):
            if other not in fronts:
                segments[other] &= ~segments[front]
    return segments


def results(scores=(0.9, 0.8, 0.7, 0.6, 0.5), on_top=()):
    occlusion = torch.zeros(len(BOXES), len(BOXES))
    for i, j in on_top:
        occlusion[i, j], occlusion[j, i] = 0.9, 0.1
    return InstanceData(
        masks=drawn(BOXES), labels=LABELS, scores=torch.tensor(scores), occlusion=occlusion
    )


def test_pairs_are_counted_once_and_judged_by_who_owns_more(head):
    truth = true_segments([1, 2]), LABELS
    assert head.pair_accuracy(results(on_top=[(1, 0), (2, 3)]), *truth) == (2, 2, 1)
    assert head.pair_accuracy(results(on_top=[(0, 1), (2, 3)]), *truth) == (2, 1, 1)
    assert head.pair_accuracy(results(on_top=[(0, 1), (3, 2)]), *truth) == (2, 0, 1)
    # Neither on top of the other, the one as likely as the other: nobody was told.
    assert head.pair_accuracy(results(), *truth) == (2, 0, 1)


def test_the_true_order_is_always_right(head):
    truth = true_segments([1, 2]), LABELS
    found = results(on_top=[(0, 1), (3, 2)])
    occlusion = head.true_occlusion(found, *truth)
    expected = torch.full((5, 5), 0.5)
    expected[1, 0] = expected[2, 3] = 1
    expected[0, 1] = expected[3, 2] = 0
    assert occlusion.equal(expected)
    found.occlusion = occlusion
    assert head.pair_accuracy(found, *truth) == (2, 2, 1)
    nothing = InstanceData(**dict(results()[:0].items()))
    assert head.true_occlusion(nothing, *truth).shape == (0, 0)


def test_the_order_of_the_list(head):
    """Whoever owns the pixels; scores have the first of each pair on top."""
    segments = true_segments([1, 2])
    found = results(on_top=[(1, 0), (2, 3)])
    for order, right in (
        ((0, 1, 2, 3, 4), (2, 1, 2)),
        ((1, 0, 2, 3, 4), (2, 2, 1)),
        ((4, 0, 3, 2, 1), (2, 0, 1)),
    ):
        truth = segments[list(order)], LABELS[list(order)]
        assert head.pair_accuracy(found, *truth, listed=True) == right
        assert head.pair_accuracy(found, *truth) == (2, 2, 1)
    # Pixels of both masks that nobody owns tell no order; the list does.
    none = segments.clone()
    none[:, 10:20, 10:20] = False
    assert head.pair_accuracy(found, none, LABELS) == (1, 1, 1)
    assert head.pair_accuracy(found, none, LABELS, listed=True) == (2, 1, 2)
    ranking = SpatialRankingHead(THINGS, score_thr=0.3)
    found.ranking_scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    assert ranking.pair_accuracy(found, segments, LABELS, listed=True) == (2, 0, 2)


def test_scores_alone(head):
    truth = true_segments([1, 2]), LABELS
    right = [(1, 0), (2, 3)]
    assert head.pair_accuracy(results((0.8, 0.9, 0.7, 0.6, 0.5), right), *truth) == (2, 2, 2)
    assert head.pair_accuracy(results((0.9, 0.8, 0.6, 0.7, 0.5), right), *truth) == (2, 2, 0)
    # Fusers take equal scores in the order given.
    assert head.pair_accuracy(results((0.7, 0.7, 0.7, 0.7, 0.7), right), *truth) == (2, 2, 1)


def test_what_no_fuser_uses_or_the_truth_does_not_tell_is_left_out(head):
    truth = true_segments([1, 2]), LABELS
    right = [(1, 0), (2, 3)]
    # The fourth is below the head's threshold.
    assert head.pair_accuracy(results((0.9, 0.8, 0.7, 0.2, 0.5), right), *truth) == (1, 1, 0)
    # One of each pair has no ground truth of its class.
    other = torch.tensor([0, 2, 0, 0, 2])
    assert head.pair_accuracy(results(on_top=right), truth[0], other) == (1, 1, 1)
    # A pair that shares too little.
    head.overlap_thr = 0.26
    assert head.pair_accuracy(results(on_top=right), *truth) == (0, 0, 0)


def test_nothing_found_and_nothing_there(head):
    nothing = results()[torch.zeros(5, dtype=torch.bool)]
    nothing.pop("occlusion")
    nothing.occlusion = torch.zeros(0, 0)
    assert head.pair_accuracy(nothing, true_segments([]), LABELS) == (0, 0, 0)
    none = torch.zeros(0, 64, 64, dtype=torch.bool), LABELS[:0]
    assert head.pair_accuracy(results(), *none) == (0, 0, 0)


def test_many_pairs_are_counted_in_parts(head, monkeypatch):
    whole = head.pair_accuracy(results(on_top=[(1, 0), (3, 2)]), true_segments([1, 2]), LABELS)
    monkeypatch.setattr(occlusion, "_CHUNK", 1)
    parts = head.pair_accuracy(results(on_top=[(1, 0), (3, 2)]), true_segments([1, 2]), LABELS)
    assert parts == whole == (2, 1, 1)


def test_a_ranking_is_judged_as_well(head):
    ranking_head = SpatialRankingHead(THINGS, score_thr=0.3)
    truth = true_segments([1, 2]), LABELS
    for ranking, right in (
        ((0.1, 0.2, 0.4, 0.3, 0), 2),
        ((0.2, 0.1, 0.4, 0.3, 0), 1),
        ((0.2, 0.1, 0.3, 0.4, 0), 0),
        ((0.2, 0.2, 0.3, 0.3, 0), 0),
    ):
        found = results()
        found.ranking_scores = torch.tensor(ranking)
        assert ranking_head.pair_accuracy(found, *truth) == (2, right, 1)
    found.scores = torch.tensor((0.9, 0.8, 0.7, 0.2, 0.5))
    found.ranking_scores = torch.tensor((0.1, 0.2, 0.4, 0.3, 0))
    assert ranking_head.pair_accuracy(found, *truth) == (1, 1, 0)
