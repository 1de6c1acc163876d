"""A plain Mask R-CNN of mmdet as the start of MR R-CNN."""

import copy
import functools
import http.server
import threading

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.runner import load_checkpoint, save_checkpoint
from tiny_mr_rcnn import losses_of, total

from mmdet_plus.convert import is_plain_mask_rcnn, mask_rcnn_to_mr_rcnn, refining_module


@pytest.fixture
def mask_rcnn(plain_cfg):
    """mmdet's own Mask R-CNN of the same size."""
    torch.manual_seed(7)
    return MODELS.build(copy.deepcopy(plain_cfg))


def check_initialised(model, source):
    ours, theirs = model.state_dict(), source.state_dict()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
        for head in ("bbox_head", "mask_head"):
            prefix = f"roi_head.{head}."
            if name.startswith(prefix):
                copied = f"roi_head.refining_{head}." + name.removeprefix(prefix)
                assert torch.equal(ours[copied], value), copied


def test_a_checkpoint_of_mmdet_initialises_both_stages(build, mask_rcnn, tmp_path):
    path = str(tmp_path / "mask_rcnn.pth")
    save_checkpoint(dict(state_dict=mask_rcnn.state_dict(), meta={}), path)
    model = build(seed=1)
    load_checkpoint(model, path, map_location="cpu", strict=True)
    check_initialised(model, mask_rcnn)


def test_load_from_an_address(build, mask_rcnn, tmp_path, monkeypatch):
    """What ``load_from`` does with an address of a model zoo, served from this machine."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "zoo"
    folder.mkdir()
    save_checkpoint(dict(state_dict=mask_rcnn.state_dict(), meta={}), str(folder / "m.pth"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        model = build(seed=1)
        load_checkpoint(model, f"http://127.0.0.1:{server.server_port}/m.pth", map_location="cpu")
        server.shutdown()
    check_initialised(model, mask_rcnn)


def test_both_stages_start_with_the_same_box_loss_where_the_guidance_is_one(
    build, mask_rcnn, batch
):
    """With P = 1 and B = RoI the refining box head sees what the vanilla one sees."""
    model = build(seed=1)
    model.load_state_dict(mask_rcnn.state_dict())
    for head in (model.roi_head.bbox_head, model.roi_head.refining_bbox_head):
        torch.nn.init.zeros_(head.fc_reg.weight)
        torch.nn.init.zeros_(head.fc_reg.bias)
    model.roi_head.mask_head.conv_logits.bias.data += 100.0
    losses = losses_of(model, batch)
    for name in ("loss_cls", "loss_bbox"):
        assert float(losses[f"refining.{name}"]) == pytest.approx(float(losses[name]), rel=1e-3)


def test_the_refining_mask_head_starts_as_the_mask_head(build, mask_rcnn):
    model = build(seed=1)
    torch.nn.init.normal_(model.roi_head.fusion.weight)
    model.load_state_dict(mask_rcnn.state_dict())
    head, x = model.roi_head, tuple(torch.randn(1, 64, 96 // s, 96 // s) for s in (4, 8, 16, 32))
    rois = torch.tensor([[0, 10.0, 10.0, 60.0, 70.0]])
    fused = head.fusion(head.conv_features(x, rois))
    trained = head.mask_head(head.mask_roi_extractor(x, rois))
    assert torch.equal(head.refine_mask(x, rois, fused), trained)


def test_loading_leaves_the_given_parameters_alone(build, mask_rcnn):
    """A large backbone is not copied on the way."""
    source = mask_rcnn.state_dict()
    seen = dict(source)
    build(seed=1)._load_from_state_dict(seen, "", {}, True, [], [], [])
    assert seen.keys() - source.keys() == build().state_dict().keys() - source.keys()
    assert all(seen[name] is value for name, value in source.items())


def test_a_checkpoint_of_ours_loads_as_it_is(build, batch):
    trained = build(seed=1)
    total(losses_of(trained, batch)).backward()
    torch.optim.SGD(trained.parameters(), 0.01).step()
    model = build(seed=2)
    model.load_state_dict(trained.state_dict())
    for name, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


def test_conversion_is_complete_and_shares_nothing(build, mask_rcnn):
    source = mask_rcnn.state_dict()
    before = {name: value.clone() for name, value in source.items()}
    converted = mask_rcnn_to_mr_rcnn(source)
    assert converted.keys() == build().state_dict().keys()
    for value in (*refining_module(source).values(), *converted.values()):
        value += 1
    assert all(torch.equal(value, before[name]) for name, value in source.items())
    places = [value.data_ptr() for value in converted.values()]
    assert len(set(places)) == len(places)


def test_what_is_no_mask_rcnn_is_refused(build, mask_rcnn):
    backbone = {k: v for k, v in mask_rcnn.state_dict().items() if k.startswith("backbone")}
    assert not is_plain_mask_rcnn(backbone)
    with pytest.raises(ValueError, match="found backbone.bn1"):
        mask_rcnn_to_mr_rcnn(backbone)
    with pytest.raises(ValueError, match="none of a refining module"):
        mask_rcnn_to_mr_rcnn(build().state_dict())
    with pytest.raises(ValueError, match="none at all"):
        mask_rcnn_to_mr_rcnn({})
