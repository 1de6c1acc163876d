"""Training whose every random number follows from (seed, rank, place in the training).

mmengine saves neither the state of the random generators nor the place in the data stream, so that
a resumed run flips other images, samples other RoIs and repeats or skips batches. Rather than save
more state, the classes here leave none to save: the generators are seeded anew before each sample
and before each iteration, from the seed and from the number of that sample or iteration. A run that
stops and resumes then equals one that never stopped, bit by bit, and so do runs with different
numbers of data workers.
"""

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dist import get_rank, sync_random_seed
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS, DATASETS, LOOPS
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop
from torch.utils.data import BatchSampler, Sampler

from mmdet_plus.engine.config import add_import

# The streams of random numbers: what is drawn for data shall not repeat in the model.
_DATA, _MODEL = 0, 1


def derive_seed(*numbers: int) -> int:
    """Mix integers into one seed.

    Args:
        numbers: Non-negative integers; any change of one changes the result.

    Returns:
        A seed in [0, 2**32).
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_generators(seed: int, cuda: bool = True) -> None:
    """Seed Python's, numpy's and torch's global generators.

    Args:
        seed: In [0, 2**32).
        cuda: Seed those of all CUDA devices as well.
    """
    random.seed(seed)
    np.random.seed(seed)
    if cuda:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class SeededIndex(NamedTuple):
    """The index of a sample, and the seed for its augmentation."""

    index: Any
    seed: int


@DATASETS.register_module()
class SeededDataset:
    """Wraps a data set and seeds the generators before each sample that comes with a seed.

    Everything but indexing is the wrapped data set's own.

    Args:
        dataset: The data set, or the config of one.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, SeededIndex):
            seed_generators(index.seed, cuda=False)
            index = index.index
        return self.dataset[index]

    def __getattr__(self, name: str) -> Any:
        # Unpickling asks for attributes before there is a data set to ask.
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @property
    def pipeline(self) -> Any:
        """The wrapped data set's transforms, which hooks replace in the course of a training."""
        return self.dataset.pipeline

    @pipeline.setter
    def pipeline(self, pipeline: Any) -> None:
        self.dataset.pipeline = pipeline


@DATA_SAMPLERS.register_module()
class SeededBatchSampler(BatchSampler):
    """Gives every sample of every batch a seed, and can start in the middle of the stream.

    Args:
        sampler: Yields sample indices; its order must follow from its seed and epoch alone.
        batch_size: Samples a batch.
        drop_last: Leave out a last batch that is not full.
        batch_sampler: Config of the batch sampler that groups the indices; torch's if None.
        seed: Of the augmentation; the sampler's own if None.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict | None = None,
        seed: int | None = None,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.batches = BatchSampler(sampler, batch_size, drop_last)
        if batch_sampler is not None:
            defaults = dict(sampler=sampler, batch_size=batch_size)
            self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=defaults)
        seed = getattr(sampler, "seed", None) if seed is None else seed
        self.seed = sync_random_seed() if seed is None else seed
        self.rank = get_rank()
        self.num_skip = 0
        self._num_out = 0

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        epoch = getattr(self.sampler, "epoch", 0)
        self._num_out = 0
        for number, batch in enumerate(self.batches):
            if self.num_skip > 0:
                self.num_skip -= 1
                continue
            self._num_out += 1
            place = (self.seed, _DATA, self.rank, epoch, number)
            yield [SeededIndex(index, derive_seed(*place, i)) for i, index in enumerate(batch)]

    def fast_forward(self, num_batches: int) -> int:
        """Leave out the next batches of a stream that has been opened but not yet read.

        Args:
            num_batches: How many batches from the start of the stream are not wanted.

        Returns:
            How many of them have left for the data workers already; the reader drops these itself.
        """
        num_out = min(self._num_out, num_batches)
        self.num_skip = num_batches - num_out
        return num_out


class _SeededIterations:
    """Mixin of the loops: seeds the generators before each iteration."""

    def run_iter(self, *args: Any) -> None:
        seed_generators(derive_seed(self.runner.seed, _MODEL, get_rank(), self._iter))
        super().run_iter(*args)


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(_SeededIterations, EpochBasedTrainLoop):
    """Epoch-based training that resumes at the iteration, not at the epoch, where it stopped."""

    _first = 0

    def run_epoch(self) -> None:
        """Run what is left of the epoch."""
        self._first = self._iter - self._epoch * len(self.dataloader)
        if self._first > 0:
            self.dataloader.batch_sampler.num_skip = self._first
            print_log(f"Resume at iteration {self._first} of the epoch", logger="current")
        super().run_epoch()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Run one iteration, under its number within the whole epoch."""
        super().run_iter(idx + self._first, data_batch)


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(_SeededIterations, IterBasedTrainLoop):
    """Iteration-based training that resumes without loading the batches of before."""

    def run(self) -> torch.nn.Module:
        """Run what is left of the training."""
        if self._iter > 0:
            num_loaded = self.dataloader.batch_sampler.fast_forward(self._iter)
            self.dataloader_iterator = _ResumedIterator(
                self.dataloader_iterator, self._iter - num_loaded
            )
        return super().run()


class _ResumedIterator:
    """Answers with nothing for the batches that the sampler leaves out."""

    def __init__(self, iterator: Iterator, num_left_out: int) -> None:
        self._iterator = iterator
        self._num_left_out = num_left_out

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        if self._num_left_out > 0:
            self._num_left_out -= 1
            return None
        return next(self._iterator)

    def skip_iter(self, num_iters: int) -> None:
        """Drop batches: what mmengine's fork calls where mmengine itself calls ``next``."""
        for _ in range(num_iters):
            next(self)


_LOOPS = {
    "EpochBasedTrainLoop": "ResumableEpochBasedTrainLoop",
    "IterBasedTrainLoop": "ResumableIterBasedTrainLoop",
}


def make_resumable(cfg: Config) -> bool:
    """Put this module's loop, data set wrapper and batch sampler into a training config.

    ``deterministic_resume = False`` in the config keeps mmengine's own behaviour, and so does a
    training loop other than mmengine's two.

    Args:
        cfg: Changed in place. Changing it a second time does nothing.

    Returns:
        Whether a training from this config resumes exactly.
    """
    train_cfg, loader = cfg.get("train_cfg"), cfg.get("train_dataloader")
    if not cfg.get("deterministic_resume", True) or not train_cfg or not loader:
        return False
    kind = train_cfg.get("type") or (
        "EpochBasedTrainLoop" if train_cfg.get("by_epoch") else "IterBasedTrainLoop"
    )
    kind = kind if isinstance(kind, str) else kind.__name__
    kind = kind.rpartition(".")[2]
    if kind in _LOOPS.values():
        return True
    if kind not in _LOOPS:
        print_log(f"{kind} is not known here: a resumed run will differ from an unbroken one")
        return False
    train_cfg.pop("by_epoch", None)
    train_cfg.type = _LOOPS[kind]
    loader.dataset = dict(type="mmengine.SeededDataset", dataset=loader.dataset)
    loader.batch_sampler = dict(
        type="mmengine.SeededBatchSampler",
        drop_last=loader.pop("drop_last", False),
        batch_sampler=loader.get("batch_sampler"),
    )
    add_import(cfg, "mmdet_plus.engine")
    return True
