"""What ``tools/compare.py`` does: configs side by side, same budget, several seeds.

Every run leaves one JSON file with its command, its figures and its log; the summary is computed
from these files alone, and runs whose file is there are not repeated.
"""

import contextlib
import hashlib
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config

from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.stages import (
    BOOKKEEPING,
    Stage,
    read_scalars,
    run_chains,
    shown,
)
from mmseg_plus.common.compat import available_cores, versions
from mmseg_plus.common.config import resolve_config
from mmseg_plus.common.files import only_one, write_file, write_json
from mmseg_plus.common.progress import ProgressLine

_BUSY = "a training is at work there, or one that was left behind; wait for it, or end it"


class Run(NamedTuple):
    """One training: what makes it, where it works and where its record goes.

    ``digest`` stands for the whole of the config, with the options and all that it inherits.
    """

    config: Path
    seed: int
    digest: str
    work_dir: Path
    record: Path

    @property
    def name(self) -> str:
        """For people: config and seed."""
        return f"{self.config.stem} seed {self.seed}"


def plan_runs(
    configs: Sequence[str],
    seeds: Sequence[int],
    out: Path,
    work_dirs: Path,
    options: Sequence[str] = (),
) -> list[Run]:
    """List the runs of a comparison, seed by seed, so that an early stop leaves whole rows.

    A run works in a folder named after its config's content, so that no run goes on from, or
    reports the figures of, a run with other settings.

    Raises:
        UserError: A config is not found, two have the same file name, a seed is given twice, or a
            record in ``out`` was made with other settings.
    """
    paths = [resolve_config(name) for name in configs]
    stems = [path.stem for path in paths]
    if len(set(stems)) != len(stems):
        raise UserError(f"configs of one name cannot be told apart in {out}: {', '.join(stems)}")
    if len(set(seeds)) != len(seeds):
        raise UserError(f"--seeds: each seed once, not {' '.join(map(str, seeds))}")
    digests = [config_digest(path, options) for path in paths]
    runs = []
    for seed in seeds:
        for path, digest in zip(paths, digests, strict=True):
            name = f"{path.stem}_seed{seed}"
            run = Run(path, seed, digest, work_dirs / f"{name}_{digest}", out / f"{name}.json")
            _check_record(run)
            runs.append(run)
    return runs


def config_digest(config: Path, options: Sequence[str] = ()) -> str:
    """Name the settings of a config: the same for the same ones, wherever the clone lies.

    Args:
        config: The file; what it inherits counts.
        options: ``key=value`` pairs that change it, in any order.

    Returns:
        Eight hex digits.
    """
    settings = Config.fromfile(config)
    # Which code is imported grows with the zoo, and sets nothing.
    settings.pop("custom_imports", None)
    # Some settings are paths beside the config.
    text = settings.pretty_text.replace(str(config.resolve().parents[1]), "")
    return hashlib.sha256("\n".join([text, *sorted(options)]).encode()).hexdigest()[:8]


def _check_record(run: Run) -> None:
    if not run.record.is_file():
        return
    try:
        found = json.loads(run.record.read_text()).get("config_digest")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{run.record}: not a record ({error}); delete it") from error
    if found != run.digest:
        raise UserError(
            f"{run.record}: made with another content of {run.config.stem} or with other options "
            "than now; choose another --out, or delete that record to make it anew"
        )


