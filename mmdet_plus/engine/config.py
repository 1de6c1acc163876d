"""Reading configs and the options of the command line that change them."""

import argparse
import difflib
import inspect
from collections.abc import Iterable
from pathlib import Path

from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import Runner

from mmdet_plus.engine.errors import UserError
from mmseg_plus.common.config import read_config

# What may stand at a config's top level without being in the file: the runner's arguments, and
# what the runner or the tools look up in the config itself.
RUNNER_KEYS = frozenset(inspect.signature(Runner).parameters) | {
    "activation_checkpointing",
    "compile",
    "custom_imports",
    "deterministic_resume",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "runner_type",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
}


class OptionsAction(DictAction):
    """``--cfg-options key=value ...`` that reports a malformed pair instead of raising."""

    def __call__(self, parser, namespace, values, option_string=None):
        for pair in values or ():
            key, equals, value = pair.partition("=")
            if not equals or not key.strip(". "):
                parser.error(f"{option_string}: {pair!r} is not of the form key=value")
            try:
                self._parse_iterable(value)
            except AssertionError as error:
                parser.error(f"{option_string}: the value of {key} cannot be read: {error}")
        super().__call__(parser, namespace, values, option_string)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that training and testing share.

    Args:
        parser: Receives ``--work-dir``, ``--cfg-options``, ``--launcher`` and ``--local-rank``.
    """
    parser.add_argument("--work-dir", help="folder for logs and results")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=OptionsAction,
        metavar="KEY=VALUE",
        help="change the config: a.b.c=value; lists as a.b=[1,2] or a.b=1,2, nested as "
        '"a.b=[(1,2),(3,4)]", without blanks; a number picks a list item: pipeline.0.type=X',
    )
    parser.add_argument(
        "--launcher",
        choices=["none", "pytorch", "slurm", "mpi"],
        default="none",
        help="who started the processes of a distributed job",
    )
    # Some launchers hand the local rank over as an argument instead of in the environment.
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def load_config(name: str, options: dict | None = None) -> Config:
    """Read a config and apply the command line's options to it.

    Args:
        name: As for :func:`mmseg_plus.common.config.resolve_config`.
        options: Dotted keys and their new values.

    Returns:
        The config.

    Raises:
        UserError: The file is missing or unreadable as a config, or an option does not fit it.
    """
    cfg = read_config(name)
    if options:
        apply_options(cfg, options)
    return cfg


def apply_options(cfg: Config, options: dict) -> None:
    """Merge dotted options into a config, refusing keys that look like slips of the pen.

    A key that is new at the top level must be one that the runner knows. Further down a new key
    passes (it may be an argument that the config leaves at its default) unless it resembles one
    that is there.

    Args:
        cfg: Changed in place.
        options: Dotted keys and their new values.

    Raises:
        UserError: An option's key is unknown or cannot be reached.
    """
    for key in options:
        _prepare_option(cfg, key)
    try:
        cfg.merge_from_dict(options)
    except (KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--cfg-options: {' '.join(options)}: does not fit: {reason}") from error


def _prepare_option(cfg: Config, key: str) -> None:
    node, parts = cfg._cfg_dict, key.split(".")
    for depth, part in enumerate(parts):
        path = ".".join(parts[: depth + 1])
        if isinstance(node, (list, tuple)):
            if not part.isdigit() or int(part) >= len(node):
                raise UserError(
                    f"--cfg-options {key}: {'.'.join(parts[:depth])} is a list of {len(node)}; "
                    f"pick an item by its number from 0, not {part!r}"
                )
            node = node[int(part)]
            continue
        if not isinstance(node, dict):
            raise UserError(
                f"--cfg-options {key}: {'.'.join(parts[:depth])} is {node!r}, which has no keys"
            )
        if part not in node:
            known: Iterable[str] = [str(name) for name in node]
            known = RUNNER_KEYS.union(known) if depth == 0 else known
            close = difflib.get_close_matches(part, known, n=1, cutoff=0.8)
            if part in RUNNER_KEYS and depth == 0:
                return
            if close or depth == 0:
                hint = f"; did you mean {close[0]}?" if close else ""
                raise UserError(f"--cfg-options {key}: the config has no key {path}{hint}")
            return
        if node[part] is None and depth + 1 < len(parts):
            # What is switched off in the config can be filled in; mmengine would refuse to merge.
            node[part] = ConfigDict()
        node = node[part]


def set_work_dir(cfg: Config, work_dir: str | None) -> None:
    """Choose the working folder: the command line's, else the config's, else by the file's name.

    Args:
        cfg: Changed in place.
        work_dir: The command line's choice, or None.
    """
    if work_dir:
        cfg.work_dir = work_dir
    elif not cfg.get("work_dir"):
        cfg.work_dir = str(Path("work_dirs") / Path(cfg.filename).stem)


def scope_of(cfg: Config) -> str:
    """Name the library whose registries a config is built from: ``mmdet``, ``mmseg`` or other."""
    return cfg.get("default_scope") or "mmengine"


def add_hook(cfg: Config, hook: dict) -> None:
    """Append a custom hook to a config that may have none yet."""
    cfg.custom_hooks = [*(cfg.get("custom_hooks") or []), hook]


def add_import(cfg: Config, module: str) -> None:
    """Have a config import a module when it is read again, as its dump in the work folder is."""
    imports = cfg.get("custom_imports") or {}
    names = imports.get("imports") or []
    names = [names] if isinstance(names, str) else list(names)
    if module not in names:
        cfg.custom_imports = dict(
            imports=[*names, module],
            allow_failed_imports=imports.get("allow_failed_imports", False),
        )
