import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from small_training import small_options
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from mmdet_plus.datasets import make_shapes
from mmdet_plus.engine import distributed, prepare_train_cfg
from mmdet_plus.engine.errors import UserError, run_command

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@pytest.fixture
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    yield monkeypatch
    if dist.is_initialized():
        distributed.close_process_group()


@pytest.mark.parametrize("launcher", ["pytorch", "slurm", "mpi"])
def test_launcher_that_is_not_there(no_launcher, launcher):
    with pytest.raises(UserError, match="not set in the environment"):
        distributed.open_cpu_group(launcher)


def test_config_for_processes_without_gpu(no_launcher, tmp_path):
    for name, value in dict(SLURM_PROCID="0", SLURM_NTASKS="1", SLURM_LOCALID="0").items():
        no_launcher.setenv(name, value)
    no_launcher.setenv("MASTER_PORT", "0")
    norm = dict(type="SyncBN", requires_grad=True)
    cfg = Config(
        dict(
            model=dict(norm_cfg=norm, heads=[dict(norm_cfg=dict(norm))]),
            env_cfg=dict(dist_cfg=dict(backend="nccl", timeout=60)),
            find_unused_parameters=True,
        )
    )
    distributed.prepare_distributed(cfg, "slurm")
    assert dist.get_backend() == "gloo" and dist.get_world_size() == 1
    assert cfg.launcher == "slurm" and cfg.env_cfg.dist_cfg == dict(backend="gloo")
    assert cfg.model.norm_cfg.type == cfg.model.heads[0].norm_cfg.type == "BN"
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.model_wrapper_cfg.find_unused_parameters


def threads_of_gloo():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return [name for name in names if "gloo" in name]


@pytest.mark.skipif(sys.platform != "linux", reason="reads the names of threads")
def test_a_command_leaves_no_process_group_open(no_launcher):
    """Its threads could abort the process while the interpreter shuts down."""
    for name, value in dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_PORT="0").items():
        no_launcher.setenv(name, value)
    seen = []

    def job():
        distributed.open_cpu_group("pytorch")
        model = DistributedDataParallel(torch.nn.Linear(2, 1))
        # As hooks and runner do.
        model.runner = [model]
        seen.append(len(threads_of_gloo()))

    for _ in range(2):
        assert run_command(job) == 0
        assert not dist.is_initialized() and threads_of_gloo() == []
    assert min(seen) > 0


def test_nothing_changes_without_a_launcher():
    cfg = Config(dict(model=dict(norm_cfg=dict(type="SyncBN"))))
    distributed.prepare_distributed(cfg, "none")
    assert cfg._cfg_dict == dict(launcher="none", model=dict(norm_cfg=dict(type="SyncBN")))


# What a process does whose first number is its rank.
STATISTICS = """
import json, sys
from types import SimpleNamespace
import torch
from torch import distributed, nn
from mmdet_plus.engine import SyncStatisticsHook

rank, store = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
model = nn.ModuleDict(dict(own=nn.BatchNorm2d(1, momentum=0.5), frozen=nn.BatchNorm2d(1)))
model["frozen"].running_mean.fill_(0.1 + rank)
model["frozen"].eval()
hook, means = SyncStatisticsHook(), []
for step in range(2):
    model["own"](torch.full((1, 1, 2, 2), 4.0 * rank + step))
    hook.after_train_iter(SimpleNamespace(model=model), step)
    means.append(model["own"].running_mean.item())
print(json.dumps(means + [model["own"].running_var.item(), model["frozen"].running_mean.item()]))
"""


def test_running_statistics_are_those_of_all_processes(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", STATISTICS, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    found = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    for rank, (first, second, variance, frozen) in enumerate(found):
        # 0 and 4, then 1 and 5; half of each goes in.
        assert first == 1.0 and second == 0.5 * 1.0 + 0.5 * 3.0
        assert variance == 0.25
        assert frozen == pytest.approx(0.1 + rank)


def test_every_distributed_training_has_the_hook(no_launcher, tmp_path):
    for name, value in dict(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_PORT="0").items():
        no_launcher.setenv(name, value)
    sets = make_shapes(
        tmp_path / "set", num_train=2, num_val=1, image_size=(64, 64), progress=False
    )
    options = small_options(sets)
    hooks = {}
    for launcher in ("none", "pytorch"):
        cfg = prepare_train_cfg(
            "mask-rcnn_r18_shapes",
            work_dir=str(tmp_path),
            launcher=launcher,
            cfg_options=dict(options),
        )
        hooks[launcher] = [hook["type"] for hook in cfg.get("custom_hooks") or []]
    assert hooks["pytorch"] == [*hooks["none"], "mmengine.SyncStatisticsHook"]
