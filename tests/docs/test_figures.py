"""The figures of the manual are those that their scripts draw from the code."""

import pytest


@pytest.mark.parametrize("name", ["draw_maskplus", "draw_refine"])
def test_figures_are_as_the_code_is(name, docs_script):
    figure = docs_script(name)
    assert figure.TARGET.read_text() == figure.draw(), f"run python docs/{name}.py"
    notes = figure.run()
    notes = notes[0] if isinstance(notes, tuple) else notes
    assert notes.shapes.keys() == figure.BOXES.keys()
    drawn = [arrow[:2] for arrow in figure.ARROWS] + [getattr(figure, "DETOUR", None)]
    assert set(drawn) - {None} == notes.arrows()
