"""Running one command of a step: log, progress, and a failure that says what to do."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TAIL_LINES = 25
POLL_SECONDS = 0.5
REPORT_SECONDS = 30.0

# First match wins: what a log says, and what its reader can do about it.
ADVICE = (
    (
        r"No space left on device|Errno 28",
        "The disk is full. Free some space (torch and its dependencies need several GB).",
    ),
    (
        r"Temporary failure in name resolution|Name or service not known|Network is unreachable"
        r"|Connection (refused|timed out|reset)|NewConnectionError|ConnectTimeout|ProxyError"
        r"|Max retries exceeded|Read timed out|nodename nor servname",
        "The package index cannot be reached. Check the network, the proxy settings (HTTPS_PROXY) "
        "and `pip config list`, then run the same command again; finished steps are kept.",
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|SSLError",
        "The certificate of the package index was refused. Check the clock and `pip config list`.",
    ),
    (
        r"Killed signal|signal 9|cannot allocate memory|out of memory|virtual memory exhausted",
        "The compiler ran out of memory. Run again with fewer jobs: MAX_JOBS=1 make ...",
    ),
    (
        r"Python\.h: No such file",
        "The headers of this Python are missing. Install them (Debian: apt install python3-dev).",
    ),
    (
        r"lib(GL|gthread-2\.0|glib-2\.0)\.so",
        "OpenCV needs libraries of the system (Debian: apt install libgl1 libglib2.0-0).",
    ),
    (
        r"No matching distribution found for (\S+)",
        "The package index has no {0} for this Python and platform, or cannot be reached. "
        "Check the network and `pip config list`.",
    ),
    (
        r"ResolutionImpossible|conflicting dependencies",
        "requirements/ and its constraints contradict each other; see the lines above.",
    ),
    (
        r"No module named 'pkg_resources'",
        "setuptools is too new for mmcv's build. Delete the virtual environment and run again.",
    ),
    (
        r"error: command .*(g\+\+|gcc|clang|nvcc).* failed|ninja: build stopped",
        "The compiler failed; its first 'error:' line in the log says why.",
    ),
)


class StepError(Exception):
    """A step that failed: what it was doing, and what the reader can do."""

    def __init__(self, what: str, advice: str, log: Path | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.advice = advice
        self.log = log


def advice_for(log_text: str) -> str:
    """Return what to do about a failed command, judged by its output."""
    for pattern, advice in ADVICE:
        match = re.search(pattern, log_text)
        if match:
            return advice.format(*match.groups())
    return "The log has the whole story; after mending it run the same command again."


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Drop the variables that would make pip install elsewhere, or Python import from elsewhere."""
    dropped = {
        "PYTHONPATH",
        "PYTHONHOME",
        "PIP_USER",
        "PIP_TARGET",
        "PIP_PREFIX",
        "PIP_ROOT",
        "PIP_NO_DEPS",
        "PIP_REQUIRE_HASHES",
        "__PYVENV_LAUNCHER__",
    }
    kept = {name: value for name, value in environment.items() if name not in dropped}
    return kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}


def run(
    command: Sequence[str],
    *,
    what: str,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    progress: Callable[[str], str] | None = None,
) -> None:
    """Run ``command`` with its output in ``log``, showing elapsed time and progress.

    Args:
        command: the command line.
        what: a noun phrase for messages, such as ``"building mmcv 2.1.0"``.
        log: file for all output; kept.
        env: variables on top of the cleaned environment.
        cwd: working folder.
        progress: maps the last part of the log to a short text such as ``"12 of 78 files"``, or
            to an empty one where that part tells nothing new.

    Raises:
        StepError: where the command fails, with advice drawn from its output.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    line = ProgressLine(what)
    detail = "preparing" if progress else ""
    with log.open("wb") as sink:
        sink.write(("$ " + " ".join(map(str, command)) + "\n").encode())
        sink.flush()
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=sink,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=clean_environment(os.environ) | dict(env or {}),
            cwd=cwd,
        )
        try:
            while True:
                try:
                    code = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if progress:
                        detail = progress(read_tail(log)) or detail
                    line.show(time.monotonic() - started, detail)
        except BaseException:
            process.terminate()
            process.wait()
            line.close()
            raise
    line.close()
    if code != 0:
        text = log.read_text(errors="replace")
        raise StepError(f"{what} failed (exit code {code})", advice_for(text), log)


def read_tail(path: Path, size: int = 65536) -> str:
    """Return the last ``size`` bytes of a file as text."""
    with path.open("rb") as source:
        source.seek(0, os.SEEK_END)
        source.seek(max(0, source.tell() - size))
        return source.read().decode(errors="replace")


def marked_line(log: Path, mark: str) -> str:
    """Return what follows ``mark`` in a log where libraries may have written warnings around it.

    Raises:
        StepError: where the mark is not there.
    """
    found = re.findall(rf"{re.escape(mark)}(.*)$", log.read_text(errors="replace"), re.MULTILINE)
    if not found:
        raise StepError(
            f"Python ended without its answer ('{mark.strip()} ...')",
            "The log shows what it said instead. Run the same command again.",
            log,
        )
    return found[-1].strip()


def ninja_progress(log_tail: str) -> str:
    """Put ninja's last ``[n/m]`` as ``"n of m files compiled, p %"``; without one, ``""``."""
    marks = re.findall(r"^\s*\[(\d+)/(\d+)\]", log_tail, re.MULTILINE)
    if not marks:
        return ""
    done, total = map(int, marks[-1])
    return f"{done} of {total} files compiled, {100 * done // max(total, 1)} %"


def clock(seconds: float) -> str:
    """Format a duration as ``m:ss``."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class ProgressLine:
    """One line that is rewritten on a terminal, and repeated now and then elsewhere."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.terminal = sys.stdout.isatty()
        self.next_report = REPORT_SECONDS
        self.width = 0

    def show(self, elapsed: float, detail: str) -> None:
        """Show the state after ``elapsed`` seconds."""
        text = f"    {self.what}: {clock(elapsed)}" + (f", {detail}" if detail else "")
        if self.terminal:
            sys.stdout.write("\r" + text.ljust(self.width))
            self.width = len(text)
        elif elapsed >= self.next_report:
            self.next_report += REPORT_SECONDS
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def close(self) -> None:
        """Wipe the line from a terminal."""
        if self.terminal and self.width:
            sys.stdout.write("\r" + " " * self.width + "\r")
            sys.stdout.flush()


def failure_text(step: str, error: StepError) -> str:
    """Compose the message of a failed step: the log's end, what failed, what to do."""
    parts = []
    if error.log is not None and error.log.is_file():
        lines = error.log.read_text(errors="replace").rstrip().splitlines()[-TAIL_LINES:]
        parts += ["", *(f"    | {line}" for line in lines), ""]
    parts.append(f"bootstrap: step '{step}' failed: {error.what}")
    parts.append(f"  what to do: {error.advice}")
    if error.log is not None:
        parts.append(f"  whole log:  {error.log}")
    return "\n".join(parts)
