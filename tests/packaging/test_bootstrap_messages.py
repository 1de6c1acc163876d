"""What the bootstrap says: to the wrong Python, without a compiler, when a command fails."""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import bootstrap
import pytest
from _bootstrap import machine, runner
from _bootstrap.runner import StepError

from mmplus_ops import _library


@pytest.mark.parametrize("version", [(3, 10), (3, 11), (3, 12), (3, 12, 9)])
def test_supported_python_is_taken(version):
    assert bootstrap.python_complaint(version, []) is None


@pytest.mark.parametrize(("version", "fault"), [((3, 9), "too old"), ((3, 13), "too new")])
def test_wrong_python_is_told_what_to_use(version, fault):
    text = bootstrap.python_complaint(version, ["python3.11"])
    assert fault in text
    assert "3.10 to 3.12" in text
    assert "PYTHON=python3.11" in text
    assert "Install" in bootstrap.python_complaint(version, [])


def test_entry_parses_on_old_pythons(repo_root):
    source = (repo_root / "dev/bootstrap.py").read_text()
    ast.parse(source, feature_version=(3, 6))
    assert "from __future__ import annotations" not in source
    functions = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.FunctionDef)]
    assert functions
    assert all(f.returns is None and not any(a.annotation for a in f.args.args) for f in functions)


def test_bootstrap_needs_the_standard_library_only(repo_root):
    outside = set()
    for path in [repo_root / "dev/bootstrap.py", *(repo_root / "dev/_bootstrap").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                outside |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                outside.add(node.module.split(".")[0])
    assert outside - {"_bootstrap"} <= set(sys.stdlib_module_names)


def test_no_compiler():
    with pytest.raises(StepError, match=r"no C\+\+ compiler") as caught:
        machine.require_compiler({}, which=lambda name: None)
    assert "apt install g++" in caught.value.advice


def test_named_compiler_that_is_absent():
    with pytest.raises(StepError, match="my-c"):
        machine.require_compiler({"CXX": "my-c -m64"}, which=lambda name: None)


def test_compiler_found():
    assert (
        machine.require_compiler({}, which=lambda n: f"/bin/{n}" if n == "g++" else None) == "g++"
    )


def test_missing_headers_are_told_before_the_build(tmp_path):
    with pytest.raises(StepError, match="headers") as caught:
        machine.require_python_headers(str(tmp_path))
    assert "-dev" in caught.value.advice
    (tmp_path / "Python.h").touch()
    machine.require_python_headers(str(tmp_path))


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_missing_venv_module(monkeypatch, module):
    find = machine.importlib.util.find_spec
    monkeypatch.setattr(
        machine.importlib.util, "find_spec", lambda name: None if name == module else find(name)
    )
    with pytest.raises(StepError, match=module) as caught:
        machine.require_venv_module()
    assert "-venv" in caught.value.advice


@pytest.mark.parametrize(
    ("environment", "cores", "memory", "jobs"),
    [
        ({}, 8, None, 8),
        ({}, 8, 64_000_000_000, 8),
        ({}, 8, 4_000_000_000, 2),
        ({}, 8, 100, 1),
        ({"MAX_JOBS": "3"}, 8, 100, 3),
        ({"MAX_JOBS": "many"}, 2, None, 2),
        ({"MAX_JOBS": "0"}, 2, None, 2),
    ],
)
def test_compile_jobs_fit_the_memory(environment, cores, memory, jobs):
    assert machine.compile_jobs(environment, cores, memory) == jobs


@pytest.mark.parametrize(
    ("forced", "torch_cuda", "nvcc", "expected"),
    [
        ("", None, None, False),
        ("", None, "/bin/nvcc", False),
        ("", "13.0", None, False),
        ("", "13.0", "/bin/nvcc", True),
        ("0", "13.0", "/bin/nvcc", False),
        ("1", "13.0", "/bin/nvcc", True),
    ],
)
def test_cuda_is_built_where_torch_and_nvcc_are(forced, torch_cuda, nvcc, expected):
    assert machine.builds_cuda({"FORCE_CUDA": forced}, torch_cuda, nvcc) is expected


@pytest.mark.parametrize(
    ("torch_cuda", "nvcc", "missing"),
    [(None, "/bin/nvcc", "build without CUDA"), ("13.0", None, "no nvcc")],
)
def test_forced_cuda_names_what_is_missing(torch_cuda, nvcc, missing):
    with pytest.raises(StepError, match=missing) as caught:
        machine.builds_cuda({"FORCE_CUDA": "1"}, torch_cuda, nvcc)
    assert "Install" in caught.value.advice


TORCH_CODES = ["sm_75", "sm_120", "sm_80", "sm_90", "sm_90a", "compute_120"]


@pytest.mark.parametrize(
    ("chosen", "torch_codes", "nvcc_codes", "expected"),
    [
        ("", TORCH_CODES, [], "7.5;8.0;9.0;12.0+PTX"),
        ("", TORCH_CODES, ["sm_80", "sm_90", "sm_99"], "8.0;9.0+PTX"),
        ("", TORCH_CODES, ["sm_20"], "7.5;8.0;9.0;12.0+PTX"),
        ("", [], ["sm_80"], ""),
        (" 8.6 ", TORCH_CODES, ["sm_80"], "8.6"),
    ],
)
def test_gpus_to_compile_for(chosen, torch_codes, nvcc_codes, expected):
    environment = {"TORCH_CUDA_ARCH_LIST": chosen}
    assert machine.cuda_architectures(environment, torch_codes, nvcc_codes) == expected


@pytest.mark.parametrize(
    ("script", "codes"),
    [("echo sm_75; echo sm_90; echo sm_90a", ["sm_75", "sm_90"]), ("echo sm_75; exit 1", [])],
)
def test_nvcc_is_asked_what_it_can_compile_for(tmp_path, script, codes):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f'#!/bin/sh\n[ "$1" = --list-gpu-code ] || exit 2\n{script}\n')
    nvcc.chmod(0o755)
    assert machine.nvcc_codes(str(nvcc)) == codes
    assert machine.nvcc_codes(None) == []
    assert machine.nvcc_codes(str(tmp_path / "absent")) == []


