"""Lets the tests here import ``tiny_zoo`` from the engine's tests."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "mmdet_plus" / "engine"))
