import pytest
import tiny_zoo
import torch

from mmdet_plus.engine import prepare_train_cfg
from mmdet_plus.engine.amp import CPUAmpOptimWrapper
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.training import build_runner

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def test_mmcv_ops_take_bfloat16():
    from mmcv.ops import nms, roi_align

    weight = torch.nn.Parameter(torch.zeros(1))
    CPUAmpOptimWrapper(optimizer=torch.optim.SGD([weight], lr=0.1))
    torch.manual_seed(0)
    rois = torch.tensor([[0, 2.0, 3.0, 20.0, 30.0], [0, 0.0, 0.0, 9.0, 9.0]])
    exact = torch.rand(1, 4, 32, 32, requires_grad=True)
    half = exact.detach().bfloat16().requires_grad_()
    expected = roi_align(exact, rois, (5, 5), 1.0, 2)
    got = roi_align(half, rois.bfloat16(), (5, 5), 1.0, 2)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, atol=0.01, rtol=0.01)
    expected.sum().backward()
    got.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), exact.grad, atol=0.02, rtol=0.02)

    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 7.0], [9.0, 9.0, 12.0, 12.0]])
    scores = torch.tensor([0.5, 0.75, 0.25])
    kept = nms(boxes.bfloat16(), scores.bfloat16(), 0.5)[1]
    assert kept.tolist() == nms(boxes, scores, 0.5)[1].tolist() == [1, 2]


@pytest.mark.parametrize("kind", ["mask-rcnn", "fcn"])
def test_training_in_mixed_precision(tmp_path, kind):
    data = tiny_zoo.make_data(tmp_path / "data", num_images=4)
    config = tiny_zoo.write_config(tmp_path / "c.py", data, kind)
    options = {"train_cfg.max_iters": 2, "val_cfg": None, "val_evaluator": None}
    options["val_dataloader"] = None
    cfg = prepare_train_cfg(str(config), str(tmp_path / "w"), amp=True, cfg_options=options)
    runner = build_runner(cfg)
    before = {name: value.clone() for name, value in runner.model.state_dict().items()}
    dtypes = set()
    layer = runner.model.backbone.layer1[0].conv1
    layer.register_forward_hook(lambda module, inputs, output: dtypes.add(output.dtype))
    runner.train()
    after = runner.model.state_dict()
    assert dtypes == {torch.bfloat16}
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(before[name], after[name]) for name in after)


def test_optimiser_of_its_own_is_refused(tmp_path):
    data = tiny_zoo.make_data(tmp_path / "data", num_images=1)
    config = tiny_zoo.write_config(tmp_path / "c.py", data, "fcn")
    options = {"optim_wrapper.type": "OwnWrapper"}
    with pytest.raises(UserError, match="--amp: optim_wrapper.type is OwnWrapper"):
        prepare_train_cfg(str(config), amp=True, cfg_options=options)
