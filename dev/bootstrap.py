"""Set up a clone: virtual environment, pinned dependencies, mmcv, and this package.

Runs with the bare Python of the machine, standard library alone. ``make`` calls it; by hand:

    python3 dev/bootstrap.py [--stack mmlab|onedl] [--docs]

This file keeps to syntax that Python 3.6 parses, so that an old Python gets a message, not a
SyntaxError; the work is in ``dev/_bootstrap``.
"""

import os
import sys

OLDEST = (3, 10)
NEWEST = (3, 12)


def python_complaint(version, others):
    """Say why a Python cannot be used, or None where it can.

    Args:
        version: (major, minor) of the running Python.
        others: commands of usable Pythons that are on this machine.
    """
    if OLDEST <= tuple(version[:2]) <= NEWEST:
        return None
    fault = "too old" if tuple(version[:2]) < OLDEST else "too new (torch and mmcv are pinned)"
    if others:
        advice = f"This machine has {others[0]}: make ... PYTHON={others[0]}"
    else:
        advice = "Install one of them and name it: make ... PYTHON=python3.11"
    oldest, newest, this = (f"{major}.{minor}" for major, minor in (OLDEST, NEWEST, version[:2]))
    return f"MMPlus needs Python {oldest} to {newest}; this is {this}, {fault}. {advice}"


def usable_pythons():
    """Commands ``python3.N`` on PATH that answer with a version MMPlus can use."""
    import subprocess

    found = []
    for minor in range(NEWEST[1], OLDEST[1] - 1, -1):
        command = f"python3.{minor}"
        try:
            code = subprocess.call(
                [command, "-c", "pass"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
        except OSError:
            continue
        if code == 0:
            found.append(command)
    return found


def main():
    if not OLDEST <= sys.version_info[:2] <= NEWEST:
        sys.exit("bootstrap: " + python_complaint(sys.version_info, usable_pythons()))
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    sys.dont_write_bytecode = True
    from _bootstrap.cli import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
