import copy
import pickle

import pytest
import tiny_zoo
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import find_latest_checkpoint
from torch.utils.data import DataLoader

from mmdet_plus.engine import prepare_train_cfg
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.resumable import (
    SeededBatchSampler,
    SeededDataset,
    SeededIndex,
    derive_seed,
    make_resumable,
)
from mmdet_plus.engine.training import build_runner

NO_VAL = dict(val_cfg=None, val_dataloader=None, val_evaluator=None)


class Recorder(Hook):
    """Keeps what each iteration computed, and in which order its images came."""

    def __init__(self):
        self.iterations = {}

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        values = {name: float(value) for name, value in outputs.items()}
        values["images"] = [sample.img_path for sample in data_batch["data_samples"]]
        values["pixels"] = [int(image.sum()) for image in data_batch["inputs"]]
        values["batch_idx"] = batch_idx
        values["lr"] = runner.optim_wrapper.get_lr()["lr"][0]
        self.iterations[runner.iter + 1] = values


def run(config, work_dir, resume=None, options=None):
    cfg = prepare_train_cfg(
        str(config),
        work_dir=str(work_dir),
        resume=resume,
        cfg_options={**NO_VAL, **(options or {})},
    )
    runner, recorder = build_runner(cfg), Recorder()
    runner.register_hook(recorder)
    runner.train()
    return recorder.iterations


