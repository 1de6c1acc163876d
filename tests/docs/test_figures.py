"""Figures that are drawn from the code show the code as it is."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_data_flow_of_maskplus():
    spec = importlib.util.spec_from_file_location("draw_maskplus", ROOT / "docs/draw_maskplus.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.TARGET.read_text() == script.draw(), "run python docs/draw_maskplus.py"
    found, _ = script.shapes()
    assert found.keys() == script.BOXES.keys()
    assert {end for arrow in script.ARROWS for end in arrow} == script.BOXES.keys()
