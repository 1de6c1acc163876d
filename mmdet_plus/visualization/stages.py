"""Runs commands beside each other as stages that are done once, with one line of progress.

A stage works in a folder of its own and leaves ``stage.json`` there when it is done; started again,
it is skipped, or goes on if it is a training that was stopped. What a command prints goes to
``log.txt`` in that folder.
"""

import fcntl
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO

from mmdet_plus.engine.comparison import read_scalars
from mmdet_plus.engine.errors import UserError
from mmdet_plus.files import write_json

_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_LOG_LINES = 6


class Stage(NamedTuple):
    """One command: what it is called, where it works, how many iterations it trains (0: none)."""

    name: str
    folder: Path
    command: tuple[str, ...]
    iterations: int = 0

    @property
    def record(self) -> Path:
        """The file that says that the stage is done, and at what cost."""
        return self.folder / "stage.json"

    @property
    def log(self) -> Path:
        """The file that holds what the command prints."""
        return self.folder / "log.txt"


class ProgressLine:
    """One line that is written over on a terminal; elsewhere a short line now and then.

    Args:
        stream: Where it goes.
        interval: Seconds between lines where the stream is no terminal.
    """

    def __init__(self, stream: TextIO | None = None, interval: float = 20.0) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._live = self._stream.isatty()
        self._interval = interval
        self._last = time.monotonic()

    def show(self, text: str) -> None:
        """Show how things stand."""
        now = time.monotonic()
        if self._live:
            self._stream.write(f"\r\033[K{text}")
        elif now - self._last >= self._interval:
            self._stream.write(f"{text}\n")
        else:
            return
        self._last = now
        self._stream.flush()

    def say(self, text: str) -> None:
        """Write a line that stays."""
        self._stream.write(f"\r\033[K{text}\n" if self._live else f"{text}\n")
        self._stream.flush()


@contextmanager
def only_one(folder: Path, patience: float = 10.0) -> Iterator[int]:
    """Hold a folder for this process and for those that it hands the lock to.

    The lock lasts until all of them have ended, so that nothing writes beside a training whose
    parent was killed.

    Args:
        folder: Made if need be.
        patience: Seconds to wait for it. What a process left behind needs some seconds to notice
            that it is alone.

    Yields:
        The lock's file descriptor, for ``subprocess``'s ``pass_fds``.

    Raises:
        UserError: Another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        end = time.monotonic() + patience
        while not _lock(handle):
            if time.monotonic() >= end:
                raise UserError(
                    f"{folder}: a demo is at work there, or a training that an earlier one left "
                    "behind; wait for it, end it, or choose another --root"
                )
            time.sleep(_POLL_SECONDS)
        yield handle.fileno()


def run_chains(
    chains: Sequence[Sequence[Stage]],
    line: ProgressLine,
    threads: int,
    lock: int | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run chains of stages beside each other, the stages of a chain one after the other.

    Args:
        chains: The chains; finished stages are skipped.
        line: Shows the progress.
        threads: Of each process (``OMP_NUM_THREADS``).
        lock: File descriptor that the processes inherit.
        clock: Seconds, for the progress.

    Raises:
        UserError: A command failed; the message names its log and quotes its end. The others are
            stopped.
    """
    waiting = [[stage for stage in chain if not stage.record.is_file()] for chain in chains]
    running: dict[int, tuple[Stage, subprocess.Popen, float]] = {}
    start, next_look = clock(), 0.0
    try:
        while running or any(waiting):
            for i, chain in enumerate(waiting):
                if i not in running and chain:
                    stage = chain.pop(0)
                    running[i] = (stage, _start(stage, threads, lock), clock())
            time.sleep(_POLL_SECONDS)
            for i, (stage, process, began) in list(running.items()):
                # Processes are reaped one by one, so that the growth is this one's.
                before = _cpu_of_children()
                if process.poll() is None:
                    continue
                del running[i]
                if process.returncode != 0:
                    raise UserError(_failure(stage, process.returncode))
                cpu = _cpu_of_children() - before
                _finish(stage, threads, clock() - began, cpu)
                line.say(f"  {stage.name}: done in {_minutes(clock() - began)}")
            if clock() >= next_look and running:
                next_look = clock() + _LOOK_SECONDS
                states = [_state(stage) for stage, *_ in running.values()]
                line.show(f"  {_minutes(clock() - start)}  {' | '.join(states)}")
    finally:
        for _, process, _ in running.values():
            process.terminate()
        for _, process, _ in running.values():
            _wait_or_kill(process)


def iterations_done(work_dir: Path) -> int:
    """How far a training in a working folder has logged its progress."""
    training, _ = read_scalars(work_dir)
    return max((record["step"] for record in training), default=0)


def _lock(handle: TextIO) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _start(stage: Stage, threads: int, lock: int | None) -> subprocess.Popen:
    stage.folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, *stage.command]
    # With no checkpoint --resume would also drop the weights that a training shall start from.
    if stage.iterations and (stage.folder / "last_checkpoint").is_file():
        command.append("--resume")
    with open(stage.log, "ab") as log:
        return subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Threads that spin while they wait would slow down whatever else runs here.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=() if lock is None else (lock,),
        )


def _wait_or_kill(process: subprocess.Popen, patience: float = 10.0) -> None:
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        # A process that is suspended, or deaf, would keep its memory and the folder for ever.
        process.kill()
        process.wait()


def _finish(stage: Stage, threads: int, seconds: float, cpu_seconds: float) -> None:
    record = {
        "name": stage.name,
        "command": shlex.join(["python", *stage.command]),
        "threads": threads,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
    }
    write_json(stage.record, record)


def _failure(stage: Stage, code: int) -> str:
    lines = stage.log.read_text(errors="replace").splitlines()
    end = "\n".join(f"    {text}" for text in lines[-_LOG_LINES:])
    return (
        f"{stage.name} ended with code {code}; its log is {stage.log} and ends with\n{end}\n"
        "Mend that and start the same command again: what is done is kept."
    )


def _state(stage: Stage) -> str:
    if not stage.iterations:
        return stage.name
    return f"{stage.name} {iterations_done(stage.folder)}/{stage.iterations}"


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