def final_weights(work_dir):
    return torch.load(find_latest_checkpoint(str(work_dir)))["state_dict"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny_zoo.make_data(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize(
    ("kind", "epochs", "options", "stop", "workers"),
    [
        # An endless stream, loaded here or by workers, resumed with as many workers or others.
        ("mask-rcnn", 0, {}, 2, (0, 0)),
        ("mask-rcnn", 0, {}, 4, (2, 2)),
        ("fcn", 0, {}, 2, (2, 0)),
        # Two epochs of five batches: resumed within the first, at its end, within the second.
        ("mask-rcnn", 2, {}, 2, (0, 2)),
        ("mask-rcnn", 2, {"default_hooks.checkpoint.interval": 5}, 5, (0, 0)),
        ("fcn", 2, {}, 8, (2, 2)),
        # Iterations over a finite stream, resumed in its second round.
        (
            "mask-rcnn",
            0,
            {"train_dataloader.sampler.type": "DefaultSampler", "train_cfg.max_iters": 8},
            6,
            (0, 2),
        ),
    ],
)
def test_resumed_run_equals_unbroken_run(tmp_path, data, kind, epochs, options, stop, workers):
    config = tiny_zoo.write_config(tmp_path / "c.py", data, kind, epochs=epochs)
    loads = [{**options, "train_dataloader.num_workers": number} for number in workers]
    unbroken = run(config, tmp_path / "unbroken", options=loads[0])
    checkpoint = tmp_path / "unbroken" / f"iter_{stop}.pth"
    resumed = run(config, tmp_path / "resumed", resume=str(checkpoint), options=loads[1])

    assert len(unbroken) > stop
    assert resumed == {number: unbroken[number] for number in unbroken if number > stop}
    weights, expected = (final_weights(tmp_path / name) for name in ("resumed", "unbroken"))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    # Had nothing been random, the above would prove nothing.
    pixels = {tuple(values["pixels"]) for values in unbroken.values()}
    assert len(pixels) == len(unbroken)


def test_auto_resume_finds_the_latest_checkpoint_and_its_seed(tmp_path, data, monkeypatch):
    config = tiny_zoo.write_config(tmp_path / "c.py", data, "fcn")
    work = tmp_path / "work"
    first = prepare_train_cfg(str(config), work_dir=str(work), resume="auto")
    assert first.load_from is None
    run(config, work, options={"train_cfg.max_iters": 2, "randomness.seed": 77})
    moved = work.rename(tmp_path / "moved")
    cfg = prepare_train_cfg(str(config), work_dir=str(moved), resume="auto")
    assert cfg.load_from == str(moved / "iter_2.pth")
    assert cfg.resume and cfg.randomness.seed == 77
    (moved / "iter_2.pth").unlink()
    with pytest.raises(UserError, match=r"iter_2\.pth: named by .*last_checkpoint"):
        prepare_train_cfg(str(config), work_dir=str(moved), resume="auto")
    with pytest.raises(UserError, match=r"absent\.pth: there is no such checkpoint"):
        prepare_train_cfg(str(config), work_dir=str(moved), resume="absent.pth")


def test_auto_resume_without_a_checkpoint_starts_from_load_from(tmp_path, data):
    config = tiny_zoo.write_config(tmp_path / "c.py", data, "fcn")
    run(config, tmp_path / "first", options={"train_cfg.max_iters": 2})
    start = str(tmp_path / "first" / "iter_2.pth")
    cfg = prepare_train_cfg(
        str(config),
        work_dir=str(tmp_path / "second"),
        resume="auto",
        cfg_options={"load_from": start},
    )
    assert cfg.load_from == start and not cfg.get("resume")
    with pytest.raises(UserError, match=r"gone\.pth: there is no such .* \(load_from names it"):
        prepare_train_cfg(
            str(config),
            work_dir=str(tmp_path / "second"),
            resume="auto",
            cfg_options={"load_from": "gone.pth"},
        )


class Numbers:
    """Ten samples with a random part each."""

    metainfo = dict(classes=("a",))
    pipeline = "first"

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return index, float(torch.rand(1)), float(torch.rand(1))


def read(sampler_type, workers, epochs=1, limit=None, skip=0):
    dataset = SeededDataset(Numbers())
    sampler = sampler_type(dataset, shuffle=True, seed=3)
    batches = SeededBatchSampler(sampler, batch_size=4)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list)
    batches.num_skip = skip
    out = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for number, batch in enumerate(loader):
            if limit is not None and number >= limit:
                break
            out.append(batch)
    return out


@pytest.mark.parametrize("workers", [0, 2])
def test_samples_do_not_depend_on_workers_or_on_what_came_before(workers):
    two = read(DefaultSampler, 0, epochs=2)
    assert read(DefaultSampler, workers, epochs=2) == two
    assert read(DefaultSampler, workers, epochs=2, skip=4) == two[4:]
    assert len(two) == 6 and [len(batch) for batch in two[:3]] == [4, 4, 2]
    drawn = [sample[1] for batch in two for sample in batch]
    assert len(set(drawn)) == 20
    assert sorted(sample[0] for batch in two[:3] for sample in batch) == list(range(10))


@pytest.mark.parametrize("workers", [0, 2])
def test_fast_forward_of_an_open_stream(workers):
    expected = read(InfiniteSampler, 0, limit=9)
    dataset = SeededDataset(Numbers())
    batches = SeededBatchSampler(InfiniteSampler(dataset, seed=3), batch_size=4)
    loader = DataLoader(dataset, batch_sampler=batches, num_workers=workers, collate_fn=list)
    stream = iter(loader)
    for _ in range(batches.fast_forward(7)):
        next(stream)
    assert [next(stream), next(stream)] == expected[7:9]


def test_batch_sampler_wraps_a_configured_one():
    dataset = SeededDataset(Numbers())
    sampler = DefaultSampler(dataset, shuffle=False, seed=0)
    inner = dict(type=torch.utils.data.BatchSampler, drop_last=True)
    batches = SeededBatchSampler(sampler, batch_size=4, batch_sampler=inner)
    assert len(batches) == 2
    assert [[sample.index for sample in batch] for batch in batches] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_dataset_is_otherwise_the_wrapped_one():
    dataset = SeededDataset(Numbers())
    assert len(dataset) == 10 and dataset.metainfo == Numbers.metainfo
    dataset.pipeline = "second"
    assert dataset.dataset.pipeline == "second" == dataset.pipeline
    for clone in (pickle.loads(pickle.dumps(dataset)), copy.deepcopy(dataset)):
        assert clone[SeededIndex(4, 9)] == dataset[SeededIndex(4, 9)]
    assert dataset[SeededIndex(4, 9)] != dataset[SeededIndex(4, 10)]
    assert dataset[3][0] == 3
    with pytest.raises(AttributeError):
        _ = dataset.absent


def test_derived_seeds_differ():
    places = [(s, d, r, i) for s in range(3) for d in range(2) for r in range(3) for i in range(50)]
    seeds = {derive_seed(*place) for place in places}
    assert len(seeds) == len(places)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert derive_seed(1, 2) == derive_seed(1, 2) != derive_seed(2, 1)


def test_config_is_changed_once_and_only_if_wanted():
    def config(**extra):
        loader = dict(dataset=dict(type="D"), batch_size=2, drop_last=True, sampler=dict(type="S"))
        return Config(dict(train_dataloader=loader, train_cfg=dict(by_epoch=True), **extra))

    cfg = config()
    assert make_resumable(cfg)
    once = copy.deepcopy(cfg._cfg_dict)
    assert make_resumable(cfg) and cfg._cfg_dict == once
    assert cfg.train_cfg == dict(type="ResumableEpochBasedTrainLoop")
    assert cfg.train_dataloader.dataset.dataset == dict(type="D")
    assert cfg.train_dataloader.batch_sampler.drop_last and "drop_last" not in cfg.train_dataloader

    unwanted = config(deterministic_resume=False)
    assert not make_resumable(unwanted) and unwanted.train_cfg == dict(by_epoch=True)
    other = config()
    other.train_cfg = dict(type="OwnLoop")
    assert not make_resumable(other) and other.train_dataloader.dataset == dict(type="D")
