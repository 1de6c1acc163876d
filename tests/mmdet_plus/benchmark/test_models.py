"""Whole models beside each other: what is built, and what the record says."""

import time

import pytest
import torch

from mmdet_plus.benchmark import models
from mmdet_plus.blendmask import blender

SMALL = ("mask-rcnn_r18-w16_shapes", "blendmask_r18_shapes")


@pytest.fixture(scope="module")
def record():
    return models.model_speed(SMALL, size=(96, 128), repeats=1)


def test_rows_compare_with_the_first(record):
    assert [row["model"] for row in record["rows"]] == list(SMALL)
    first, second = record["rows"]
    assert first["times_faster"] == 1 and record["size"] == [96, 128]
    assert second["times_faster"] == pytest.approx(first["seconds"] / second["seconds"], rel=0.05)
    assert all(row["images_per_second"] > 0 for row in record["rows"])


def test_models_find_what_they_may(record):
    assert [row["instances"] for row in record["rows"]] == [100, 100]


def test_blending_s_share_is_that_of_a_blendmask(record):
    assert [("blending_share" in row) for row in record["rows"]] == [False, True]
    assert 0 < record["rows"][1]["blending_share"] < 1


def test_only_blending_is_counted(monkeypatch):
    monkeypatch.setattr(blender, "blend_bases", lambda: time.sleep(0.05))
    before = blender.blend_bases

    def call():
        time.sleep(0.1)
        blender.blend_bases()

    assert 0.05 <= models.blending_seconds(call) < 0.1
    assert blender.blend_bases is before


def test_two_stage_proposals_have_few_likely_classes():
    model = models.build(SMALL[0])
    likely = []

    def count(module, inputs, output):
        likely.append((output.softmax(-1)[:, :-1] > 0.05).sum().item() / len(output))

    model.roi_head.bbox_head.fc_cls.register_forward_hook(count)
    models._call(model, torch.randint(0, 256, (3, 96, 128)).byte(), "cpu")()
    assert 0.3 < likely[0] < 5


def test_names_tell_whose_config_it_is():
    assert models.short_name(models.BASELINE) == "mmdet/mask-rcnn_r50-caffe_fpn_1x_coco"
    assert models.short_name("configs/shapes/a_b.py") == "a_b" == models.short_name("a_b")


def test_table(record):
    table = models.markdown(record)
    assert table.count("\n") == 4 and "| blendmask_r18_shapes |" in table
    assert f"{100 * record['rows'][1]['blending_share']:.1f} % |" in table
