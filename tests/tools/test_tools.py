"""The command-line tools, run as a user runs them; what they call is tested with the engine."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_zoo
import torch

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / "tools"
# The smallest training whose metrics are not all zero.
LEARNING = [
    "train_cfg.max_iters=100",
    "optim_wrapper.optimizer.lr=0.02",
    "optim_wrapper.clip_grad=None",
    "param_scheduler=None",
    "default_hooks.checkpoint.interval=50",
]
NO_VAL = ["val_cfg=None", "val_dataloader=None", "val_evaluator=None"]
no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")


def call(*command, cwd, timeout=300, **env):
    """Run a command, far from the repository; merge its two streams."""
    command = [str(part) for part in command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **env}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "PORT", "MASTER_ADDR", "MASTER_PORT"):
        if name not in env:
            environment.pop(name, None)
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment,
        timeout=timeout,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout


def succeed(*command, **kwargs):
    code, output = call(*command, **kwargs)
    assert code == 0, output[-4000:]
    return output


def metrics_in(work_dir):
    """Read the metrics that a test left in its working folder, without the times."""
    (file,) = Path(work_dir).glob("*/*.json")
    values = json.loads(file.read_text())
    return {name: value for name, value in values.items() if "time" not in name}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tools")


@pytest.fixture(scope="module")
def config(folder):
    data = tiny_zoo.make_data(folder / "data", num_images=9)
    return tiny_zoo.write_config(folder / "tiny.py", data)


@pytest.fixture(scope="module")
def checkpoint(folder, config):
    options = ["--cfg-options", *LEARNING, *NO_VAL]
    succeed(
        sys.executable, TOOLS / "train.py", config, "--work-dir", "trained", *options, cwd=folder
    )
    return folder / "trained" / "iter_100.pth"


@pytest.fixture(scope="module")
def metrics(folder, config, checkpoint):
    command = [sys.executable, TOOLS / "test.py", config, checkpoint, "--work-dir", "tested"]
    succeed(*command, cwd=folder)
    return metrics_in(folder / "tested")


def test_training_and_testing_alone(metrics):
    assert metrics["coco/bbox_mAP"] > 0 and metrics["coco/segm_mAP"] > 0


@no_gpu
def test_two_processes_measure_what_one_does(folder, config, checkpoint, metrics):
    # Nine images: one process gets a sample too many, which must not count.
    command = ["bash", TOOLS / "dist_test.sh", config, checkpoint, 2, "--work-dir", "tested-by-2"]
    succeed(*command, cwd=folder)
    assert metrics_in(folder / "tested-by-2") == metrics


WEIGHTS = """
from pathlib import Path

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

@HOOKS.register_module()
class WeightsHook(Hook):
    def after_train(self, runner):
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        weights = {name: weight.detach() for name, weight in model.named_parameters()}
        torch.save(weights, Path(runner.work_dir) / f"rank{runner.rank}.pt")
"""


@pytest.fixture(scope="module")
def keep_weights(folder):
    """Make a copy of a config that keeps every process's weights after training."""
    (folder / "weights_hook.py").write_text(WEIGHTS)

    def rewrite(config, *changes):
        text = config.read_text()
        imports = "['mmdet_plus.engine', 'weights_hook']"
        for old, new in (("['mmdet_plus.engine']", imports), *changes):
            assert old in text, old
            text = text.replace(old, new)
        text += "custom_hooks = [dict(type='mmengine.WeightsHook')]\n"
        path = config.with_name(f"{config.stem}-weights.py")
        path.write_text(text)
        return path

    return rewrite


def weights_of(work_dir, rank):
    return torch.load(work_dir / f"rank{rank}.pt", weights_only=True)


def path_with(folder):
    return os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))


