"""The look into a trained IBPP: on models that know the answer."""

import copy

import pytest
import torch
from tiny_refine import STUFF, THINGS, build, make_panoptic_batch, model_cfg

BOXES = [[[8, 8, 40, 40], [48, 48, 88, 88]], [[20, 20, 60, 60]]]


@pytest.fixture()
def canvas(docs_script):
    return docs_script("refine_canvas")


def model_of(**changes):
    return build(model_cfg(**changes)).eval()


def test_things_without_a_roi(canvas):
    model = model_of()
    batch = make_panoptic_batch(BOXES)
    # Ground truth is among the proposals: all have one.
    found = canvas.training_canvas(model, [copy.deepcopy(batch)])
    assert (found["images"], found["things"], found["things_without_roi"]) == (2, 3, 0)
    # A quarter of four: one positive for two things.
    model.roi_head.bbox_sampler.num = 4
    found = canvas.training_canvas(model, [copy.deepcopy(batch) for _ in range(2)])
    assert (found["images"], found["things"], found["things_without_roi"]) == (4, 6, 2)


class Painter(torch.nn.Module):
    """Names what the canvas shows, and all else the first stuff."""

    def forward(self, canvas, sem_feats):
        stuff = canvas.new_zeros(len(canvas), STUFF, *canvas.shape[-2:])
        stuff[:, 0] = 0.01
        return torch.cat([canvas, stuff], 1)


def test_semantics_with_and_without_the_canvas(canvas):
    model = model_of(canvas_weight="none")
    heads = model.roi_head.projection.semantic_heads
    heads[-1] = Painter()
    found = canvas.training_canvas(model, [make_panoptic_batch(BOXES)])
    *others, shares = found["share_named_rightly"]
    assert [row["t"] for row in others] == [1] and shares["t"] == 2
    assert shares["with_canvas"]["things"] > 0.5
    assert shares["with_empty_canvas"]["things"] == 0
    # The first stuff has the upper half, but for the void and the things.
    assert 0.3 < shares["with_empty_canvas"]["stuff"] < 0.6
    # Nothing is left behind.
    assert "mask_loss" not in vars(model.roi_head)
    assert not any(head._forward_pre_hooks for head in heads)


class Teller(torch.nn.Module):
    """Tells the truth it was given."""

    def __init__(self, labels):
        super().__init__()
        labels = labels.clamp(max=THINGS + STUFF - 1)
        self.logits = 9 * torch.nn.functional.one_hot(labels, THINGS + STUFF).permute(0, 3, 1, 2)

    def forward(self, canvas, sem_feats):
        return self.logits.float()


def test_semantics_of_each_iteration(canvas):
    model = model_of(num_iterations=2)
    batch = make_panoptic_batch(BOXES)
    labels = torch.cat([sample.gt_sem_seg.sem_seg for sample in batch["data_samples"]])
    heads = model.roi_head.projection.semantic_heads
    heads[0] = Teller(labels[:, ::4, ::4])
    heads[1] = Teller(torch.full_like(labels[:, ::4, ::4], THINGS))
    found = canvas.semantics_by_iteration(model, [batch])
    first, second, third = found["mean_iou"]
    assert found["images"] == 2 and [row["t"] for row in found["mean_iou"]] == [0, 1, 2]
    assert min(second["things"], second["stuff"]) > 0.8 > max(first["things"], first["stuff"])
    assert third["things"] == 0 and 0 < third["stuff"] < 0.5
    assert not model.semantic_head._forward_hooks and not heads[0]._forward_hooks


def test_models_without_iterations_are_refused(canvas):
    class Runner:
        model = model_of(num_iterations=0)

    with pytest.raises(canvas.UserError, match="no IterativeProjectionRoIHead with iterations"):
        canvas.look(Runner(), 1, 0)
