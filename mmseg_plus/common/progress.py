"""How a job shows how far it is."""

import sys
import time
from typing import TextIO


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


def duration(seconds: float) -> str:
    """Write a time as minutes and seconds, or with hours."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
