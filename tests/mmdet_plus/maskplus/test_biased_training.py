"""Biased training: which losses weigh more, by how much, and until when."""

import copy
import itertools
import logging
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import OptimWrapper
from mmengine.registry import HOOKS, MODEL_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from mmdet_plus.engine import UserError, use_safe_checkpoint_loading
from mmdet_plus.engine.distributed import close_process_group
from mmdet_plus.maskplus import BiasedTrainingHook

_NUMBERS = itertools.count()


class Toy(BaseModel):
    """Losses of all kinds, of one parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([2.0]))

    def forward(self, inputs, data_samples=None, mode="tensor"):
        value = self.weight * torch.stack(list(inputs)).float().mean()
        if mode == "loss":
            return {
                "loss_cls": value,
                "loss_mask": 2 * value,
                "s1.loss_mask_quasi": 3 * value,
                "loss_rpn": [value, 5 * value],
                "acc": value.detach(),
                "s1.acc": value.detach(),
            }
        # Whatever else a model gives, the names of losses in it are none.
        return {"loss_mask": value} if mode == "tensor" else [value]


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return dict(inputs=torch.tensor([1.0 + 0.1 * index]))


class Record(Hook):
    """What was logged in each iteration."""

    priority = "LOWEST"

    def __init__(self):
        self.losses, self.weights = [], []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: value.item() for name, value in outputs.items()})
        self.weights.append(runner.message_hub.get_scalar("train/biased_weight").current())


def runner_of(work_dir, hook, epochs=None, iters=6, model=None, **given):
    """A runner of the toy; a set of 6 samples, two a batch, 3 iterations an epoch."""
    record = Record()
    hook = dict(hook, type="BiasedTrainingHook") if isinstance(hook, dict) else hook
    by_epoch = epochs is not None
    train = dict(by_epoch=True, max_epochs=epochs) if by_epoch else dict(by_epoch=False)
    loader = dict(
        batch_size=2,
        num_workers=0,
        dataset=Data(),
        sampler=dict(type="DefaultSampler" if by_epoch else "InfiniteSampler", shuffle=True),
    )
    runner = Runner(
        model=model or Toy(),
        work_dir=str(work_dir),
        train_dataloader=loader,
        train_cfg=train if by_epoch else dict(train, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.01)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1, by_epoch=by_epoch)),
        custom_hooks=[hook, record],
        log_level=logging.ERROR,
        randomness=dict(seed=1),
        experiment_name=f"biased_training_{next(_NUMBERS)}",
        default_scope="mmengine",
        **given,
    )
    return runner, record


def losses_of(model, mode="loss", **kwargs):
    return model(inputs=[torch.tensor([1.0])], mode=mode, **kwargs)


@pytest.fixture
def listening():
    """A hook that weighs the losses of a model, as in iteration ``done`` of ten."""

    def listen(model=None, done=0, **kwargs):
        model = model or Toy()
        hook = BiasedTrainingHook(**kwargs)
        runner = SimpleNamespace(
            model=model,
            iter=done,
            epoch=done // 2,
            max_iters=10,
            train_loop=None,
            message_hub=SimpleNamespace(update_scalar=lambda *args: None),
        )
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
        return hook, runner

    return listen


# Which losses


@pytest.mark.parametrize(
    ("losses", "weighed"),
    [
        (None, {"loss_mask", "s1.loss_mask_quasi"}),
        (("*loss_mask*",), {"loss_mask", "s1.loss_mask_quasi"}),
        ("loss_mask", {"loss_mask"}),
        (["loss_mask", "loss_cls"], {"loss_mask", "loss_cls"}),
        (["*quasi"], {"s1.loss_mask_quasi"}),
        (["loss_rpn"], {"loss_rpn"}),
        (["loss_*", "*mask"], {"loss_cls", "loss_mask", "loss_rpn"}),
        # An accuracy is no loss, and stays what it is.
        (["s1.*"], {"s1.loss_mask_quasi"}),
        (["*"], {"loss_cls", "loss_mask", "s1.loss_mask_quasi", "loss_rpn"}),
    ],
)
def test_losses_by_pattern(listening, losses, weighed):
    model = Toy()
    plain = losses_of(model)
    hook, runner = listening(model, weight=1.25, **({} if losses is None else {"losses": losses}))
    got = losses_of(model)
    assert list(got) == list(plain)
    for name, value in plain.items():
        factor = 1.25 if name in weighed else 1
        if isinstance(value, list):
            assert isinstance(got[name], list) and len(got[name]) == len(value)
            assert got[name] == [factor * part for part in value]
        else:
            assert got[name] == factor * value
    # The gradient is that of what the log shows.
    (gradient,) = torch.autograd.grad(
        sum(got[name] for name in ("loss_cls", "loss_mask")), [model.weight]
    )
    assert gradient.item() == pytest.approx(
        sum(f * (1.25 if n in weighed else 1) for n, f in (("loss_cls", 1), ("loss_mask", 2)))
    )


def test_defaults_are_those_of_the_paper():
    hook = BiasedTrainingHook()
    assert (hook.weight, hook.switch, hook.by) == (1.5, 0.5, "fraction")
    assert hook.losses == ("*loss_mask*",)
    assert isinstance(HOOKS.build(dict(type="BiasedTrainingHook")), BiasedTrainingHook)


def test_an_unknown_loss_is_told(listening):
    model = Toy()
    listening(model, losses=["loss_mask", "s?.loss_masks"])
    with pytest.raises(UserError, match=r"no loss is called 's\?.loss_masks'; Toy has loss_cls, "):
        losses_of(model)


def test_patterns_are_of_names_in_full_and_case(listening):
    for pattern in ("mask", "LOSS_MASK", "acc"):
        model = Toy()
        listening(model, losses=[pattern])
        with pytest.raises(UserError, match=f"'{pattern}'"):
            losses_of(model)


def test_a_later_batch_may_lack_a_loss(listening):
    """A box head without RoIs gives no classification loss; days of training shall not end so."""
    model = Toy()
    listening(model, losses=["*loss_mask*", "loss_cls"])
    losses_of(model)
    whole = Toy.forward
    model.forward = lambda *args, **kwargs: {
        name: value for name, value in whole(model, *args, **kwargs).items() if name != "loss_cls"
    }
    losses = losses_of(model)
    assert "loss_cls" not in losses and losses["loss_mask"] == 1.5 * 2 * 2


@pytest.mark.parametrize("mode", ["predict", "tensor", None])
def test_other_modes_are_left_alone(listening, mode):
    model = Toy()
    kwargs = {} if mode is None else {"mode": mode}
    inputs = [torch.tensor([1.0])]
    plain = model(inputs, **kwargs)
    listening(model, weight=7)
    got = model(inputs, **kwargs)
    assert got == plain
    assert losses_of(model)["loss_mask"] == 7 * 2 * 2


def test_the_mode_may_come_by_position(listening):
    model = Toy()
    listening(model, weight=7)
    assert model([torch.tensor([1.0])], None, "loss")["loss_mask"] == 7 * 2 * 2
    assert model([torch.tensor([1.0])], None, "tensor")["loss_mask"] == 2


# Until when


@pytest.mark.parametrize(
    ("given", "weights"),
    [
        (dict(), [1.5] * 5 + [1] * 5),
        (dict(switch=0.3), [1.5] * 3 + [1] * 7),
        (dict(switch=0.35), [1.5] * 4 + [1] * 6),
        (dict(switch=0), [1] * 10),
        (dict(switch=1), [1.5] * 10),
        (dict(switch=7, by="iter"), [1.5] * 7 + [1] * 3),
        (dict(switch=20, by="iter"), [1.5] * 10),
        (dict(switch=2, by="epoch"), [1.5] * 4 + [1] * 6),
        (dict(switch=1.5, by="epoch", weight=0.25), [0.25] * 4 + [1] * 6),
    ],
)
def test_the_switch(listening, given, weights):
    """Ten iterations, two an epoch."""
    got = []
    for done in range(10):
        model = Toy()
        hook, _ = listening(model, done=done, **given)
        got.append(hook.current)
        assert losses_of(model)["loss_mask"] == hook.current * 4
    assert got == weights


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (dict(losses=[]), "name at least one"),
        (dict(weight=-0.1), "weight must be 0 or more, got -0.1"),
        (dict(by="iteration"), "by must be 'fraction', 'iter' or 'epoch', got 'iteration'"),
        (dict(switch=1.1), r"switch must be in \[0, 1\], got 1.1"),
        (dict(switch=-1), "got -1"),
        (dict(switch=-1, by="iter"), "switch must be 0 or more, got -1"),
    ],
)
def test_wrong_settings_are_named(given, text):
    with pytest.raises(ValueError, match=text):
        BiasedTrainingHook(**given)


# In a training


@pytest.mark.parametrize(
    ("hook", "weights"),
    [
        (dict(), [1.5, 1.5, 1.5, 1, 1, 1]),
        (dict(switch=2, by="iter", weight=2.0), [2, 2, 1, 1, 1, 1]),
    ],
)
def test_a_training_in_iterations(tmp_path, hook, weights):
    runner, record = runner_of(tmp_path, hook)
    runner.train()
    assert record.weights == weights
    # The log has the losses that are trained on.
    for losses, weight in zip(record.losses, weights, strict=True):
        assert losses["loss_mask"] == pytest.approx(2 * weight * losses["loss_cls"])
        assert losses["s1.loss_mask_quasi"] == pytest.approx(3 * weight * losses["loss_cls"])
        assert losses["loss_rpn"] == pytest.approx(6 * losses["loss_cls"])
        parts = ("loss_cls", "loss_mask", "s1.loss_mask_quasi", "loss_rpn")
        assert losses["loss"] == pytest.approx(sum(losses[name] for name in parts))


@pytest.mark.parametrize(
    ("hook", "weights"),
    [
        (dict(), [1.5] * 5 + [1] * 4),
        (dict(switch=1, by="epoch"), [1.5] * 3 + [1] * 6),
        (dict(switch=4, by="iter"), [1.5] * 4 + [1] * 5),
    ],
)
def test_a_training_in_epochs(tmp_path, hook, weights):
    """Three epochs of three iterations; half of nine is four and a half."""
    runner, record = runner_of(tmp_path, hook, epochs=3)
    runner.train()
    assert record.weights == weights


def test_epochs_of_a_training_in_iterations_are_refused(tmp_path):
    runner, record = runner_of(tmp_path, dict(switch=1, by="epoch"))
    with pytest.raises(UserError, match="by='epoch' needs a training in epochs"):
        runner.train()
    assert record.weights == []


def test_an_unknown_loss_ends_a_training_at_once(tmp_path):
    runner, record = runner_of(tmp_path, dict(losses=["loss_masks"]))
    with pytest.raises(UserError, match="no loss is called 'loss_masks'; Toy has loss_cls, loss_m"):
        runner.train()
    assert record.weights == []


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_training_in_epochs_goes_on_as_if_it_had_not_stopped(tmp_path, stop):
    use_safe_checkpoint_loading()
    whole, unbroken = runner_of(tmp_path / "whole", dict(), epochs=4)
    whole.train()
    assert unbroken.weights == [1.5] * 6 + [1] * 6
    checkpoint = str(tmp_path / f"whole/epoch_{stop}.pth")
    again, resumed = runner_of(
        tmp_path / "again", dict(), epochs=4, load_from=checkpoint, resume=True
    )
    again.train()
    assert resumed.weights == unbroken.weights[3 * stop :]
    assert resumed.losses == unbroken.losses[3 * stop :]
    assert torch.equal(again.model.weight, whole.model.weight)


@pytest.mark.parametrize("stop", [2, 3, 4])
def test_a_resumed_training_in_iterations_goes_on_as_if_it_had_not_stopped(tmp_path, stop):
    use_safe_checkpoint_loading()
    whole, unbroken = runner_of(tmp_path / "whole", dict())
    whole.train()
    checkpoint = str(tmp_path / f"whole/iter_{stop}.pth")
    again, resumed = runner_of(tmp_path / "again", dict(), load_from=checkpoint, resume=True)
    again.train()
    assert resumed.weights == [1.5, 1.5, 1.5, 1, 1, 1][stop:]
    assert resumed.losses == unbroken.losses[stop:]
    assert torch.equal(again.model.weight, whole.model.weight)


def test_a_training_made_longer_switches_at_its_own_half(tmp_path):
    use_safe_checkpoint_loading()
    runner_of(tmp_path / "short", dict(), iters=4)[0].train()
    checkpoint = str(tmp_path / "short/iter_4.pth")
    longer, record = runner_of(
        tmp_path / "long", dict(), iters=10, load_from=checkpoint, resume=True
    )
    longer.train()
    assert record.weights == [1.5] + [1] * 5


def test_the_model_is_left_as_it_was(tmp_path):
    model = Toy()
    plain = losses_of(model)
    runner, _ = runner_of(tmp_path, dict(switch=1.0), model=model)
    runner.train()
    assert not model._forward_hooks
    with torch.no_grad():
        model.weight.fill_(2.0)
    assert losses_of(model)["loss_mask"] == plain["loss_mask"]
    copy.deepcopy(model)


@MODEL_WRAPPERS.register_module()
class TransparentWrapper(nn.Module):
    """Calls its model, as wrappers of mmengine do."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_a_wrapped_model_is_listened_to(listening):
    model = Toy()
    wrapper = TransparentWrapper(model)
    hook, runner = listening(wrapper)
    assert losses_of(wrapper)["loss_mask"] == 1.5 * 4
    hook.after_train(runner)
    assert losses_of(wrapper)["loss_mask"] == 4
    assert not model._forward_hooks and not wrapper._forward_hooks
    # It is the model that is listened to, and named.
    listening(wrapper, losses=["loss_masks"])
    with pytest.raises(UserError, match="; Toy has loss_cls"):
        losses_of(model)


@pytest.fixture
def process_group(tmp_path):
    """A group of this process alone. It closes when the test's models are gone."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    close_process_group()


def test_a_distributed_model_is_listened_to(process_group, listening):
    model = MMDistributedDataParallel(Toy())
    hook, runner = listening(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    log = model.train_step(dict(inputs=[torch.tensor([1.0])]), OptimWrapper(optimizer))
    assert log["loss_mask"].item() == 1.5 * 4
    # d/dw of w + 1.5 (2 w + 3 w) + 6 w, times the learning rate.
    assert model.module.weight.item() == pytest.approx(2 - 0.1 * 14.5)
    hook.after_train(runner)
    assert losses_of(model.module)["loss_cls"] > 0 and not model.module._forward_hooks
