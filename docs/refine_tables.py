"""Print the tables of docs/results/refine.md from the records in docs/results/refine.

    python docs/refine_tables.py

A test looks for each of them on the page.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmdet_plus.engine.fuser_summary import over_seeds, table_over_seeds

RECORDS = Path(__file__).resolve().parent / "results/refine"
SEEDS = (0, 1, 2)
# What a row of a table is: its name, the model, the fuser.
LADDER = (
    ("Panoptic FPN (T = 0)", "t0", "heuristic"),
    ("+ IBPP (T = 3)", "refine", "heuristic"),
    ("+ soft occlusion estimation", "refine", "SOE 2.5"),
    ("+ unknown erasing", "refine", "SOE 2.5, UE"),
)
RIVALS = (
    ("heuristic", "refine", "heuristic"),
    ("OANet's ranking", "spatial-ranking", "spatial_ranking"),
    ("OCFusion", "ocfusion", "occlusion"),
    ("strong baseline", "refine", "strong baseline"),
    ("SOE", "refine", "SOE 2.5"),
)
ERASED = (
    ("Panoptic FPN (T = 0)", "t0", "heuristic"),
    ("Panoptic FPN, erasing", "t0", "heuristic, UE"),
    ("IBPP (T = 3)", "refine", "heuristic"),
    ("IBPP, erasing", "refine", "heuristic, UE"),
)
INSTANCE_FIGURES = ("PQ", "PQ_th", "PQ_st", "bbox_mAP", "segm_mAP", "segm_mAP_50", "segm_mAP_75")
PRIORS = (
    ("masks", "occlusion-masks", "soft_occlusion"),
    ("masks, features", "ocfusion", "soft_occlusion"),
    ("masks, features, labels", "refine", "SOE 2.5"),
)


def read(name: str) -> dict[str, Any]:
    """A record by its name in the folder."""
    return json.loads((RECORDS / f"{name}.json").read_text())


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Mean and spread of each row over the seeds."""
    return table_over_seeds(
        {
            name: [read(f"fusers/{model}_seed{seed}")["fusers"][fuser]["metrics"] for seed in SEEDS]
            for name, model, fuser in rows
        }
    )


def instances() -> str:
    """AP of boxes and masks before any fusion, beside PQ."""
    rows: dict[str, list[dict[str, float]]] = {}
    for row in read("instances")["rows"]:
        rows.setdefault(row["name"], []).append(row["metrics"])
    return table_over_seeds(rows, INSTANCE_FIGURES)


def sigmas() -> str:
    """All fusers of the whole model, and the order of its pairs."""
    return over_seeds([read(f"fusers/refine_seed{seed}") for seed in SEEDS])


def pairs() -> str:
    """How often each network orders a pair rightly."""
    rows = ["| network | pairs | right by the network | right by score |", "|---|---|---|---|"]
    for name, model in (
        ("masks, features, labels", "refine"),
        ("masks, features", "ocfusion"),
        ("masks", "occlusion-masks"),
        ("OANet's ranking", "spatial-ranking"),
    ):
        counts = [read(f"fusers/{model}_seed{seed}")["overlapping_pairs"] for seed in SEEDS]
        number, *right = (
            sum(count[key] for count in counts)
            for key in ("number", "right_by_network", "right_by_score")
        )
        shares = [f"{100 * value / number:.1f} %" for value in right]
        rows.append(f"| {' | '.join([name, str(number), *shares])} |")
    return "\n".join(rows) + "\n"


def erasing() -> str:
    """PQ of the first seed by threshold and dilation."""
    fusers: Mapping[str, Any] = read("erasing")["fusers"]
    kinds = [name.removesuffix(" px").split(", ") for name in fusers if name != "none"]
    thresholds, dilations = (list(dict.fromkeys(part)) for part in zip(*kinds, strict=True))
    rows = [
        f"| threshold | {' | '.join(f'dilation {dilation}' for dilation in dilations)} |",
        "|---" * (1 + len(dilations)) + "|",
    ]
    for threshold in thresholds:
        cells = [fusers[f"{threshold}, {dilation} px"]["metrics"]["PQ"] for dilation in dilations]
        rows.append(f"| {threshold} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")
    return "\n".join(rows) + "\n"


def canvas() -> str:
    """Pixels that the semantics of each iteration name rightly, with and without the canvas."""
    columns = {"": "with_canvas", ", empty canvas": "with_empty_canvas"}
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        for row in read(f"canvas/seed{seed}")["training"]["share_named_rightly"]:
            shares = {
                f"{group}{column}": 100 * row[kind][group]
                for group in ("things", "stuff")
                for column, kind in columns.items()
            }
            rows.setdefault(f"t = {row['t']}", []).append(shares)
    return table_over_seeds(rows, tuple(shares))


def semantics() -> str:
    """Mean IoU of the semantics of each iteration, in percent."""
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in SEEDS:
        for row in read(f"canvas/seed{seed}")["test"]["mean_iou"]:
            iou = {group: 100 * row[group] for group in ("things", "stuff")}
            rows.setdefault(f"t = {row['t']}", []).append(iou)
    return table_over_seeds(rows, tuple(iou))


def tables() -> dict[str, str]:
    """All tables, by what they show."""
    return {
        "instances": instances(),
        "canvas": canvas(),
        "semantics": semantics(),
        "ladder": table(LADDER),
        "rivals": table(RIVALS),
        "priors": table(PRIORS),
        "sigmas": sigmas(),
        "pairs": pairs(),
        "erased": table(ERASED),
        "erasing": erasing(),
    }


if __name__ == "__main__":
    for title, text in tables().items():
        print(f"{title}\n\n{text}")