@no_gpu
def test_two_processes_train_one_model(folder, config, keep_weights):
    config, path = keep_weights(config), path_with(folder)
    work_dir = folder / "trained-by-2"
    command = ["bash", TOOLS / "dist_train.sh", config, 2, "--work-dir", work_dir]
    options = ["train_cfg.max_iters=4", *NO_VAL]
    succeed(*command, "--cfg-options", *options, cwd=folder, PYTHONPATH=path)
    losses = tiny_zoo.read_losses(work_dir)
    assert sorted(losses) == [1, 2, 3, 4]
    weights = [weights_of(work_dir, rank) for rank in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    resumed = [*command, "--resume", "--cfg-options", "train_cfg.max_iters=6", *NO_VAL]
    output = succeed(*resumed, cwd=folder, PORT="29651", PYTHONPATH=path)
    assert "resumed epoch: 0, iter: 4" in output
    assert sorted(tiny_zoo.read_losses(work_dir)) == [1, 2, 3, 4, 5, 6]


# Nothing in it is random, and no layer looks at more than one image at a time.
PLAIN = [
    (
        "norm_cfg = dict(type='SyncBN', requires_grad=True)",
        "norm_cfg = dict(type='GN', num_groups=2)",
    ),
    ("dropout_ratio=0.1", "dropout_ratio=0"),
    ("        dict(type='RandomCrop', crop_size=(48, 48)),\n", ""),
    ("        dict(type='RandomFlip', prob=0.5),\n", ""),
    ("        dict(type='PhotoMetricDistortion'),\n", ""),
]


@no_gpu
def test_two_processes_take_the_steps_of_one_with_twice_the_batch(folder, config, keep_weights):
    segmenter = tiny_zoo.write_config(folder / "plain.py", folder / "data", "fcn")
    segmenter, path = keep_weights(segmenter, *PLAIN), path_with(folder)
    options = ["--cfg-options", "train_cfg.max_iters=3", "randomness.seed=3", *NO_VAL]
    both = {}
    for processes, images in ((1, 2), (2, 1)):
        work_dir = folder / f"plain-by-{processes}"
        command = ["bash", TOOLS / "dist_train.sh", segmenter, processes, "--work-dir", work_dir]
        batch = f"train_dataloader.batch_size={images}"
        succeed(*command, *options, batch, cwd=folder, PYTHONPATH=path)
        both[processes] = [weights_of(work_dir, rank) for rank in range(processes)]
    (alone,), (first, second) = both[1], both[2]
    for name, weight in alone.items():
        assert torch.equal(first[name], second[name])
        torch.testing.assert_close(first[name], weight, rtol=1e-4, atol=1e-6)


@no_gpu
def test_two_processes_train_a_segmenter(folder, config):
    segmenter = tiny_zoo.write_config(folder / "fcn.py", folder / "data", "fcn")
    work_dir = folder / "fcn-by-2"
    command = ["bash", TOOLS / "dist_train.sh", segmenter, 2, "--work-dir", work_dir]
    succeed(*command, "--cfg-options", "train_cfg.max_iters=2", cwd=folder)
    assert (work_dir / "iter_2.pth").is_file()


CRASHING = """
import os
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

@HOOKS.register_module()
class CrashHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and batch_idx == 1:
            os._exit(9)
"""


@no_gpu
def test_a_process_that_dies_ends_the_job(folder, config):
    (folder / "crash_hook.py").write_text(CRASHING)
    text = config.read_text().replace(
        "['mmdet_plus.engine']", "['mmdet_plus.engine', 'crash_hook']"
    )
    text += "custom_hooks = [dict(type='mmengine.CrashHook')]\n"
    (folder / "crash.py").write_text(text)
    command = ["bash", TOOLS / "dist_train.sh", "crash.py", 2, "--work-dir", "crashed"]
    code, output = call(*command, cwd=folder, timeout=120, PYTHONPATH=path_with(folder))
    assert code != 0
    assert "exitcode  : 9" in output
    assert len(tiny_zoo.read_losses(folder / "crashed")) < 6


MISTAKEN = """
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmseg_plus.common.errors import UserError

@HOOKS.register_module()
class MistakenHook(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and batch_idx == 1:
            raise UserError("my.json: mend it")
"""


@no_gpu
def test_a_mistake_that_another_process_meets_alone_is_told(folder, config):
    (folder / "mistaken_hook.py").write_text(MISTAKEN)
    text = config.read_text().replace(
        "['mmdet_plus.engine']", "['mmdet_plus.engine', 'mistaken_hook']"
    )
    text += "custom_hooks = [dict(type='mmengine.MistakenHook')]\n"
    (folder / "mistaken.py").write_text(text)
    command = ["bash", TOOLS / "dist_train.sh", "mistaken.py", 2, "--work-dir", "mistaken"]
    code, output = call(*command, cwd=folder, timeout=120, PYTHONPATH=path_with(folder))
    assert code != 0
    assert [line for line in output.splitlines() if "error: " in line and "json" in line] == [
        "rank 1: error: my.json: mend it"
    ]


@no_gpu
def test_mistakes_in_a_distributed_job_are_told_once(folder, config):
    code, output = call("bash", TOOLS / "dist_train.sh", "absent.py", 2, cwd=folder)
    assert code != 0
    assert output.count("error: absent.py: there is no such config file") == 1


SRUN = """#!/usr/bin/env bash
# Stands in for Slurm: runs the command once a task, here.
ntasks=1
arguments="$*"
while [[ $1 == --* ]]; do
    [[ $1 == --ntasks=* ]] && ntasks=${1#--ntasks=}
    shift
done
echo "srun ${arguments}" > "$SRUN_LOG"
export SLURM_NTASKS=$ntasks SLURM_NNODES=1 SLURM_JOB_NODELIST=localhost
pids=()
for ((i = 0; i < ntasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i "$@" &
    pids+=($!)
done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit "$code"
"""


@pytest.fixture
def slurm(tmp_path):
    fake = tmp_path / "bin" / "srun"
    fake.parent.mkdir()
    fake.write_text(SRUN)
    fake.chmod(0o755)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    return dict(PATH=path, SRUN_LOG=str(tmp_path / "log"), GPUS="2", GPUS_PER_NODE="0")


@no_gpu
def test_slurm_tasks_measure_what_one_process_does(
    folder, config, checkpoint, metrics, slurm, tmp_path
):
    arguments = ["part", "job", config, checkpoint, "--work-dir", tmp_path / "work"]
    command = ["bash", TOOLS / "slurm_test.sh", *arguments]
    succeed(*command, cwd=folder, MASTER_PORT="29652", SRUN_ARGS="--quiet --time=1", **slurm)
    assert metrics_in(tmp_path / "work") == metrics
    log = (tmp_path / "log").read_text()
    assert "--partition=part --job-name=job --ntasks=2 --cpus-per-task=5" in log
    assert "--quiet --time=1" in log and "gres" not in log


def test_slurm_asks_for_gpus(slurm, tmp_path):
    command = ["bash", TOOLS / "slurm_train.sh", "part", "job", "c.py", "work", "--amp"]
    succeed(
        *command, cwd=tmp_path, **{**slurm, "GPUS": "16", "GPUS_PER_NODE": "4", "PYTHON": "true"}
    )
    log = (tmp_path / "log").read_text()
    assert "--ntasks=16" in log and "--gres=gpu:4 --ntasks-per-node=4" in log
    assert log.strip().endswith("train.py c.py --work-dir work --amp --launcher slurm")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("dist_train.sh", ["c.py"], "usage: dist_train.sh CONFIG NGPUS"),
        ("dist_train.sh", ["c.py", "two"], "NGPUS must be a number >= 1, not 'two'"),
        ("dist_train.sh", ["c.py", "0"], "NGPUS must be a number >= 1, not '0'"),
        ("dist_test.sh", ["c.py", "2"], "usage: dist_test.sh CONFIG CHECKPOINT NGPUS"),
        ("dist_test.sh", ["c.py", "a.pth", "--out"], "NGPUS must be a number"),
        ("slurm_train.sh", ["part", "job", "c.py"], "usage: slurm_train.sh PARTITION"),
        ("slurm_test.sh", [], "usage: slurm_test.sh PARTITION"),
    ],
)
def test_wrong_arguments_of_the_scripts(tmp_path, script, arguments, message):
    code, output = call("bash", TOOLS / script, *arguments, cwd=tmp_path)
    assert code == 2 and message in output


