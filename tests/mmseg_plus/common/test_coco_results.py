"""COCO's results files."""

import json

import pytest

from mmseg_plus.common.coco_checks import AnnotationError, MissingDataError
from mmseg_plus.common.coco_results import is_score, read_results


def test_records_are_read_as_they_are(tmp_path):
    records = [dict(image_id=1), "x", None]
    (tmp_path / "r.json").write_text(json.dumps(records))
    assert read_results(tmp_path / "r.json") == records


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, MissingDataError, "r.json: there is no such file of results"),
        ("[1, ", AnnotationError, "r.json: not a JSON file"),
        ('{"a": 1}', AnnotationError, "r.json: holds a dict, not a list of COCO results"),
        ('{"annotations": []}', AnnotationError, "it looks like ground truth"),
    ],
)
def test_other_files_are_told(tmp_path, content, error, message):
    if content is not None:
        (tmp_path / "r.json").write_text(content)
    with pytest.raises(error, match=message):
        read_results(tmp_path / "r.json")


def test_scores_are_finite_numbers():
    assert all(map(is_score, (0, 0.5, -1, 1e9)))
    no_scores = (True, "1", None, [], float("nan"), float("inf"), 10**400)
    assert not any(map(is_score, no_scores))
