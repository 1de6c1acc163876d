"""The command line of the bootstrap."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .runner import StepError, clock, failure_text
from .steps import STACKS, Setup

ROOT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Bring the environment up to date; return the exit status."""
    parser = argparse.ArgumentParser(prog="bootstrap", description="Set up a clone of MMPlus.")
    parser.add_argument("--stack", default="mmlab", choices=sorted(STACKS))
    parser.add_argument("--docs", action="store_true", help="with the documentation tools")
    args = parser.parse_args(argv)
    setup = Setup(ROOT, STACKS[args.stack], say=say)
    try:
        with only_one(ROOT / f"{setup.stack.venv}.lock"):
            return bring_up_to_date(setup, args.docs)
    except KeyboardInterrupt:
        say("\nbootstrap: interrupted; finished steps are kept, run the same command to go on")
        return 130


def bring_up_to_date(setup: Setup, docs: bool = False) -> int:
    """Do every step whose inputs changed since it was last done."""
    started = time.monotonic()
    steps = setup.plan(docs)
    worked = False
    for number, step in enumerate(steps, start=1):
        if setup.stamps.is_done(step.name, step.key) and step.intact():
            continue
        worked = True
        say(f"==> [{number}/{len(steps)}] {step.title}")
        try:
            setup.stamps.forget(step.name)
            step.work()
            setup.stamps.set_done(step.name, step.key)
        except StepError as error:
            say(failure_text(step.name, error))
            return 1
        except (OSError, ValueError) as error:
            advice = "Check the disk's free space and the permissions of the path named."
            say(failure_text(step.name, StepError(str(error), advice)))
            return 1
    if worked:
        say(f"==> {setup.stack.venv} is ready ({clock(time.monotonic() - started)})")
    return 0


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """Let one process at a time work on an environment; others wait and say so."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("bootstrap: waiting for another make that is setting up this environment")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)
