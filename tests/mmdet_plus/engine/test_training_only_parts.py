"""MaskPlus's quasi-multitask branch from training to test, which neither builds nor needs it."""

import pytest
import tiny_zoo
import torch
from mmdet.apis import init_detector

from mmdet_plus.convert.publish import publish
from mmdet_plus.engine import prepare_test_cfg, prepare_train_cfg
from mmdet_plus.engine.training import build_runner

LOAD = "custom_imports = dict(imports=['mmdet_plus.engine', 'mmdet_plus.maskplus'])\n"
BRANCH = "roi_head.mask_head.quasi_branch."


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maskplus")
    data = tiny_zoo.make_data(folder / "data", num_images=3)
    config = tiny_zoo.write_config(folder / "tiny-maskplus.py", data, "mask-rcnn")
    switches = "model['roi_head'].update(type='MaskPlusRoIHead', quasi_multitask=0.5)\n"
    config.write_text(config.read_text() + LOAD + switches)
    options = {"train_cfg.max_iters": 2, "val_cfg": None, "val_evaluator": None}
    options["val_dataloader"] = None
    cfg = prepare_train_cfg(str(config), str(folder / "work"), cfg_options=options)
    build_runner(cfg).train()
    checkpoint = folder / "work/iter_2.pth"
    publish(checkpoint, folder / "published.pth")
    return str(config), str(checkpoint), str(folder / "published.pth")


def test_weights_that_are_given_away_lack_the_branch(trained):
    _, checkpoint, published = trained
    before, after = (torch.load(path, weights_only=False) for path in (checkpoint, published))
    branch = {name for name in before["state_dict"] if name.startswith(BRANCH)}
    assert branch and before["state_dict"].keys() - after["state_dict"].keys() == branch


def test_both_kinds_of_weights_are_tested_alike_without_the_branch(trained, tmp_path):
    config, *checkpoints = trained
    metrics = []
    for number, checkpoint in enumerate(checkpoints):
        options = {"visualizer.name": f"scaffolding-{number}"}
        cfg = prepare_test_cfg(config, checkpoint, str(tmp_path), cfg_options=options)
        runner = build_runner(cfg)
        names = [name for name, _ in runner.model.named_parameters()]
        assert not any("quasi" in name for name in names)
        metrics.append(runner.test())
        loaded = torch.load(checkpoint, weights_only=False)["state_dict"]
        for name, value in runner.model.state_dict().items():
            assert torch.equal(value, loaded[name]), name
    assert metrics[0] == metrics[1] and "coco/segm_mAP" in metrics[0]


def test_mmdet_s_own_way_to_a_detector_takes_them_too(trained):
    config, _, published = trained
    model = init_detector(config, published, device="cpu")
    weights = torch.load(published, weights_only=False)["state_dict"]
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in weights.items())
