"""Errors that a user can mend, and how a command shows them."""

import os
import pickle
import sys
import time
from collections.abc import Callable

# Seconds for which the other processes wait for the first one to speak.
_PATIENCE = 2.0


class UserError(Exception):
    """A mistake in what the user gave: the message names the file, the record and the mend."""


def run_command(job: Callable[[], object]) -> int:
    """Run a command's work and turn mistakes of the user's into one line on stderr.

    Args:
        job: The work, without arguments.

    Returns:
        The exit code: 0, or 2 after a :class:`UserError` or a checkpoint that cannot be read.
        ``MMPLUS_DEBUG=1`` lets such errors through with their traceback; all others always pass.
    """
    try:
        job()
    except (UserError, pickle.UnpicklingError) as error:
        if os.environ.get("MMPLUS_DEBUG", "0") not in ("", "0"):
            raise
        # Every process of a distributed job meets the same mistake; one line is enough. The first
        # to leave takes the others with it, so that those that stay silent leave last.
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            time.sleep(_PATIENCE)
        return 2
    return 0
