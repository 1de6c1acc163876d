"""Files that appear whole or not at all, folders that one process at a time works in, digests."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from mmseg_plus.common.errors import UserError

_POLL_SECONDS = 0.2
_BLOCK = 1 << 20


def write_file(path: str | os.PathLike, content: bytes, aside: Path | None = None) -> Path:
    """Write a file under another name and move it into place, so that no reader meets a half.

    Args:
        path: Where the file goes; its folder is made.
        content: What goes in.
        aside: Folder of the half-written file, on the same file system; that of ``path`` if None.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = (aside or path.parent) / f".{path.parent.name}-{path.name}.{os.getpid()}.part"
    try:
        part.write_bytes(content)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return path


def write_json(
    path: str | os.PathLike,
    content: object,
    indent: int | None = 1,
    aside: Path | None = None,
) -> Path:
    """Write a JSON file as :func:`write_file` does; ``indent=None`` leaves all blanks out."""
    separators = None if indent else (",", ":")
    text = json.dumps(content, indent=indent, separators=separators)
    return write_file(path, text.encode() + b"\n", aside)


def is_remote(path: object = "", backend_args: dict | None = None) -> bool:
    """Whether mmengine would read a file elsewhere than on this disk.

    Args:
        path: What a config calls the file or its folder.
        backend_args: Of the data set or metric that reads it.
    """
    if backend_args and backend_args.get("backend", "local") != "local":
        return True
    return "://" in str(path) or str(path).startswith("s3:")


@contextmanager
def only_one(
    folder: str | os.PathLike,
    patience: float = 10.0,
    busy: str = "another process is at work there; wait for it, or choose another folder",
    remove: bool = False,
) -> Iterator[int]:
    """Hold a folder for this process and for those that it hands the lock to.

    The lock lasts until all of them have ended, so that nothing writes beside a child whose parent
    was killed.

    Args:
        folder: Made if need be; the lock is its file ``.lock``.
        patience: Seconds to wait for it. What a process left behind needs some seconds to notice
            that it is alone.
        busy: What to tell where the folder stays held.
        remove: Remove ``.lock`` at the end. Not for a lock that is handed on: who comes next would
            make a new one while the old one is still held.

    Yields:
        The lock's file descriptor, for ``subprocess``'s ``pass_fds``.

    Raises:
        UserError: Another process holds the folder.
        OSError: The folder cannot be made or written to.
    """
    path = Path(folder) / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + patience
    while True:
        with open(path, "w") as handle:
            if _lock(handle, path):
                try:
                    yield handle.fileno()
                finally:
                    if remove:
                        path.unlink(missing_ok=True)
                return
        if time.monotonic() >= end:
            raise UserError(f"{folder}: {busy}")
        time.sleep(_POLL_SECONDS)


def _lock(handle: TextIO, path: Path) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Between opening and locking the file its last holder may have removed it.
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


def file_digest(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    return files_digest([path])


def files_digest(paths: Iterable[str | os.PathLike]) -> str:
    """The SHA-256 over the contents of files and where each ends, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
            digest.update(file.tell().to_bytes(8, "little"))
    return digest.hexdigest()
