import pytest
import torch
from mmengine.config import Config
from torch import distributed as dist

from mmdet_plus.engine import distributed
from mmdet_plus.engine.errors import UserError

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


@pytest.fixture
def no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    yield monkeypatch
    if dist.is_initialized():
        dist.destroy_process_group()


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


def test_nothing_changes_without_a_launcher():
    cfg = Config(dict(model=dict(norm_cfg=dict(type="SyncBN"))))
    distributed.prepare_distributed(cfg, "none")
    assert cfg._cfg_dict == dict(launcher="none", model=dict(norm_cfg=dict(type="SyncBN")))
