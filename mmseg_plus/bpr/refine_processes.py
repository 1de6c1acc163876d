"""What the processes of one refinement tell each other."""

import datetime
import os
from collections.abc import Callable

from torch import distributed as dist

from mmseg_plus.common.errors import UserError

# A process may wait for days for one that has larger images; one that dies breaks its connections.
_TIMEOUT = datetime.timedelta(days=30)


class Processes:
    """The processes of a job; those of torch.distributed, or one alone.

    Args:
        rank: Of this process; torch.distributed's if None.
        world_size: Number of processes; torch.distributed's if None.

    Raises:
        ValueError: torch.distributed has not been initialised for so many.
        UserError: Another process has ended.
    """

    def __init__(self, rank: int | None = None, world_size: int | None = None) -> None:
        group = dist.is_available() and dist.is_initialized()
        self.rank = rank if rank is not None else (dist.get_rank() if group else 0)
        known = dist.get_world_size() if group else 1
        self.world_size = world_size if world_size is not None else known
        if not 0 <= self.rank < self.world_size or self.world_size not in (1, known):
            raise ValueError(
                f"rank {self.rank} of {self.world_size} processes, but torch.distributed has "
                f"{known}; initialise it in each of them"
            )
        self._group = None
        self._launcher = os.getppid()
        if self.world_size > 1:
            # Of its own: nccl would need a GPU to wait on, and the default's patience is short.
            with _peers():
                self._group = dist.new_group(backend="gloo", timeout=_TIMEOUT)

    def from_first(self, job: Callable[[], tuple]) -> tuple:
        """Do something in the first process and tell all what came of it, also its UserError."""
        if self._group is None:
            return job()
        told: list = [None, None]
        if self.rank == 0:
            try:
                told[0] = job()
            except UserError as error:
                told[1] = str(error)
        with _peers():
            dist.broadcast_object_list(told, src=0, group=self._group)
        if told[1] is not None:
            raise UserError(told[1])
        return told[0]

    def require_launcher(self) -> None:
        """Stop where what has started these processes is gone, rather than work on unseen."""
        if self._group is not None and os.getppid() != self._launcher:
            raise UserError(
                "what started the processes of this job has ended, so this one ends too; go on "
                "with --resume: finished images are kept"
            )

    def wait(self) -> None:
        """Wait for all."""
        if self._group is not None:
            with _peers():
                dist.barrier(self._group)


class _peers:
    """Tells in a user's words that another process is gone."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RuntimeError):
            raise UserError(
                "another process of this job has ended early; its own message tells why. Mend "
                "that, and go on with --resume: finished images are kept"
            ) from error
