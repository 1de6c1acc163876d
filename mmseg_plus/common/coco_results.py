"""COCO's results files, as they are sent to its server: a list of records."""

import json
import math
import os
from pathlib import Path

from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError


def read_results(path: str | os.PathLike) -> list:
    """Read the records, which are not looked at.

    Raises:
        MissingDataError: There is no such file.
        AnnotationError: It is no JSON, or no list.
    """
    if not os.path.isfile(path):
        raise MissingDataError(f"{path}: there is no such file of results")
    try:
        content = json.loads(Path(path).read_bytes())
    except ValueError as fault:
        raise AnnotationError(
            f"{path}: not a JSON file ({fault}); is it cut short or another kind of file? "
            "Write it again"
        ) from None
    if not isinstance(content, list):
        hint = ""
        if isinstance(content, dict) and "annotations" in content:
            hint = "; it looks like ground truth, which is not what a model found"
        raise AnnotationError(
            f"{path}: holds a {type(content).__name__}, not a list of COCO results "
            f'[{{"image_id": ..., "category_id": ..., "segmentation": ..., "score": ...}}]{hint}'
        )
    return content


def is_score(value: object) -> bool:
    """Whether a value is a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number of hundreds of digits
        return False