@pytest.fixture(scope="module")
def setup_script(repo_root):
    spec = importlib.util.spec_from_file_location("setup_script", repo_root / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_setup_script_chooses_gpus_as_the_bootstrap_does(setup_script):
    expected = machine.cuda_architectures({}, TORCH_CODES, [])
    assert setup_script.all_architectures(TORCH_CODES) == expected


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(value, False) for value in ("0", "false", "Off", " no ")]
    + [(value, True) for value in ("", "1", "true", "on", "2")],
)
def test_bootstrap_setup_script_and_package_read_the_same_words(
    monkeypatch, setup_script, value, wanted
):
    monkeypatch.setenv("MMPLUS_WITH_OPS", value)
    assert machine.wants_ops(os.environ) is wanted
    assert (setup_script.wants_ops() != "no") is wanted
    assert _library._switched_off() is not wanted


def test_answer_is_found_among_warnings(tmp_path):
    log = tmp_path / "x.log"
    script = "print('before'); print('mark: {1}'); print('after')"
    runner.run([sys.executable, "-c", script], what="asking", log=log)
    assert runner.marked_line(log, "mark: ") == "{1}"


def test_missing_answer_shows_the_log(tmp_path):
    log = tmp_path / "x.log"
    runner.run([sys.executable, "-c", "print('killed by a plugin')"], what="asking", log=log)
    with pytest.raises(StepError) as caught:
        runner.marked_line(log, "mark: ")
    text = runner.failure_text("mmcv", caught.value)
    assert "killed by a plugin" in text
    assert "free space" not in text


@pytest.mark.parametrize(
    ("log", "advice"),
    [
        ("OSError: [Errno 28] No space left on device", "disk"),
        ("NewConnectionError: [Errno -3] Temporary failure in name resolution", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "no torch==2.13.0"),
        ("g++: fatal error: Killed signal terminated program cc1plus", "MAX_JOBS=1"),
        ("ImportError: libGL.so.1: cannot open shared object file", "libgl1"),
        ("fatal error: Python.h: No such file or directory", "python3-dev"),
        ("ninja: build stopped: subcommand failed.", "compiler failed"),
        ("something nobody thought of", "whole story"),
    ],
)
def test_advice_fits_the_log(log, advice):
    assert advice in runner.advice_for(log)


