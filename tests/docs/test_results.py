"""Figures in docs/results come from the records that lie beside them."""

import json

from mmdet_plus.engine.comparison import summarise


def studies(root):
    """Folders of finished comparisons."""
    return sorted(path.parent for path in (root / "docs/results").glob("*/*/summary.json"))


def test_there_are_results(repo_root):
    assert studies(repo_root)


def test_summaries_follow_from_their_records(repo_root):
    for folder in studies(repo_root):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*.json"))]
        assert summarise(records) == json.loads((folder / "summary.json").read_text()), folder


def test_pages_quote_the_summaries(repo_root):
    for folder in studies(repo_root):
        page = (folder.parent.with_suffix(".md")).read_text()
        for row in (folder / "summary.md").read_text().splitlines():
            assert row in page, f"{folder.parent.name}.md lacks a row of {folder.name}: {row}"


def test_records_tell_command_and_log(repo_root):
    for folder in studies(repo_root):
        for path in folder.glob("*_seed*.json"):
            record = json.loads(path.read_text())
            assert record["command"].startswith("python tools/train.py configs/"), path
            assert f"randomness.seed={record['seed']}" in record["command"], path
            assert record["training"][-1]["step"] == record["iterations"] > 0
