import pickle

import pytest
from torch.utils.data import DataLoader, Dataset

from mmdet_plus.datasets import AnnotationError, MissingDataError
from mmdet_plus.engine import errors
from mmdet_plus.engine.errors import UserError, run_command


class Faulty(Dataset):
    """Raises an error of its own while it handles another."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        try:
            return {}[index]
        except KeyError as cause:
            raise self.error from cause


@pytest.fixture
def alone(monkeypatch):
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "MMPLUS_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def failing(error):
    def job():
        raise error

    return job


@pytest.mark.parametrize("kind", [UserError, AnnotationError, MissingDataError])
@pytest.mark.parametrize("workers", [0, 1])
def test_faults_of_data_are_told_without_a_traceback(alone, capfd, kind, workers):
    text = "a.json: 2 faults:\n  image 1: lost\n  image 2: lost"
    loader = DataLoader(Faulty(kind(text)), num_workers=workers)
    assert run_command(lambda: list(loader)) == 2
    assert capfd.readouterr().err == f"error: {text}\n"
    alone.setenv("MMPLUS_DEBUG", "1")
    with pytest.raises(kind):
        run_command(lambda: list(loader))


def test_a_message_that_only_looks_like_a_worker_s_is_kept(alone, capsys):
    run_command(failing(UserError("Caught cold in DataLoader worker process 0")))
    run_command(failing(pickle.UnpicklingError("a.pth: no")))
    text = "error: Caught cold in DataLoader worker process 0\nerror: a.pth: no\n"
    assert capsys.readouterr().err == text


@pytest.mark.parametrize("name", ["RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"])
def test_other_ranks_wait_and_then_speak(alone, capsys, name):
    spoken_after = []
    alone.setattr(errors.time, "sleep", lambda s: spoken_after.append((s, capsys.readouterr().err)))
    alone.setenv(name, "3")
    assert run_command(failing(UserError("a.json: no"))) == 2
    assert capsys.readouterr().err == "rank 3: error: a.json: no\n"
    assert spoken_after == [(errors._PATIENCE, "")]
    alone.setenv(name, "0")
    assert run_command(failing(UserError("a.json: no"))) == 2
    assert capsys.readouterr().err == "error: a.json: no\n"
    assert len(spoken_after) == 1


def test_the_launcher_s_rank_counts_before_the_cluster_s(alone, capsys):
    # torchrun inside of a Slurm task.
    alone.setenv("SLURM_PROCID", "1")
    alone.setenv("RANK", "0")
    assert run_command(failing(UserError("no"))) == 2
    assert capsys.readouterr().err == "error: no\n"
