"""What the sources of instances know of files: endings, names that stay inside."""

import os
import posixpath
from pathlib import Path

from mmseg_plus.common.errors import UserError


def require_ending(out: str | os.PathLike, *endings: str) -> None:
    """Raise a UserError unless a file's name has one of these endings, and is no folder's."""
    if Path(out).suffix.lower() not in endings:
        raise UserError(f"{out}: the name must end in {' or '.join(endings)} for these results")
    if Path(out).is_dir():
        raise UserError(f"{out}: is a folder; give the name of a file")


def inside(name: str, folder: str = "") -> str | None:
    """Resolve a name that a file gives, relative to that file's folder.

    Args:
        name: With "/" between its parts.
        folder: The file's folder, relative to the root that must not be left.

    Returns:
        The name relative to the root, None where it leaves it.
    """
    if name.startswith(("/", "\\")) or os.path.splitdrive(name)[0] or "\0" in name:
        return None
    path = posixpath.normpath(posixpath.join(folder, name.replace("\\", "/")))
    return None if path in ("..", ".") or path.startswith("../") else path
