"""What ``tools/compare.py`` does: configs side by side, same budget, several seeds.

Every run leaves one JSON file with its command, its figures and its log; the summary is computed
from these files alone, and runs whose file is there are not repeated.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mmdet_plus.engine.config import resolve_config
from mmdet_plus.engine.errors import UserError
from mmdet_plus.files import write_file, write_json

_POLL_SECONDS = 2.0
_REPORT_SECONDS = 60.0


class Run(NamedTuple):
    """One training: a config, a seed, where it works and where its record goes."""

    config: Path
    seed: int
    work_dir: Path
    record: Path

    @property
    def name(self) -> str:
        """For people: config and seed."""
        return f"{self.config.stem} seed {self.seed}"


def plan_runs(
    configs: Sequence[str], seeds: Sequence[int], out: Path, work_dirs: Path
) -> list[Run]:
    """List the runs of a comparison, seed by seed, so that an early stop leaves whole rows.

    Raises:
        UserError: A config is not found, or two have the same file name.
    """
    paths = [resolve_config(name) for name in configs]
    stems = [path.stem for path in paths]
    if len(set(stems)) != len(stems):
        raise UserError(f"configs of one name cannot be told apart in {out}: {', '.join(stems)}")
    return [
        Run(path, seed, work_dirs / f"{path.stem}_seed{seed}", out / f"{path.stem}_seed{seed}.json")
        for seed in seeds
        for path in paths
    ]


def read_scalars(work_dir: Path) -> tuple[list[dict], list[dict]]:
    """Read what mmengine logged in a working folder, resumed parts included.

    Returns:
        The training records by iteration, a later part replacing an earlier one, and all
        validation records in the order of the log, each a flat dict.
    """
    training: dict[int, dict] = {}
    validation: list[dict] = []
    for path in sorted(work_dir.glob("*/vis_data/*.json")):
        for line in path.read_text().splitlines():
            if not line.startswith("{"):
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a run that was killed
            if "loss" in record:
                training[record.get("iter", record["step"])] = record
            elif any("/" in key for key in record):
                validation.append(record)
    return list(training.values()), validation


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
    say: Callable[[str], None] = print,
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
        say: Receives lines of progress.

    Returns:
        The summary.

    Raises:
        UserError: A config is not found, or a run failed; the message names its log.
    """
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    runs = plan_runs(configs, seeds, folder, Path(work_dirs))
    waiting = [run for run in runs if not run.record.is_file()]
    if len(waiting) < len(runs):
        say(f"{len(runs) - len(waiting)} of {len(runs)} runs have their record in {out} already")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    running: dict[Run, tuple[subprocess.Popen, float, list[str]]] = {}
    last_report = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                command = _command(run, train_script, options)
                running[run] = (_start(run, command, threads), time.monotonic(), command)
                say(f"{run.name}: started, log in {run.work_dir / 'train.log'}")
            time.sleep(_POLL_SECONDS)
            for run in [r for r, (process, *_) in running.items() if process.poll() is not None]:
                process, start, command = running.pop(run)
                if process.returncode != 0:
                    raise UserError(
                        f"{run.name} ended with code {process.returncode}: read the end of "
                        f"{run.work_dir / 'train.log'}, then start the comparison again; "
                        "finished runs are kept"
                    )
                _write_record(run, command, threads, time.monotonic() - start)
                say(f"{run.name}: done in {time.monotonic() - start:.0f} s")
            if running and time.monotonic() - last_report > _REPORT_SECONDS:
                last_report = time.monotonic()
                say("; ".join(f"{run.name}: iteration {_iteration(run)}" for run in running))
    finally:
        for process, *_ in running.values():
            process.terminate()
    return _write_summary(runs, folder)


def _command(run: Run, train_script: Path, options: Sequence[str]) -> list[str]:
    """The command of a run, as a person would type it in the repository."""
    config = os.path.relpath(run.config) if run.config.is_relative_to(Path.cwd()) else run.config
    return [
        "python",
        os.path.relpath(train_script) if train_script.is_relative_to(Path.cwd()) else train_script,
        str(config),
        "--work-dir",
        str(run.work_dir),
        "--resume",
        "--cfg-options",
        f"randomness.seed={run.seed}",
        *options,
    ]


def _start(run: Run, command: list[str], threads: int) -> subprocess.Popen:
    run.work_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with open(run.work_dir / "train.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, *map(str, command[1:])],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _iteration(run: Run) -> int:
    training, _ = read_scalars(run.work_dir)
    return max((record["step"] for record in training), default=0)


def _write_record(run: Run, command: list[str], threads: int, seconds: float) -> None:
    training, validation = read_scalars(run.work_dir)
    if not validation:
        raise UserError(
            f"{run.config}: the training never validated; set train_cfg.val_interval so that it "
            "does after the last iteration"
        )
    last = validation[-1]
    record = {
        "command": shlex.join(map(str, command)),
        "config": run.config.stem,
        "seed": run.seed,
        "metrics": {key: value for key, value in last.items() if "/" in key},
        # A validation counts in epochs unless the config says otherwise.
        "iterations": max(entry["step"] for entry in training),
        "seconds": round(seconds, 1),
        "threads": threads,
        "torch": torch.__version__,
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
