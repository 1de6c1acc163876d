"""The line of progress."""

import io

from mmseg_plus.common.progress import ProgressLine, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_written_over_on_a_terminal_alone():
    terminal, pipe = Terminal(), io.StringIO()
    for stream in (terminal, pipe):
        line = ProgressLine(stream, interval=60)
        line.show("1 of 2")
        line.show("2 of 2")
        line.say("done")
    assert terminal.getvalue() == "\r\033[K1 of 2\r\033[K2 of 2\r\033[Kdone\n"
    assert pipe.getvalue() == "done\n"
    often = io.StringIO()
    ProgressLine(often, interval=0).show("1 of 2")
    assert often.getvalue() == "1 of 2\n"


def test_durations():
    assert duration(59.9) == "0:59" and duration(3725) == "1:02:05"