def test_launcher_passes_the_environment_on(tmp_path):
    echo = tmp_path / "echo.sh"
    echo.write_text('#!/usr/bin/env bash\necho "$@"\n')
    echo.chmod(0o755)
    command = ["bash", TOOLS / "dist_train.sh", "c.py", "3", "--amp"]
    several = dict(NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", PORT="1234")
    output = succeed(*command, cwd=tmp_path, **{**several, "PYTHON": str(echo)})
    assert "--nnodes=2 --node_rank=1 --nproc_per_node=3" in output
    assert "--master_addr=10.0.0.1 --master_port=1234" in output
    assert output.strip().endswith("train.py c.py --amp --launcher pytorch")
    output = succeed(*command, cwd=tmp_path, PYTHON=str(echo))
    assert "--rdzv_endpoint=localhost:0" in output and "master_port" not in output


def test_a_mistake_is_one_line_and_code_2(folder, config, tmp_path):
    command = [sys.executable, TOOLS / "test.py", config, "absent.pth"]
    assert call(*command, cwd=tmp_path) == (
        2,
        "error: absent.pth: there is no such checkpoint file\n",
    )
    assert not list(tmp_path.iterdir())


@pytest.fixture
def checked(tmp_path):
    """A small data set of which the annotations are checked, and its config."""
    data = tiny_zoo.make_data(tmp_path / "data", num_images=2)
    config = tiny_zoo.write_config(tmp_path / "checked.py", data, workers=1)
    text = config.read_text().replace("'CocoDataset'", "'CheckedCocoDataset'")
    imports = "['mmdet_plus.engine', 'mmdet_plus.datasets']"
    config.write_text(text.replace("['mmdet_plus.engine']", imports))
    return config, data


def cut_json(data):
    (data / "coco.json").write_text('{"images": [')


def remove_image(data):
    (data / "images" / "001.png").unlink()


def set_mask(value):
    def change(data):
        content = json.loads((data / "coco.json").read_text())
        content["annotations"][2]["segmentation"] = value
        (data / "coco.json").write_text(json.dumps(content))

    return change


def spoil_image(data):
    (data / "images" / "001.png").write_text("no picture")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_json, r"not a JSON file"),
        (remove_image, r"image 1: image file .*001\.png does not exist"),
        (set_mask([[1, 2, 3]]), r"annotation 3 of image 1 .*polygon 0 .* has 3 numbers"),
        (
            set_mask(dict(size=[9, 9], counts=[0, 81])),
            r"annotation 3 of image 1 .*its RLE has size \[9, 9\]",
        ),
        (set_mask([]), r"annotation 3 of image 1 .*has no segmentation.*remove the record"),
        # Met by a data loader's process, not at the start.
        (spoil_image, r"image 1: .*001\.png cannot be read as a picture"),
    ],
    ids=["json", "image", "polygon", "rle", "mask", "worker"],
)
def test_faults_of_the_data_are_one_line_and_code_2(checked, tmp_path, spoil, words):
    config, data = checked
    spoil(data)
    command = [sys.executable, TOOLS / "train.py", config, "--work-dir", tmp_path / "work"]
    code, output = call(*command, "--cfg-options", *NO_VAL, cwd=tmp_path)
    assert code == 2, output[-3000:]
    (line,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert re.match(rf"error: {data}/coco\.json: .*{words}", line)
    assert "Traceback" not in output


@pytest.mark.parametrize("tool", ["train.py", "test.py"])
def test_help(tool, tmp_path):
    output = succeed(sys.executable, TOOLS / tool, "--help", cwd=tmp_path)
    assert "--cfg-options" in output and "--launcher" in output
