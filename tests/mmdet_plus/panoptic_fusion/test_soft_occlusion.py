"""Soft Occlusion Estimation: Eq. 7, who overlaps whom, and the order of pasting with its cycles."""

import math

import numpy as np
import pytest
import torch

from mmdet_plus.panoptic_fusion import overlapping, pasting_order, soft_occlusion_score


def plain_order(scores, soft, overlap):
    """The rule word by word, in loops."""
    remaining, order = list(range(len(scores))), []

    def occludes(i, j):
        return i != j and overlap[i, j] and soft[i, j] > soft[j, i]

    while remaining:
        free = [j for j in remaining if not any(occludes(i, j) for i in remaining)]
        taken = max(free or remaining, key=lambda i: (scores[i], -i))
        remaining.remove(taken)
        order.append(taken)
    return order


def random_case(rng, number, ties=False):
    scores = rng.integers(0, 4, number) / 4 if ties else rng.permutation(number) / number
    overlap = rng.random((number, number)) < rng.random()
    values = rng.integers(0, 5, (number, number)) / 4 if ties else rng.random((number, number))
    return scores, values, overlap | overlap.T


def test_equation_7():
    scores = torch.tensor([0.9, 0.5], dtype=torch.float64)
    occlusion = torch.tensor([[0.3, 0.2], [1.0, 0.0]], dtype=torch.float64)
    soft = soft_occlusion_score(scores, occlusion)
    for i in range(2):
        for j in range(2):
            expected = scores[i] * math.exp(-((occlusion[i, j] - 1) ** 2) / 2.5)
            assert soft[i, j].item() == pytest.approx(expected.item(), rel=1e-14)
    # The network says that 1 lies upon 0, the confidences turn it round; a small sigma does not.
    assert soft[0, 1] > soft[1, 0]
    sharp = soft_occlusion_score(scores, occlusion, sigma=0.5)
    assert sharp[0, 1] < sharp[1, 0]


def test_equation_7_is_differentiable_and_takes_arrays():
    scores = torch.rand(4, dtype=torch.float64, requires_grad=True)
    occlusion = torch.rand(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(soft_occlusion_score, (scores, occlusion))
    arrays = scores.detach().numpy(), occlusion.detach().numpy()[::-1]
    soft = soft_occlusion_score(*arrays, sigma=4.0)
    assert isinstance(soft, np.ndarray)
    expected = soft_occlusion_score(scores.detach(), occlusion.detach().flip(0), sigma=4.0)
    assert np.array_equal(soft, expected.numpy())


@pytest.mark.parametrize("ties", [False, True])
def test_the_order_is_the_rules(ties):
    rng = np.random.default_rng(0)
    for _ in range(150):
        case = random_case(rng, int(rng.integers(0, 9)), ties)
        expected = plain_order(*case)
        assert pasting_order(*case).tolist() == expected
        assert pasting_order(*map(torch.from_numpy, case)).tolist() == expected
    case = random_case(rng, 60, ties)
    assert pasting_order(*case).tolist() == plain_order(*case)


def test_the_order_does_not_depend_on_that_of_the_input():
    rng = np.random.default_rng(1)
    for _ in range(50):
        scores, soft, overlap = random_case(rng, 20)
        order = pasting_order(scores, soft, overlap)
        turn = rng.permutation(20)
        turned = pasting_order(scores[turn], soft[turn][:, turn], overlap[turn][:, turn])
        assert np.array_equal(turn[turned], order)


def beats(number, *pairs):
    soft = np.full((number, number), 0.2)
    for i, j in pairs:
        soft[i, j] = 0.8
    return soft


def test_rock_paper_scissors():
    soft = beats(3, (0, 1), (1, 2), (2, 0))
    everybody = np.ones((3, 3), bool)
    # Each lies below another one, so the best comes first; of the other two, 1 lies upon 2.
    assert pasting_order(np.array([0.9, 0.5, 0.7]), soft, everybody).tolist() == [0, 1, 2]
    assert pasting_order(np.array([0.5, 0.6, 0.7]), soft, everybody).tolist() == [2, 0, 1]
    # Equal in everything: by index.
    assert pasting_order(np.ones(3), soft, everybody).tolist() == [0, 1, 2]


def test_whoever_does_not_overlap_does_not_occlude():
    soft = beats(3, (2, 0), (2, 1))
    overlap = np.zeros((3, 3), bool)
    scores = np.array([0.9, 0.8, 0.7])
    assert pasting_order(scores, soft, overlap).tolist() == [0, 1, 2]
    overlap[0, 2] = overlap[2, 0] = True
    assert pasting_order(scores, soft, overlap).tolist() == [1, 2, 0]
    # Nobody occludes where both say the same.
    assert pasting_order(scores, np.ones((3, 3)), ~overlap).tolist() == [0, 1, 2]


def test_nobody_and_somebody_alone():
    for number in (0, 1):
        scores = torch.ones(number)
        pairs = torch.ones(number, number)
        order = pasting_order(scores, soft_occlusion_score(scores, pairs), pairs.bool())
        assert order.dtype is torch.int64 and order.tolist() == list(range(number))


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_overlap_is_measured_by_the_smaller_one(kind):
    masks = torch.zeros(5, 10, 10, dtype=torch.uint8)
    masks[0] = 255
    masks[1, 0, :5] = 1
    masks[2, 0, 4:9] = 1  # one of five pixels shared with 1: not more than 0.2
    masks[3, 0, 3:6] = 1
    # Mask 4 is empty.
    given = masks if kind == "torch" else masks.numpy()
    overlap = np.asarray(overlapping(given))
    expected = np.zeros((5, 5), bool)
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3)):
        expected[i, j] = expected[j, i] = True
    assert np.array_equal(overlap, expected)
    assert overlapping(given, 0.19)[1, 2] and not overlapping(given, 1.0).any()
    assert overlapping(given[:0]).shape == (0, 0)


def test_what_does_not_fit_together_is_refused():
    two, pairs = torch.ones(2), torch.ones(2, 2)
    with pytest.raises(ValueError, match=r"occlusion must be \(2, 2\).*shape \(2, 3\)"):
        soft_occlusion_score(two, torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"scores must be \(N,\)"):
        soft_occlusion_score(pairs, pairs)
    for sigma in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="sigma must be a positive number"):
            soft_occlusion_score(two, pairs, sigma)
    with pytest.raises(ValueError, match=r"soft must be \(2, 2\)"):
        pasting_order(two, torch.ones(3, 3), pairs.bool())
    with pytest.raises(ValueError, match=r"overlap must be \(2, 2\)"):
        pasting_order(two, pairs, pairs[0].bool())
    with pytest.raises(ValueError, match=r"masks must be \(N, H, W\)"):
        overlapping(pairs.bool())
