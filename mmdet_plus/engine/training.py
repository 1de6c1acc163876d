"""What ``tools/train.py`` does."""

import itertools
import re
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint

from mmdet_plus.engine.class_match import add_class_match
from mmdet_plus.engine.config import add_hook, load_config, scope_of, set_work_dir
from mmdet_plus.engine.data_check import check_data
from mmdet_plus.engine.distributed import prepare_distributed
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.resumable import make_resumable
from mmseg_plus.common.compat import read_checkpoint_records, use_safe_checkpoint_loading

_RUNNERS_BUILT = itertools.count(1)


def prepare_train_cfg(
    config: str,
    work_dir: str | None = None,
    resume: str | None = None,
    amp: bool = False,
    auto_scale_lr: bool = False,
    cfg_options: dict | None = None,
    launcher: str = "none",
) -> Config:
    """Turn the command line's choices into a config that a runner can be built from.

    Under a launcher on a machine without a GPU this opens the process group.

    Args:
        config: Path or name of the config.
        work_dir: Folder for logs and checkpoints; the config's, or one named after it, if None.
        resume: A checkpoint to go on from, or ``auto`` for the latest one in the working folder.
        amp: Train in mixed precision: float16 on a GPU, bfloat16 on a CPU.
        auto_scale_lr: Scale the learning rate with the batch size, from the config's
            ``auto_scale_lr.base_batch_size``.
        cfg_options: Dotted keys and new values.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Returns:
        The config.

    Raises:
        UserError: Config, checkpoint or data are missing, or a choice does not fit the config.
    """
    cfg = load_config(config, cfg_options)
    require_keys(cfg, "model", "train_dataloader", "train_cfg", "optim_wrapper")
    set_work_dir(cfg, work_dir)
    if amp:
        use_amp(cfg)
    if auto_scale_lr:
        scaling = cfg.get("auto_scale_lr") or {}
        if "base_batch_size" not in scaling:
            raise UserError(f"--auto-scale-lr: {config} has no auto_scale_lr.base_batch_size")
        cfg.auto_scale_lr.enable = True
    check_data(cfg, ("train_dataloader", "val_dataloader"))
    use_safe_checkpoint_loading()
    if resume:
        _resume_from(cfg, resume)
    if cfg.get("load_from"):
        require_checkpoint(
            cfg.load_from,
            "load_from names it: train first what this config goes on from, or give another with "
            "--cfg-options load_from=...",
        )
    if cfg.model.get("occlusion_only"):
        if not cfg.get("load_from"):
            raise UserError(
                f"{config}: model.occlusion_only trains the occlusion head on a model that is "
                "trained already: name its checkpoint in load_from"
            )
        add_hook(cfg, dict(type="mmengine.FrozenWeightsHook"))
    make_resumable(cfg)
    limit_dynamo_cache(cfg)
    prepare_distributed(cfg, launcher)
    if launcher != "none":
        add_hook(cfg, dict(type="mmengine.SyncStatisticsHook"))
    add_class_match(cfg)
    return cfg


def train(cfg: Config) -> Runner:
    """Train.

    Args:
        cfg: From :func:`prepare_train_cfg`.

    Returns:
        The runner, after its work.
    """
    runner = build_runner(cfg)
    runner.train()
    return runner


def build_runner(cfg: Config) -> Runner:
    """Build the runner that a config names, mmengine's own by default.

    The second runner of a process, and each after it, gets an experiment name of its own:
    mmengine looks up its scope and its logger by that name and the second in which a run starts,
    so that two quick runs of one config's name would share those of the first.

    Raises:
        UserError: A part is given an argument that it does not know, such as a field misspelt.
    """
    number = next(_RUNNERS_BUILT)
    if number > 1 and not cfg.get("experiment_name"):
        cfg.experiment_name = f"{Path(cfg.filename or 'config').stem}_run{number}"
    try:
        return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    except TypeError as error:
        unknown = re.search(r"(\S+)\.__init__\(\) got an unexpected keyword .*?'(\w+)'", str(error))
        if unknown is None:
            raise
        part, field = unknown.groups()
        raise UserError(
            f"{cfg.filename}: {part} has no field {field!r}; check its spelling in the config "
            "and in --cfg-options"
        ) from error


def require_keys(cfg: Config, *keys: str) -> None:
    """Raise a UserError where a config lacks a part that the job needs."""
    missing = [key for key in keys if not cfg.get(key)]
    if missing:
        raise UserError(
            f"{cfg.filename}: not a config for this job, it has no {', '.join(missing)}"
        )


def require_checkpoint(path: str, mend: str = "") -> None:
    """Raise a UserError, with the mend, where a checkpoint of this disk is not there."""
    if "://" not in path and not Path(path).expanduser().is_file():
        raise UserError(
            f"{path}: there is no such checkpoint file" + (f" ({mend})" if mend else "")
        )


def use_amp(cfg: Config) -> None:
    """Switch a config's optimiser to mixed precision.

    Raises:
        UserError: The config has an optimiser wrapper of its own.
    """
    kind = cfg.optim_wrapper.get("type", "OptimWrapper")
    kind = kind if isinstance(kind, str) else kind.__name__
    if kind.rpartition(".")[2] not in ("OptimWrapper", "AmpOptimWrapper", "CPUAmpOptimWrapper"):
        raise UserError(f"--amp: optim_wrapper.type is {kind}, not OptimWrapper")
    if torch.cuda.is_available():
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    else:
        cfg.optim_wrapper.type = "mmengine.CPUAmpOptimWrapper"
        cfg.optim_wrapper.pop("loss_scale", None)


def _resume_from(cfg: Config, resume: str) -> None:
    """Go on from a checkpoint; where ``auto`` finds none, start from ``load_from`` as ever."""
    path = _latest_checkpoint(cfg.work_dir) if resume == "auto" else resume
    if path is None:
        print_log(f"{cfg.work_dir}: no checkpoint to resume from, the training starts anew")
        return
    cfg.resume = True
    cfg.load_from = path
    require_checkpoint(path)
    if "://" in path:
        return
    seed = read_checkpoint_records(cfg.load_from).get("seed")
    if seed is not None:
        # The order of the data is fixed before mmengine looks at the checkpoint's seed.
        randomness = dict(cfg.get("randomness") or {})
        if randomness.get("seed") not in (None, seed):
            print_log(f"Resuming with the seed {seed} of {cfg.load_from}")
        cfg.randomness = {**randomness, "seed": seed}


def _latest_checkpoint(work_dir: str) -> str | None:
    path = find_latest_checkpoint(work_dir) if Path(work_dir).is_dir() else None
    if path is None or Path(path).is_file():
        return path
    # The note of the latest checkpoint holds an absolute path; the folder may have moved.
    moved = Path(work_dir) / Path(path).name
    if not moved.is_file():
        raise UserError(f"{path}: named by {work_dir}/last_checkpoint, but not there")
    return str(moved)


def limit_dynamo_cache(cfg: Config) -> None:
    """Let mmdet apply the environment's limit on recompilations, if the config is mmdet's."""
    if scope_of(cfg) == "mmdet":
        from mmdet.utils import setup_cache_size_limit_of_dynamo

        setup_cache_size_limit_of_dynamo()
