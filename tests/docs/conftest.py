"""Scripts of the docs, for tests."""

import importlib.util
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture()
def docs_script(monkeypatch):
    """Import a script of docs/ by its name."""
    # Those that draw share docs/drawing.py.
    monkeypatch.setattr(sys, "path", [str(DOCS), *sys.path])

    def load(name):
        spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
