"""Records of ``tools/compare_fusers.py`` on the same model from several seeds, as one table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet_plus.engine.comparison import markdown_table, summarise
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.fuser_comparison import tell_pairs

#: The columns, where nothing else is wanted.
FIGURES = ("PQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st")


def table_over_seeds(
    rows: Mapping[str, Sequence[Mapping[str, float]]], figures: Sequence[str] = FIGURES
) -> str:
    """Lay out mean and spread of each row, the first one as what the others are compared with.

    Args:
        rows: By name, the ``metrics`` of each seed.
        figures: Of ``metrics``.

    Returns:
        A Markdown table in percent.
    """
    records = [
        dict(config=name, seed=seed, metrics=metrics)
        for name, seeds in rows.items()
        for seed, metrics in enumerate(seeds)
    ]
    return markdown_table(summarise(records), list(rows), figures)


def over_seeds(records: Sequence[Mapping[str, Any]], figures: Sequence[str] = FIGURES) -> str:
    """Lay out the fusers of one model, trained with several seeds.

    Args:
        records: One for each seed, of the same fusers.
        figures: Of ``metrics``.

    Returns:
        The table of :func:`table_over_seeds`, and, where the model has a network, how many
        overlapping pairs of all seeds it, the scores alone and Eq. 7 order rightly.

    Raises:
        UserError: The records are of different fusers, or there is none.
    """
    names = [list(record["fusers"]) for record in records]
    if not names or any(other != names[0] for other in names):
        raise UserError("a table over seeds needs records of the same fusers, at least one")
    rows = {name: [record["fusers"][name]["metrics"] for record in records] for name in names[0]}
    text = table_over_seeds(rows, figures)
    pairs = [record["overlapping_pairs"] for record in records if "overlapping_pairs" in record]
    total = sum(map(Counter, pairs), Counter())
    return text + tell_pairs(total) if total["number"] else text
