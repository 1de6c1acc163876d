"""Speed of what happens outside of networks."""

import tempfile
import time
from pathlib import Path
from typing import Any

from mmdet_plus.datasets import make_shapes
from mmseg_plus.common.compat import available_cores

from .timing import environment


def shapes_speed(images: int = 1000, size: tuple[int, int] = (256, 256)) -> dict[str, Any]:
    """Measure how fast Shapes is drawn and written, annotations included.

    Args:
        images: How many.
        size: Width and height in pixels.

    Returns:
        A record with a row for one process and one for a process per core: ``seconds`` and
        ``images_per_second``, the start of the processes included.
    """
    rows = []
    for workers in dict.fromkeys((0, available_cores())):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            make_shapes(
                Path(folder) / "shapes", images, 0, image_size=size, workers=workers, progress=False
            )
            seconds = time.perf_counter() - start
        rows.append(
            {
                "processes": max(1, workers),
                "images": images,
                "size": list(size),
                "seconds": round(seconds, 2),
                "images_per_second": round(images / seconds, 1),
            }
        )
    return {"environment": environment(), "shapes": rows}
