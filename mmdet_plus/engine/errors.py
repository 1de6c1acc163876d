"""How a command shows the errors that a user can mend."""

import os
import pickle
import re
import sys
import time
from collections.abc import Callable

from torch import distributed as dist

from mmdet_plus.engine.distributed import close_process_group
from mmseg_plus.common.errors import UserError

__all__ = ["UserError", "run_command"]

# Seconds for which the other processes wait for the first one to speak.
_PATIENCE = 2.0
# Under which names launchers tell a process's rank, torchrun's first.
_RANKS = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK")


def run_command(job: Callable[[], object]) -> int:
    """Run a command's work and turn mistakes of the user's into one line on stderr.

    A process group that the work has left open is closed.

    Args:
        job: The work, without arguments.

    Returns:
        The exit code: 0, or 2 after a :class:`UserError` (``AnnotationError`` is one) or a
        checkpoint that cannot be read. ``MMPLUS_DEBUG=1`` lets such errors through with their
        traceback; all others always pass.
    """
    try:
        job()
    except (UserError, pickle.UnpicklingError) as error:
        if os.environ.get("MMPLUS_DEBUG", "0") not in ("", "0"):
            raise
        rank = next((os.environ[name] for name in _RANKS if name in os.environ), "0")
        who = ""
        if rank != "0":
            # Most mistakes are met by every process of a distributed job, and one line is enough:
            # the first to leave takes the others with it. Who is still there met one of its own.
            time.sleep(_PATIENCE)
            who = f"rank {rank}: "
        print(f"{who}error: {_message(error)}", file=sys.stderr, flush=True)
        return 2
    # Not after an error: the others may wait for this process, and learn of it by its end.
    if dist.is_available() and dist.is_initialized():
        close_process_group()
    return 0


def _message(error: Exception) -> str:
    """The message alone, where a data loader's worker has put its traceback before it."""
    text = str(error)
    if not re.match(r"Caught \w+ in \w+ worker process", text):
        return text
    kind = type(error)
    *_, message = re.split(
        rf"^{re.escape(f'{kind.__module__}.{kind.__qualname__}')}: ", text, flags=re.M
    )
    return message.rstrip("\n")
