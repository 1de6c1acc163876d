"""Records of ``tools/compare_fusers.py`` on the same model from several seeds, as one table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from mmdet_plus.engine.comparison import markdown_table, summarise
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.fuser_comparison import tell_pairs

#: The columns, where nothing else is wanted.
FIGURES = ("PQ", "PQ_th", "SQ_th", "RQ_th", "PQ_st")


def over_seeds(records: Sequence[Mapping[str, Any]], figures: Sequence[str] = FIGURES) -> str:
    """Lay out mean and spread of each fuser, the first one as what the others are compared with.

    Args:
        records: One for each seed, of the same fusers.
        figures: Of ``metrics``.

    Returns:
        A Markdown table in percent, and, where the model has a network, how many overlapping pairs
        of all seeds it, the scores alone and Eq. 7 order rightly.

    Raises:
        UserError: The records are of different fusers, or there is none.
    """
    names = [list(record["fusers"]) for record in records]
    if not names or any(other != names[0] for other in names):
        raise UserError("a table over seeds needs records of the same fusers, at least one")
    summary = summarise(
        [
            dict(config=name, seed=seed, metrics=record["fusers"][name]["metrics"])
            for seed, record in enumerate(records)
            for name in names[0]
        ]
    )
    text = markdown_table(summary, names[0], figures)
    pairs = [record["overlapping_pairs"] for record in records if "overlapping_pairs" in record]
    total = sum(map(Counter, pairs), Counter())
    return text + tell_pairs(total) if total["number"] else text
