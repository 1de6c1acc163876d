"""Pairs, targets and the network of occlusion."""

import pytest
import torch

from mmdet_plus.refine import occlusion
from mmdet_plus.refine.occlusion import (
    OcclusionNetwork,
    Priors,
    labelled_pairs,
    occlusion_matrix,
    occlusion_targets,
    overlapping_pairs,
)


def squares(*corners, side=10, size=40):
    """Masks of squares, one for each upper left corner (y, x)."""
    masks = torch.zeros(len(corners), size, size, dtype=torch.bool)
    for mask, (y, x) in zip(masks, corners, strict=True):
        mask[y : y + side, x : x + side] = True
    return masks


def test_pairs_overlap_by_more_than_the_threshold_of_the_smaller():
    masks = squares((0, 0), (0, 8), (0, 7), (30, 30))  # shares of 0.2, 0.3 and 0.9
    masks[3, :, :] = False
    assert overlapping_pairs(masks).tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    small = torch.cat([masks[:1], squares((0, 8), side=2)])  # the smaller one lies in the larger
    assert overlapping_pairs(small, 0.9).tolist() == [[0, 1], [1, 0]]
    assert overlapping_pairs(masks[:0]).shape == (0, 2)


def test_targets_tell_who_owns_more_of_what_both_cover():
    masks = squares((0, 0), (0, 5), (0, 5), (20, 20))
    canvas = torch.zeros(40, 40, dtype=torch.long)
    canvas[:10, 5:10] = 7  # the shared part of 0 and 1: 30 pixels are 7's, 20 are 9's
    canvas[:4, 5:10] = 9
    owners = torch.tensor([7, 9, 0, 7])
    pairs = torch.tensor([[0, 1], [1, 0], [0, 2], [0, 3], [1, 2]])
    assert occlusion_targets(masks, owners, canvas, pairs).tolist() == [1, 0, -1, -1, -1]
    canvas[:10, 5:10] = 3  # somebody else's
    assert occlusion_targets(masks, owners, canvas, pairs[:2]).tolist() == [-1, -1]
    same = torch.tensor([7, 7, 0, 0])
    assert occlusion_targets(masks, same, canvas, pairs[:1]).tolist() == [-1]


def test_labelled_pairs_are_those_with_a_target(monkeypatch):
    masks = squares((0, 0), (0, 5), (0, 5), (20, 20))
    canvas = torch.zeros(40, 40, dtype=torch.long)
    canvas[:10, 5:10] = 7
    owners = torch.tensor([7, 9, 8, 7])
    for chunk in (64, 1):
        monkeypatch.setattr(occlusion, "_CHUNK", chunk)
        # Of 1 and 2, which overlap as well, neither owns a pixel.
        pairs, targets = labelled_pairs(masks, owners, canvas)
        assert pairs.tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]
        assert targets.tolist() == [1, 1, 0, 0]
    pairs, targets = labelled_pairs(masks, torch.zeros_like(owners), canvas)
    assert pairs.shape == (0, 2) and targets.shape == (0,) and targets.dtype == torch.long
    pairs, targets = labelled_pairs(masks[:0], owners[:0], canvas)
    assert pairs.shape == (0, 2) and targets.shape == (0,)


@pytest.fixture
def priors():
    torch.manual_seed(0)
    return Priors(torch.rand(5, 28, 28), torch.randn(5, 6, 14, 14), torch.tensor([0, 1, 2, 1, 0]))


def network(**switches):
    torch.manual_seed(1)
    model = OcclusionNetwork(
        3, 6, conv_channels=8, fc_channels=16, embedding=4, **switches
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def doubled(priors):
    return Priors(priors.masks.double(), priors.features.double(), priors.labels)


PAIRS = torch.tensor([[0, 1], [1, 0], [2, 4], [4, 2], [3, 0]])


def test_the_first_convolution_reads_both_instances(priors):
    model, priors = network(), doubled(priors)
    seen = model.read(priors)
    assert seen.shape == (5, 1 + 6 + 4, 14, 14)
    weight = torch.cat([model.first.weight, model.second.weight], 1)
    both = torch.cat([seen[PAIRS[:, 0]], seen[PAIRS[:, 1]]], 1)
    hidden = torch.nn.functional.conv2d(both, weight, model.first.bias, padding=1)
    inner = model.fc(model.convs(hidden).flatten(1)).relu()
    torch.testing.assert_close(model(priors, PAIRS), model.fc_occlusion(inner)[:, 0])
    assert model.convs(hidden).shape[-2:] == (7, 7)


def test_order_of_a_pair_and_chunks(priors):
    model, priors = network(), doubled(priors)
    logits = model(priors, PAIRS)
    assert not torch.isclose(logits[0], logits[1])
    torch.testing.assert_close(model(priors, PAIRS, chunk=2), logits)
    assert model(priors, PAIRS[:0]).shape == (0,)
    none = Priors(*(value[:0] for value in priors))
    assert model(none, PAIRS[:0]).shape == (0,)


@pytest.mark.parametrize("prior", ["masks", "features", "labels"])
def test_a_prior_that_is_off_is_not_read(priors, prior):
    priors = doubled(priors)
    other = priors._replace(
        **{prior: 1 - getattr(priors, prior) if prior != "labels" else (priors.labels + 1) % 3}
    )
    on, off = network(), network(**{f"use_{prior}": False})
    assert not torch.allclose(on(priors, PAIRS), on(other, PAIRS))
    assert torch.equal(off(priors, PAIRS), off(other, PAIRS))


def test_some_prior_is_needed():
    with pytest.raises(ValueError, match="needs a prior"):
        network(use_masks=False, use_features=False, use_labels=False)


def test_at_first_nobody_lies_on_top(priors):
    model = OcclusionNetwork(3, 6, conv_channels=8, fc_channels=16)
    model.init_weights()
    assert (model(priors, PAIRS).sigmoid() - 0.5).abs().max() < 0.2


def test_it_learns_a_rule(priors):
    """Whoever has the larger class lies on top."""
    torch.manual_seed(0)
    model = OcclusionNetwork(3, 6, conv_channels=8, fc_channels=16, embedding=4)
    model.init_weights()
    pairs = torch.tensor([[i, j] for i in range(5) for j in range(5)])
    pairs = pairs[priors.labels[pairs[:, 0]] != priors.labels[pairs[:, 1]]]
    targets = (priors.labels[pairs[:, 0]] > priors.labels[pairs[:, 1]]).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(priors, pairs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((model(priors, pairs) > 0) == targets.bool()).all()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_matrix():
    matrix = occlusion_matrix(PAIRS, torch.zeros(5), 5)
    assert matrix.shape == (5, 5) and matrix[0, 1] == matrix[1, 0] == 0.5
    assert matrix.count_nonzero() == 5 and matrix[0, 3] == 0
