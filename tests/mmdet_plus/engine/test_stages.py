"""Stages: done once, beside each other, with errors that name the log."""

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmdet_plus.engine import stages
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.stages import (
    Stage,
    iterations_done,
    read_scalars,
    run_chains,
    shown,
)
from mmseg_plus.common.files import write_json
from mmseg_plus.common.progress import ProgressLine


def python(name, folder, code, iterations=0):
    return Stage(name, folder, ("-c", code), iterations)


def quiet():
    return ProgressLine(io.StringIO())


def test_stages_of_a_chain_follow_each_other_and_chains_do_not_wait(tmp_path):
    note = (
        "import pathlib, time; pathlib.Path('{0}').write_text(repr(time.time())); time.sleep({1})"
    )
    chains = [
        [
            python("a1", tmp_path / "a1", note.format(tmp_path / "t1", 2)),
            python("a2", tmp_path / "a2", note.format(tmp_path / "t2", 0)),
        ],
        [python("b", tmp_path / "b", note.format(tmp_path / "t3", 0))],
    ]
    run_chains(chains, quiet(), threads=1)
    first, second, other = (float((tmp_path / f"t{i}").read_text()) for i in (1, 2, 3))
    assert second - first >= 2
    assert abs(other - first) < 2


def test_record_says_what_was_run_and_at_what_cost(tmp_path):
    code = "import time\nstart = time.process_time()\nwhile time.process_time() - start < 1: pass"
    stage = python("busy", tmp_path / "busy", code)
    run_chains([[stage]], quiet(), threads=3)
    record = json.loads(stage.record.read_text())
    assert record["name"] == "busy" and record["threads"] == 3
    assert record["command"].startswith("python -c 'import time")
    assert 1 <= record["cpu_seconds"] < 1.9
    assert record["seconds"] >= 1


def test_a_finished_stage_is_not_repeated(tmp_path):
    code = f"open({str(tmp_path / 'runs')!r}, 'a').write('x')"
    stage = python("once", tmp_path / "once", code)
    for _ in range(2):
        run_chains([[stage]], quiet(), threads=1)
    assert (tmp_path / "runs").read_text() == "x"


def test_threads_and_output_of_a_stage(tmp_path):
    stage = python(
        "s", tmp_path / "s", "import os; print('threads', os.environ['OMP_NUM_THREADS'])"
    )
    run_chains([[stage]], quiet(), threads=5)
    assert stage.log.read_text() == "threads 5\n"


def test_a_record_tells_whether_its_stage_was_stopped_before(tmp_path):
    new, stopped = (python(name, tmp_path / name, "pass") for name in ("new", "stopped"))
    stopped.folder.mkdir()
    (stopped.folder / "last_checkpoint").write_text("iter_1.pth")
    run_chains([[new], [stopped]], quiet(), threads=1)
    records = [json.loads(stage.record.read_text()) for stage in (new, stopped)]
    assert [record["continued"] for record in records] == [False, True]


def test_no_more_chains_at_once_than_asked_for(tmp_path):
    code = (
        "import pathlib, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "(here / f'{sys.argv[1]}.on').touch()\n"
        "(here / f'{sys.argv[1]}.seen').write_text(str(len(list(here.glob('*.on')))))\n"
        "time.sleep(0.5)\n"
        "(here / f'{sys.argv[1]}.on').unlink()\n"
    )
    chains = [[Stage(f"s{i}", tmp_path / f"s{i}", ("-c", code, f"s{i}"))] for i in range(4)]
    ended = []
    run_chains(chains, quiet(), threads=1, at_once=1, done=ended.append)
    assert [path.read_text() for path in tmp_path.glob("*.seen")] == ["1"] * 4
    assert ended == [stage for chain in chains for stage in chain]


def test_paths_are_shown_as_one_would_type_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a" / "b.py") == shown(Path("a/b.py")) == "a/b.py"
    assert shown(tmp_path.parent / "b.py") == str(tmp_path.parent / "b.py")


def test_a_failure_names_the_log_and_stops_the_others(tmp_path):
    broken = python("broken", tmp_path / "broken", "print('why it broke'); raise SystemExit(3)")
    code = f"import time; time.sleep(30); open({str(tmp_path / 'late')!r}, 'w')"
    patient = python("patient", tmp_path / "patient", code)
    start = time.monotonic()
    with pytest.raises(UserError, match="broken ended with code 3") as error:
        run_chains([[patient], [broken]], quiet(), threads=1)
    assert time.monotonic() - start < 20
    assert str(broken.log) in str(error.value) and "why it broke" in str(error.value)
    assert not broken.record.exists() and not patient.record.exists()


def test_a_suspended_process_does_not_survive():
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGSTOP)
    process.terminate()
    stages._wait_or_kill(process, patience=0.5)
    # The pending SIGTERM may come first once SIGKILL has woken it.
    assert process.returncode in (-signal.SIGKILL, -signal.SIGTERM)


def test_iterations_are_read_from_the_log(tmp_path):
    assert iterations_done(tmp_path) == 0
    log = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    log.write_text('{"loss": 1.0, "step": 10}\n{"loss": 0.9, "step": 20}\n{"lo')
    assert iterations_done(tmp_path) == 20


def test_parts_of_a_resumed_run_are_one_log(tmp_path):
    parts = {
        "20260101_000000": [
            {"loss": 3.0, "iter": 1, "step": 1},
            {"loss": 9.0, "iter": 2, "step": 2},
        ],
        "20260102_000000": [{"loss": 2.0, "iter": 2, "step": 2}, {"m/x": 1.0, "step": 2}],
    }
    for name, lines in parts.items():
        folder = tmp_path / name / "vis_data"
        folder.mkdir(parents=True)
        text = "\n".join(json.dumps(line) for line in lines)
        for file in ("scalars", name):  # as mmengine writes it, twice
            (folder / f"{file}.json").write_text(text + '\n{"loss": 1.')
    training, validation = read_scalars(tmp_path)
    assert [entry["loss"] for entry in training] == [3.0, 2.0]
    assert validation == [{"m/x": 1.0, "step": 2}]


def test_json_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]
