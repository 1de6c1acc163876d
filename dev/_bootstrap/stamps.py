"""Which step is done, and for which inputs; and who may work on it.

A stamp is a small file in the virtual environment that holds the digest of all that its step
depends on. It is removed before the step starts and written after it ends, so that an interrupted
step is done again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


def digest(files: Iterable[Path], *values: object, root: Path | None = None) -> str:
    """Hash the names and contents of ``files`` (absent ones count as absent) and ``values``.

    Args:
        files: inputs of a step; the order does not matter.
        values: further inputs, told apart by their ``repr``.
        root: folder that names are taken relative to, so that they do not depend on its place.
    """
    total = hashlib.sha256()
    for path in sorted(files):
        name = path.relative_to(root).as_posix() if root else path.as_posix()
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "absent"
        total.update(f"{name}\0{content}\n".encode())
    for value in values:
        total.update(f"{value!r}\n".encode())
    return total.hexdigest()


class Stamps:
    """The stamps of one virtual environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def is_done(self, step: str, key: str) -> bool:
        """Tell whether ``step`` was finished for exactly these inputs."""
        try:
            return self._path(step).read_text().strip() == key
        except OSError:
            return False

    def forget(self, step: str) -> None:
        """Mark ``step`` as not done."""
        self._path(step).unlink(missing_ok=True)

    def set_done(self, step: str, key: str) -> None:
        """Mark ``step`` as finished for the inputs of ``key``."""
        write_atomically(self._path(step), key + "\n")

    def _path(self, step: str) -> Path:
        return self.folder / f"{step}.stamp"


def write_atomically(path: Path, text: str) -> None:
    """Write a text file that is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text)
    os.replace(part, path)


@contextlib.contextmanager
def only_one(lock: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time work on what ``lock`` stands for; others wait and say so."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("bootstrap: waiting for another make that is setting up this clone")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
