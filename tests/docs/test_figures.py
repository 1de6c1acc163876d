"""The figures of the manual are those that their scripts draw from the code."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def script(name, monkeypatch):
    # The scripts share docs/drawing.py.
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["draw_maskplus", "draw_refine"])
def test_figures_are_as_the_code_is(name, monkeypatch):
    figure = script(name, monkeypatch)
    assert figure.TARGET.read_text() == figure.draw(), f"run python docs/{name}.py"
    notes = figure.run()
    notes = notes[0] if isinstance(notes, tuple) else notes
    assert notes.shapes.keys() == figure.BOXES.keys()
    drawn = [arrow[:2] for arrow in figure.ARROWS] + [getattr(figure, "DETOUR", None)]
    assert set(drawn) - {None} == notes.arrows()
