"""The command line of the bootstrap."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from .runner import StepError, clock, failure_text
from .stamps import only_one
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
        with only_one(ROOT / f"{setup.stack.venv}.lock", say):
            return bring_up_to_date(setup, args.docs)
    except OSError as error:
        return report("lock", error)
    except KeyboardInterrupt:
        say("\nbootstrap: interrupted; finished steps are kept, run the same command to go on")
        return 130


def bring_up_to_date(setup: Setup, docs: bool = False) -> int:
    """Do every step whose inputs changed since it was last done."""
    started = time.monotonic()
    worked = False
    at = "plan"
    try:
        steps = setup.plan(docs)
        for number, step in enumerate(steps, start=1):
            at = step.name
            if setup.stamps.is_done(step.name, step.key) and step.intact():
                continue
            worked = True
            say(f"==> [{number}/{len(steps)}] {step.title}")
            setup.stamps.forget(step.name)
            step.work()
            setup.stamps.set_done(step.name, step.key)
    except (StepError, OSError, ValueError) as error:
        return report(at, error)
    if worked:
        say(f"==> {setup.stack.venv} is ready ({clock(time.monotonic() - started)})")
    return 0


def report(step: str, error: Exception) -> int:
    """Say what failed and what to do; return the exit status."""
    if not isinstance(error, StepError):
        advice = "Check the disk's free space and the permissions of the path named."
        error = StepError(str(error), advice)
    say(failure_text(step, error))
    return 1


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)
