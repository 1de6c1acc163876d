"""Processes that share out tasks; what comes of them stands in the tasks' order."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import cv2
import torch

from mmseg_plus.common.errors import UserError

# Tasks that wait for their turn, for each process.
_AHEAD = 4

_worker_job: Any = None


class Workers:
    """Does tasks in processes, or in this one, and hands their results out in order.

    Args:
        job: What all tasks share.
        number: Of processes; 0 for this one.
        mend: What a user can do where a process dies.
    """

    def __init__(self, job: object, number: int, mend: str) -> None:
        self._job, self._number, self._mend = job, number, mend
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        if self._number:
            # Forked workers start at once; spawned ones import everything anew.
            method = "fork" if sys.platform.startswith("linux") else "spawn"
            self._pool = ProcessPoolExecutor(
                self._number,
                mp_context=multiprocessing.get_context(method),
                initializer=_begin_worker,
                initargs=(self._job,),
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def __call__(self, function: Callable[[Any, Any], Any], tasks: Sequence) -> Iterator:
        """Do tasks.

        Args:
            function: A module-level function, because processes look it up by name; it gets the job
                and a task.
            tasks: Any number of them.

        Yields:
            What the function returned, in the order of the tasks.

        Raises:
            UserError: A process died.
        """
        if self._pool is None:
            yield from (function(self._job, task) for task in tasks)
            return
        pending: deque = deque()
        with _one_thread():
            try:
                for task in tasks:
                    pending.append(self._pool.submit(_call, function, task))
                    if len(pending) >= _AHEAD * self._number:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"a worker process died (out of memory, or killed); {self._mend}"
                ) from error


def _begin_worker(job: object) -> None:
    global _worker_job
    _worker_job = job
    # Ctrl-C reaches all; the process that started this one ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Do not wait for work for ever where the process that gives it was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _call(function: Callable, task: Any) -> Any:
    return function(_worker_job, task)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep OpenCV to one thread while processes share the work: a fork must find no others."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)
