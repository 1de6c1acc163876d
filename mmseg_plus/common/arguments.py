"""Numbers on the command line, for argparse's ``type``; their names stand in its errors."""

import math


def count(text: str) -> int:
    """A whole number of at least 1."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def whole(text: str) -> int:
    """A whole number of at least 0."""
    number = int(text)
    if number < 0:
        raise ValueError
    return number


def amount(text: str) -> float:
    """A finite number of at least 0."""
    number = float(text)
    if not 0 <= number < math.inf:
        raise ValueError
    return number


def share(text: str) -> float:
    """A number in [0, 1]."""
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError
    return number
