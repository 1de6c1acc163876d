"""Distributed jobs on machines without a GPU: gloo instead of nccl, no device numbers."""

import datetime
import gc
import os
import subprocess

import torch
from mmengine.config import Config
from mmengine.dist import all_reduce_params
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import distributed as dist
from torch.nn import SyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from mmseg_plus.common.errors import UserError


@HOOKS.register_module()
class SyncStatisticsHook(Hook):
    """Averages the running statistics of batch normalisation over the processes.

    Each process normalises with its own batch and keeps its own running statistics. Without this
    every process would validate its share with another model, and only the first one's would be
    saved. mmengine's ``SyncBuffersHook`` averages before a validation, when the checkpoint of that
    iteration is written already; here they are the same in all processes after each iteration.
    SyncBN, and layers that are frozen, are left alone.
    """

    # Before averages of weights and before checkpoints.
    priority = "ABOVE_NORMAL"

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: object = None
    ) -> None:
        """Average what this iteration has changed."""
        all_reduce_params(
            [
                statistics
                for layer in runner.model.modules()
                if isinstance(layer, _BatchNorm) and not isinstance(layer, SyncBatchNorm)
                if layer.training and layer.track_running_stats
                for statistics in (layer.running_mean, layer.running_var)
            ],
            op="mean",
        )


def prepare_distributed(cfg: Config, launcher: str) -> None:
    """Make a config run under a launcher, on CPU processes too.

    With CUDA this only records the launcher: mmengine does the rest. Without, mmengine would call
    ``torch.cuda.set_device`` and hand device numbers to the model wrapper. So the process group is
    opened here, with gloo, and the config changes the wrapper and the layers that need a GPU.

    Args:
        cfg: Changed in place.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        UserError: The launcher's environment variables are not there.
    """
    cfg.launcher = launcher
    if launcher == "none" or torch.cuda.is_available():
        return
    dist_cfg = (cfg.get("env_cfg") or {}).get("dist_cfg") or {}
    open_cpu_group(launcher, timeout=dist_cfg.get("timeout"))
    cfg.merge_from_dict({"env_cfg.dist_cfg": {"_delete_": True, "backend": "gloo"}})
    wrapper = dict(cfg.get("model_wrapper_cfg") or {})
    wrapper.setdefault("type", "MMDistributedDataParallel")
    wrapper.setdefault("broadcast_buffers", False)
    wrapper.setdefault("find_unused_parameters", cfg.get("find_unused_parameters", False))
    wrapper["device_ids"] = None
    cfg.model_wrapper_cfg = wrapper
    if _replace_sync_bn(cfg.model) and dist.get_rank() == 0:
        print_log("SyncBN needs a GPU: here every process normalises with its own batch")
    if cfg.get("sync_bn"):
        cfg.sync_bn = None


def open_cpu_group(launcher: str, timeout: float | None = None) -> None:
    """Open torch's default process group with gloo, unless it is open.

    Args:
        launcher: ``pytorch`` (torchrun's variables), ``slurm`` or ``mpi`` (Open MPI's).
        timeout: Seconds after which a silent process ends the job; torch's default if None.

    Raises:
        UserError: The launcher's environment variables are not there.
    """
    if dist.is_initialized():
        return
    names = {
        "pytorch": ("RANK", "WORLD_SIZE", "LOCAL_RANK"),
        "slurm": ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
        "mpi": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),
    }[launcher]
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(
            f"--launcher {launcher}: {', '.join(missing)} not set in the environment; start the "
            "job through tools/dist_train.sh, dist_test.sh, slurm_train.sh or slurm_test.sh"
        )
    for target, name in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), names, strict=True):
        os.environ[target] = os.environ[name]
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"] = _first_slurm_host() if launcher == "slurm" else "127.0.0.1"
    options = {} if timeout is None else {"timeout": datetime.timedelta(seconds=timeout)}
    dist.init_process_group("gloo", **options)


def close_process_group() -> None:
    """End torch's default process group and its threads while the interpreter is there.

    To let go of a tensor a thread of gloo's takes the interpreter's lock. If Python is shutting
    down by then, the process aborts, and a training that has succeeded ends with an error.

    The group ends with the last of its owners. That must not be a wrapped model: it would wait for
    the threads and hold the lock, and the process would stand still for good. So the caller keeps
    no wrapped model; those in cycles of references, as runners make them, are collected here.
    """
    gc.collect()
    dist.destroy_process_group()


def _first_slurm_host() -> str:
    if os.environ.get("SLURM_NNODES", "1") == "1":
        return "127.0.0.1"
    nodes = os.environ.get("SLURM_JOB_NODELIST") or os.environ.get("SLURM_NODELIST", "")
    try:
        command = ["scontrol", "show", "hostnames", nodes]
        hosts = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"scontrol cannot name the first of {nodes!r}; set MASTER_ADDR") from error
    return hosts[0]


def _replace_sync_bn(node: object) -> bool:
    """Turn SyncBN into BN throughout a model's config; tell whether there was any."""
    found = False
    if isinstance(node, dict):
        if node.get("type") in ("SyncBN", "MMSyncBN", "mmseg.SyncBN", "mmdet.SyncBN"):
            node["type"] = "BN"
            found = True
        for value in node.values():
            found |= _replace_sync_bn(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            found |= _replace_sync_bn(value)
    return found