def test_network_advice_wins_over_the_missing_package_it_causes():
    log = "Max retries exceeded\nERROR: No matching distribution found for torch"
    assert "cannot be reached" in runner.advice_for(log)


def test_failed_command_shows_the_end_of_its_log(tmp_path):
    script = "for i in range(100): print('line', i)\nraise SystemExit('No space left on device')"
    log = tmp_path / "deep" / "x.log"
    with pytest.raises(StepError, match=r"filling failed \(exit code 1\)") as caught:
        runner.run([sys.executable, "-c", script], what="filling", log=log)
    text = runner.failure_text("fill", caught.value)
    assert "step 'fill' failed" in text
    assert "line 99" in text
    assert "line 20\n" not in text
    assert str(log) in text
    assert "disk is full" in text


def test_progress_is_printed_without_a_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(runner, "REPORT_SECONDS", 0.1)
    script = (
        "import time; print('[3/12] c++ x.o', flush=True); time.sleep(0.6)\n"
        "print('copying ' * 9000, flush=True); time.sleep(0.6)"
    )
    runner.run(
        [sys.executable, "-c", script],
        what="compiling",
        log=tmp_path / "x.log",
        progress=runner.ninja_progress,
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 2
    # The state that was seen last stays, also where later output has pushed it out of sight.
    assert all("3 of 12 files compiled, 25 %" in line for line in lines[-2:]), lines
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize(
    ("log", "text"),
    [
        ("running bdist_wheel", ""),
        ("  [1/4] c++ a\n  [2/4] c++ b\nwarning: [9/9] not ninja's", "2 of 4 files compiled, 50 %"),
        ("[4/4] c++ d", "4 of 4 files compiled, 100 %"),
    ],
)
def test_ninja_progress(log, text):
    assert runner.ninja_progress(log) == text


def test_environment_of_the_caller_does_not_leak():
    kept = runner.clean_environment({"PYTHONPATH": "/x", "PIP_TARGET": "/y", "HTTPS_PROXY": "p"})
    assert "PYTHONPATH" not in kept
    assert "PIP_TARGET" not in kept
    assert kept["HTTPS_PROXY"] == "p"


@pytest.mark.parametrize(("stack", "venv"), [("mmlab", ".venv/"), ("onedl", ".venv-onedl/")])
@pytest.mark.parametrize("target", ["demo", "test", "docs", "lint"])
def test_make_uses_the_environment_of_the_stack(repo_root, stack, venv, target):
    # `make test` hands its own flags and variables down to this test.
    inherited = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "STACK", "PYTEST_ARGS")
    shown = subprocess.run(
        ["make", "-n", target, f"STACK={stack}"],
        cwd=repo_root,
        env={name: value for name, value in os.environ.items() if name not in inherited},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = shown.strip().splitlines()
    setups = [line for line in lines if f"dev/bootstrap.py --stack {stack}" in line]
    jobs = lines[len(setups) :]
    assert lines[: len(setups)] == setups != []
    assert all(job.startswith((venv, "echo")) for job in jobs), jobs
    assert jobs
    # A test builds the documentation; without its tools it would be skipped.
    assert setups[0].endswith("--docs") is (target in ("test", "docs"))


def test_unknown_stack_is_refused(repo_root):
    done = subprocess.run(
        [sys.executable, "dev/bootstrap.py", "--stack", "mmcv1"],
        cwd=repo_root,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert "mmlab" in done.stderr


def test_ci_runs_the_tests(repo_root):
    script = (repo_root / ".ci/run").read_text()
    assert script.startswith("#!/usr/bin/env bash")
    assert "set -euo pipefail" in script
    assert script.rstrip().endswith("make test")
    assert Path(repo_root / ".ci/run").stat().st_mode & 0o111
