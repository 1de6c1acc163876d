"""Times of calls, taken in turn so that whatever else the machine does meets all of them."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from mmseg_plus.common.compat import available_cores, versions


def time_in_turn(
    calls: Mapping[str, Callable[[], object]], repeats: int, warm_up: int = 1
) -> dict[str, dict[str, Any]]:
    """Time several calls, one after the other in each round.

    Args:
        calls: Functions without arguments, by name.
        repeats: Rounds that count, at least 1.
        warm_up: Rounds before them.

    Returns:
        By name: ``median``, ``fastest`` and ``seconds`` (of each round), in seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(-warm_up, repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            elapsed = time.perf_counter() - start
            if number >= 0:
                seconds[name].append(elapsed)
    return {
        name: {
            "median": statistics.median(values),
            "fastest": min(values),
            "seconds": [round(value, 6) for value in values],
        }
        for name, values in seconds.items()
    }


def environment() -> dict[str, Any]:
    """Tell where a figure was measured.

    Returns:
        Processor, cores, torch's threads, GPU if there is one, and versions.
    """
    return {
        "processor": _processor(),
        "cores": available_cores(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
