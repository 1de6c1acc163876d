"""Runs commands beside each other as stages that are done once, with one line of progress.

A stage works in a folder of its own and leaves ``stage.json`` there when it is done; started again,
it is skipped, or goes on if it is a training that was stopped. What a command prints goes to
``log.txt`` in that folder.
"""

import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mmdet_plus.engine.errors import UserError
from mmseg_plus.common.files import write_json
from mmseg_plus.common.progress import ProgressLine

# What mmengine writes beside the figures of a validation.
BOOKKEEPING = frozenset({"data_time", "time", "step", "iter", "epoch"})
_POLL_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_LOG_LINES = 6


class Stage(NamedTuple):
    """One command: what it is called, where it works, how many iterations it trains (0: unknown).

    The command is what follows ``python``. It may be started again after it was stopped.
    """

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


def run_chains(
    chains: Sequence[Sequence[Stage]],
    line: ProgressLine,
    threads: int,
    at_once: int | None = None,
    locks: Sequence[int] = (),
    done: Callable[[Stage], object] = lambda stage: None,
) -> None:
    """Run chains of stages beside each other, the stages of a chain one after the other.

    Args:
        chains: The chains; finished stages are skipped.
        line: Shows the progress.
        threads: Of each process (``OMP_NUM_THREADS``).
        at_once: Chains at a time; all of them if None.
        locks: File descriptors that the processes inherit.
        done: Called with each stage that ends well here, once its record is there.

    Raises:
        UserError: A command failed; the message names its log and quotes its end. The others are
            stopped.
    """
    queue = [[stage for stage in chain if not stage.record.is_file()] for chain in chains]
    queue = [chain for chain in queue if chain]
    active: list[list[Stage]] = []
    running: dict[Stage, _Process] = {}
    start, next_look = time.monotonic(), 0.0
    try:
        while queue or active:
            while queue and (at_once is None or len(active) < at_once):
                active.append(queue.pop(0))
            for stage in (chain[0] for chain in active):
                if stage not in running:
                    running[stage] = _start(stage, threads, locks)
            time.sleep(_POLL_SECONDS)
            for chain in list(active):
                stage = chain[0]
                if not _finished(stage, running, threads):
                    continue
                line.say(f"  {stage.name}: done in {_minutes(_seconds_of(stage))}")
                done(stage)
                chain.pop(0)
                if not chain:
                    active.remove(chain)
            if time.monotonic() >= next_look and running:
                next_look = time.monotonic() + _LOOK_SECONDS
                states = " | ".join(_state(stage) for stage in running)
                line.show(f"  {_minutes(time.monotonic() - start)}  {states}")
    finally:
        for item in running.values():
            item.process.terminate()
        for item in running.values():
            _wait_or_kill(item.process)


def read_scalars(work_dir: Path) -> tuple[list[dict], list[dict]]:
    """Read what mmengine logged in a working folder, resumed parts included.

    Returns:
        The training records by iteration, a later part replacing an earlier one, and all
        validation records in the order of the log, each a flat dict.
    """
    training: dict[int, dict] = {}
    validation: list[dict] = []
    # Beside it lies the same once more, under the name of the time.
    for path in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in path.read_text().splitlines():
            if not line.startswith("{"):
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            if "loss" in record:
                training[record.get("iter", record["step"])] = record
            elif record.keys() - BOOKKEEPING:
                validation.append(record)
    return list(training.values()), validation


def shown(path: Path) -> str:
    """Write a path as a person would who types it in the current folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def iterations_done(work_dir: Path) -> int:
    """How far a training in a working folder has logged its progress."""
    training, _ = read_scalars(work_dir)
    return max((record["step"] for record in training), default=0)


class _Process(NamedTuple):
    process: subprocess.Popen
    began: float
    continued: bool


def _start(stage: Stage, threads: int, locks: Sequence[int]) -> _Process:
    continued = (stage.folder / "last_checkpoint").is_file()
    stage.folder.mkdir(parents=True, exist_ok=True)
    with open(stage.log, "ab") as log:
        process = subprocess.Popen(
            [sys.executable, *stage.command],
            stdout=log,
            stderr=subprocess.STDOUT,
            # Threads that spin while they wait would slow down whatever else runs here.
            env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ, "OMP_NUM_THREADS": str(threads)},
            pass_fds=tuple(locks),
        )
    return _Process(process, time.monotonic(), continued)


def _finished(stage: Stage, running: dict[Stage, _Process], threads: int) -> bool:
    """Take a stage that has ended off the list and write its record."""
    item = running[stage]
    # Processes are reaped one by one, so that the growth is this one's.
    before = _cpu_of_children()
    if item.process.poll() is None:
        return False
    del running[stage]
    if item.process.returncode != 0:
        raise UserError(_failure(stage, item.process.returncode))
    record = {
        "name": stage.name,
        "command": shlex.join(["python", *stage.command]),
        "threads": threads,
        "seconds": round(time.monotonic() - item.began, 1),
        "cpu_seconds": round(_cpu_of_children() - before, 1),
        # Then the figures above are those of the last part.
        "continued": item.continued,
    }
    write_json(stage.record, record)
    return True


def _seconds_of(stage: Stage) -> float:
    return json.loads(stage.record.read_text())["seconds"]


def _wait_or_kill(process: subprocess.Popen, patience: float = 10.0) -> None:
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        # A process that is suspended, or deaf, would keep its memory and the folder for ever.
        process.kill()
        process.wait()


def _failure(stage: Stage, code: int) -> str:
    lines = stage.log.read_text(errors="replace").splitlines()
    end = "\n".join(f"    {text}" for text in lines[-_LOG_LINES:])
    return (
        f"{stage.name} ended with code {code}; its log is {stage.log} and ends with\n{end}\n"
        "Mend that and start the same command again: what is done is kept."
    )


def _state(stage: Stage) -> str:
    done = iterations_done(stage.folder)
    if stage.iterations:
        return f"{stage.name} {done}/{stage.iterations}"
    return f"{stage.name} {done}" if done else stage.name


def _cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