def summarise(records: Sequence[dict]) -> dict[str, dict[str, dict[str, Any]]]:
    """Mean and spread over seeds of the last validation's figures.

    Args:
        records: The records of all runs.

    Returns:
        By config and metric: ``mean``, ``std`` (of the sample, 0 for one seed) and ``values``
        by seed.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        for metric, value in record["metrics"].items():
            entry = summary.setdefault(record["config"], {}).setdefault(metric, {"values": {}})
            entry["values"][str(record["seed"])] = value
    for metrics in summary.values():
        for entry in metrics.values():
            values = list(entry["values"].values())
            entry["mean"] = statistics.fmean(values)
            entry["std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    return summary


def markdown_table(summary: dict, order: Sequence[str], metrics: Sequence[str]) -> str:
    """The summary as a table; the first config is what the others are compared with."""
    head = ["config", *(metric.rpartition("/")[2] for metric in metrics)]
    lines = [head, ["---"] * len(head)]
    for config in order:
        row = [config]
        for metric in metrics:
            entry, base = summary[config].get(metric), summary[order[0]].get(metric)
            if entry is None:
                row.append("")
                continue
            cell = f"{entry['mean']:.3f}"
            if len(entry["values"]) > 1:
                cell += f" ± {entry['std']:.3f}"
            if config != order[0] and base is not None:
                cell += f" ({entry['mean'] - base['mean']:+.3f})"
            row.append(cell)
        lines.append(row)
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def compare(
    configs: Sequence[str],
    seeds: Sequence[int],
    out: str,
    train_script: Path,
    work_dirs: str = "work_dirs/compare",
    jobs: int = 1,
    options: Sequence[str] = (),
    line: ProgressLine | None = None,
) -> dict:
    """Train every config with every seed and write records, ``summary.json`` and ``summary.md``.

    A run that was killed goes on from its last checkpoint when the comparison is started again.

    Args:
        configs: Paths or names; the first is the baseline of the table.
        seeds: Seeds, the same for each config.
        out: Folder of the records.
        train_script: ``tools/train.py``.
        work_dirs: Folder of the runs' working folders.
        jobs: Runs at a time; each gets its share of the cores.
        options: ``key=value`` pairs for all runs.
        line: Shows the progress; on stdout by default.

    Returns:
        The summary.

    Raises:
        UserError: A config is not found, a record in ``out`` was made with other settings, a run
            is at work already, or a run failed; the message names its log.
    """
    if jobs < 1:
        raise UserError(f"--jobs: at least 1, not {jobs}")
    line = line or ProgressLine(interval=60.0)
    folder = Path(out)
    runs = plan_runs(configs, seeds, folder, Path(work_dirs), options)
    waiting = {run: _stage(run, train_script, options) for run in runs if not run.record.is_file()}
    if len(waiting) < len(runs):
        line.say(f"{len(runs) - len(waiting)} of {len(runs)} runs have their record in {out}")
    with contextlib.ExitStack() as stack:
        locks = [
            stack.enter_context(only_one(stage.folder, busy=_BUSY)) for stage in waiting.values()
        ]
        owners = {stage: run for run, stage in waiting.items()}
        for stage, run in owners.items():
            if stage.record.is_file():
                _write_record(run, stage)
        run_chains(
            [[stage] for stage in owners],
            line,
            threads=max(1, available_cores() // jobs),
            at_once=jobs,
            locks=locks,
            done=lambda stage: _write_record(owners[stage], stage),
        )
    return _write_summary(runs, folder)


def _stage(run: Run, train_script: Path, options: Sequence[str]) -> Stage:
    command = (
        shown(train_script),
        shown(run.config),
        "--work-dir",
        shown(run.work_dir),
        "--resume",
        "--cfg-options",
        f"randomness.seed={run.seed}",
        *options,
    )
    return Stage(run.name, run.work_dir, command)


def _write_record(run: Run, stage: Stage) -> None:
    training, validation = read_scalars(run.work_dir)
    if not validation:
        raise UserError(
            f"{run.config}: the training never validated; set train_cfg.val_interval so that it "
            "does after the last iteration"
        )
    done = json.loads(stage.record.read_text())
    record = {
        "command": done["command"],
        "config": run.config.stem,
        "config_digest": run.digest,
        "seed": run.seed,
        "metrics": {key: v for key, v in validation[-1].items() if key not in BOOKKEEPING},
        # A validation counts in epochs unless the config says otherwise.
        "iterations": max(entry["step"] for entry in training),
        **{key: done[key] for key in ("seconds", "cpu_seconds", "continued", "threads")},
        "versions": versions(),
        "validation": validation,
        "training": [
            {key: round(value, 5) for key, value in entry.items() if key != "memory"}
            for entry in training
        ],
    }
    write_json(run.record, record, indent=None)


def _write_summary(runs: Sequence[Run], folder: Path) -> dict:
    records = [json.loads(run.record.read_text()) for run in runs]
    summary = summarise(records)
    order = list(dict.fromkeys(run.config.stem for run in runs))
    # COCO's metrics are -1 where there is nothing to measure, such as large things among nuclei.
    metrics = [key for key, value in records[0]["metrics"].items() if value >= 0]
    write_json(folder / "summary.json", summary)
    write_file(folder / "summary.md", markdown_table(summary, order, metrics).encode())
    return summary
