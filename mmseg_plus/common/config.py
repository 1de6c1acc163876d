"""Finding and reading configs of the zoo, wherever it is installed."""

import difflib
from pathlib import Path

from mmengine.config import Config

import mmseg_plus
from mmseg_plus.common.errors import UserError

from .compat import find_mmseg_configs

find_mmseg_configs()


def config_folders() -> list[Path]:
    """List the folders in which configs are looked up by name.

    Returns:
        The repository's ``configs`` of a clone and the installed copy, those that exist.
    """
    # mim looks for the resources in the distribution's first package.
    root = Path(mmseg_plus.__file__).resolve().parents[1]
    candidates = [root / "configs", root / "mmdet_plus" / ".mim" / "configs"]
    return [folder for folder in candidates if folder.is_dir()]


def resolve_config(name: str) -> Path:
    """Find a config file.

    Args:
        name: A path, a path relative to the repository (``configs/mr_rcnn/x.py``), or the bare
            name of a config of the zoo, with or without ``.py``.

    Returns:
        The path of an existing file.

    Raises:
        UserError: Nothing, or more than one file, goes by that name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folders = config_folders()
    for folder in folders:
        if not path.is_absolute() and (folder.parent / path).is_file():
            return folder.parent / path
    known = {file.stem: file for folder in reversed(folders) for file in folder.rglob("*.py")}
    bare = path.name == name
    stem = path.stem if path.suffix == ".py" else path.name
    if bare and stem in known:
        return known[stem]
    close = difflib.get_close_matches(stem, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "check the path"
    raise UserError(f"{name}: there is no such config file; {hint}")


def read_config(name: str) -> Config:
    """Read a config.

    Args:
        name: As for :func:`resolve_config`.

    Returns:
        The config.

    Raises:
        UserError: The file is missing or unreadable as a config.
    """
    path = resolve_config(name)
    try:
        cfg = Config.fromfile(str(path))
    except SyntaxError as error:
        # mmengine parses without file names, so that a base's mistake looks like this file's.
        where = f"line {error.lineno} of it or of one of its bases"
        raise UserError(f"{path}: cannot be read as a config: {where}: {error.msg}") from error
    except Exception as error:
        # A config is code; whatever it raises, the file to mend is this one or one of its bases.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as a config: {reason}") from error
    return cfg
