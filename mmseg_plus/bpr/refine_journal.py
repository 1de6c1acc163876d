"""What a refinement of results has done so far, kept beside its output until that is written.

``OUT.partial/`` holds ``settings.json``, what the job works on and how, and one file of lines per
process, ``rank0.jsonl`` and so on. A line is one finished image::

    {"index": 3, "image": 139, "records": [7, 9], "counts": ["...", "..."]}

its place in the source, its id, and the new masks (counts of compressed RLEs) of those records that
have changed; or ``{"index": 3, "fault": "..."}`` of an image that was skipped, and is tried again
by the next run. A line that a kill has torn is dropped.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import only_one, write_json

_VERSION = 1
_POLL_SECONDS = 0.2


class RefineJournal:
    """The journal of one output.

    Args:
        out: The output, a file or a folder.
    """

    def __init__(self, out: str | os.PathLike) -> None:
        self.out = Path(out)
        self.folder = self.out.absolute().with_name(f"{self.out.name}.partial")
        self._settings = self.folder / "settings.json"
        self._places: dict[int, tuple[Path, int]] = {}

    @contextmanager
    def hold(self, patience: float = 10.0) -> Iterator[None]:
        """Keep other jobs away from this output.

        Args:
            patience: Seconds to wait for what a killed job may have left behind.

        Raises:
            UserError: Another job is at work on it.
        """
        busy = f"another process is writing {self.out}; wait for it, or give another --out"
        try:
            with only_one(self.folder, patience, busy, remove=True):
                self._wait_for_orphans(patience, busy)
                try:
                    yield
                finally:
                    self._remove_if_empty()
        except FileNotFoundError as error:
            # Who held it has finished and removed it between two looks.
            if str(error.filename) != str(self.folder / ".lock"):
                raise
            raise UserError(f"{self.folder}: {busy}") from None

    def begin(self, identity: Mapping, resume: bool, overwrite: bool) -> bool:
        """Make the journal ready for this run, or find that there is nothing to do.

        Args:
            identity: The inputs and settings, by group and name; JSON values.
            resume: Go on with what is there.
            overwrite: Throw away what is there, in the end the output too.

        Returns:
            False where the output is there and no unfinished run: nothing to resume.

        Raises:
            UserError: What is there does not go with ``resume``, ``overwrite`` or the identity.
        """
        identity = json.loads(json.dumps({"version": _VERSION, **identity}))
        started = self._settings.is_file()
        finished = holds_something(self.out)
        if resume and started:
            self._compare(identity)
            for path in self._files():
                _drop_torn_line(path)
            return True
        if resume and finished:
            return False
        if started and not overwrite:
            raise UserError(
                f"{self.out}: an unfinished run has left {self.folder.name} beside it; go on with "
                "--resume, start anew with --overwrite, or give another --out"
            )
        if finished and not overwrite:
            raise UserError(
                f"{self.out}: is there already; give another --out, or --overwrite to replace it"
            )
        self._clear()
        write_json(self._settings, identity)
        return True

    def read(self) -> tuple[set[int], dict[int, str]]:
        """Look through the journal.

        Returns:
            The images that are done, by their place in the source, and the faults of those that
            were skipped.
        """
        self._places, faults = {}, {}
        for path in self._files():
            for offset, entry in _entries(path):
                if "fault" in entry:
                    faults[entry["index"]] = entry["fault"]
                else:
                    self._places[entry["index"]] = path, offset
        skipped = {index: text for index, text in faults.items() if index not in self._places}
        return set(self._places), skipped

    def changed(self, index: int) -> dict[int, str]:
        """The new masks of an image, counts by record, once :meth:`read` has seen it."""
        if index not in self._places:
            return {}
        path, offset = self._places[index]
        with open(path, "rb") as file:
            file.seek(offset)
            entry = json.loads(file.readline())
        return dict(zip(entry["records"], entry["counts"], strict=True))

    def writer(self, rank: int) -> "JournalWriter":
        """Open the file of one process."""
        return JournalWriter(self.folder / f"rank{rank}.jsonl")

    def room(self) -> Path:
        """A path beside the journal for the output in the making; nothing is there."""
        path = self.folder / f"merged{self.out.suffix.lower()}"
        _remove(path)
        return path

    def publish(self, made: Path) -> None:
        """Move the finished output to its place and remove the journal."""
        if self.out.is_dir():
            # A folder cannot replace another one that holds files.
            old = self.folder / "replaced"
            _remove(old)
            os.replace(self.out, old)
        os.replace(made, self.out)
        self._clear()

    def _compare(self, identity: dict) -> None:
        try:
            begun = json.loads(self._settings.read_text())
        except ValueError:
            begun = {}
        differences = [
            f"{name} was {_shown(was)}, is {_shown(now)}" if group == "settings" else name
            for group in ("version", "inputs", "settings")
            for name, was, now in _differences(group, begun.get(group), identity.get(group))
        ]
        if differences:
            raise UserError(
                f"{self.folder}: the unfinished run was started with other inputs or settings "
                f"({'; '.join(differences)}); resume with the same ones, or start anew with "
                "--overwrite"
            )

    def _wait_for_orphans(self, patience: float, busy: str) -> None:
        """Processes of a job whose first one was killed may still be writing."""
        end = time.monotonic() + patience
        for path in self._files():
            while not _is_free(path):
                if time.monotonic() >= end:
                    raise UserError(f"{path}: {busy}")
                time.sleep(_POLL_SECONDS)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("rank*.jsonl"))

    def _clear(self) -> None:
        """Remove the journal's files, and none that are not its own."""
        # Without its settings it is no journal any more, should this be cut short.
        self._settings.unlink(missing_ok=True)
        for path in [*self._files(), *self.folder.glob("merged*"), self.folder / "replaced"]:
            _remove(path)

    def _remove_if_empty(self) -> None:
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        if names == [".lock"]:
            (self.folder / ".lock").unlink()
            try:
                self.folder.rmdir()
            except OSError:
                return  # another job has come in


class JournalWriter:
    """Appends lines to the file of one process and keeps others from doing so.

    Args:
        path: The file; made if need be.

    Raises:
        UserError: Another process writes to it.
    """

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115 (closed by close)
        if not _lock(self._file):
            self._file.close()
            raise UserError(f"{path}: another process is writing to it; wait for it")

    def add(self, entry: dict) -> None:
        """Append a line, at once."""
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file and let go of it."""
        self._file.close()

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def holds_something(path: Path) -> bool:
    """Whether there is a file, or a folder that is not empty."""
    return any(path.iterdir()) if path.is_dir() else path.exists()


def _entries(path: Path) -> Iterator[tuple[int, dict]]:
    """The readable lines of a journal's file and where they start."""
    with open(path, "rb") as file:
        offset = 0
        for line in file:
            try:
                entry = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                entry = None  # a disk that lost power; the image is done again
            if isinstance(entry, dict) and isinstance(entry.get("index"), int):
                yield offset, entry
            offset += len(line)


def _drop_torn_line(path: Path) -> None:
    """Cut off what follows the last line's end, so that the next line does not join it."""
    with open(path, "rb+") as file:
        end = 0
        for line in file:
            end += len(line) if line.endswith(b"\n") else 0
        file.truncate(end)


def _differences(group: str, was: object, now: object) -> Iterator[tuple[str, object, object]]:
    if not isinstance(was, dict) or not isinstance(now, dict):
        if was != now:
            yield group, was, now
        return
    for name in dict.fromkeys((*was, *now)):
        if was.get(name) != now.get(name):
            yield name, was.get(name), now.get(name)


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_free(path: Path) -> bool:
    with open(path, "ab") as file:
        return _lock(file)


def _lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
