"""``tools/bpr_refine.py``: its options, its errors, and runs of it by one process and two."""

import io
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_results
import torch
from mmengine.config import Config
from mmseg.registry import MODELS
from tiny_results import CITY_NAMES, COUNTS, SIZES

from mmseg_plus.bpr import refine_command
from mmseg_plus.bpr.refine_command import find_device, network_digest
from mmseg_plus.bpr.sources import CityscapesResults
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.progress import ProgressLine

ROOT = Path(__file__).resolve().parents[3]
TOOL = ROOT / "tools" / "bpr_refine.py"


class StandIn:
    """Takes BoundaryRefiner's place and notes what it was made with."""

    made: list = []

    def __init__(self, config=None, checkpoint=None, **options):
        self.made.append((config, checkpoint, options))
        self.model = torch.nn.Linear(2, 2)
        torch.nn.init.ones_(self.model.weight)
        torch.nn.init.zeros_(self.model.bias)
        self.num_patches = 4
        self.caution = options.get("caution") or 0.0

    def refine(self, image, masks):
        return tiny_results.refine(image, masks)


@pytest.fixture
def tool(run_tool, monkeypatch):
    """Run the tool without a network."""
    monkeypatch.setattr(refine_command, "BoundaryRefiner", StandIn)
    monkeypatch.setattr(StandIn, "made", [])
    return partial(run_tool, TOOL.name)


GIVEN = ("--ann", "ann.json", "--img-dir", "images")


def test_coco_results(tool, tmp_path):
    tiny_results.write_coco(tmp_path)
    code, out, _ = tool("coarse.json", *GIVEN, "--out", "new/refined.json")
    assert code == 0
    changed = sum(
        not np.array_equal(tiny_results.decode(old), tiny_results.decode(new))
        for old, new in zip(
            json.loads((tmp_path / "coarse.json").read_text()),
            json.loads((tmp_path / "new" / "refined.json").read_text()),
            strict=True,
        )
    )
    assert f"new/refined.json: {changed} of {sum(COUNTS)} masks on {len(SIZES)} images" in out
    config, checkpoint, options = StandIn.made[0]
    assert config is None and checkpoint is None
    assert options == dict(
        device=find_device("auto"),
        patch_size=64,
        iou_thr=0.25,
        scheme="dense",
        padding=0,
        batch_size=256,
        max_patches=None,
        amp=False,
        caution=None,
    )


def test_every_option_arrives(tool, tmp_path):
    tiny_results.write_mmdet(tmp_path)
    (tmp_path / "coarse.pkl").rename(tmp_path / "coarse.dump")
    code, _, _ = tool(
        *("coarse.dump", *GIVEN, "--out", "out.json", "--format", "mmdet"),
        *("--config", "c.py", "--checkpoint", "k.pth", "--device", "cpu", "--patch-size", "32"),
        *("--iou-thr", "0.55", "--scheme", "grid", "--padding", "5", "--batch-size", "16"),
        *("--max-patches", "100", "--score-thr", "2", "--amp"),
        *("--caution", "0.5"),
    )
    assert code == 0
    assert StandIn.made == [
        (
            "c.py",
            "k.pth",
            dict(
                device=torch.device("cpu"),
                patch_size=32,
                iou_thr=0.55,
                scheme="grid",
                padding=5,
                batch_size=16,
                max_patches=100,
                amp=True,
                caution=0.5,
            ),
        )
    ]
    # Below the threshold, all keep their masks.
    masks = [tiny_results.make_masks(n, *SIZES[i], seed=i) for i, n in enumerate(COUNTS)]
    written = json.loads((tmp_path / "out.json").read_text())
    for record, mask in zip(written, [m for planes in masks for m in planes], strict=True):
        assert record["segmentation"] == tiny_results.rle(mask)


def test_cityscapes_results_without_annotations(tool, tmp_path):
    masks = tiny_results.write_cityscapes(tmp_path)
    code, out, _ = tool("coarse", "--img-dir", "images", "--out", "refined")
    assert code == 0 and f"of {sum(COUNTS)} masks" in out
    image = cv2.imread(str(tmp_path / "images" / CITY_NAMES[3]))
    item = CityscapesResults(tmp_path / "refined", tmp_path / "images")[3]
    assert np.array_equal(item.masks, tiny_results.refine(image, masks[3]))


def test_mistakes_end_in_one_line(tool, tmp_path):
    tiny_results.write_coco(tmp_path)
    out = ("--out", "out.json")
    for arguments, message in [
        (("absent.json", *GIVEN, *out), "absent.json: there is no such file or folder"),
        (("coarse.json", "--img-dir", "images", *out), "coarse.json: these results need"),
        (("coarse.json", *GIVEN, "--out", "x.pkl"), "x.pkl: the name must end in .json"),
        (("coarse.json", *GIVEN, *out, "--device", "gpu"), "--device gpu: there is no such kind"),
    ]:
        code, _, error = tool(*arguments)
        assert code == 2 and error.startswith(f"error: {message}") and error.count("\n") == 1
    # What is in the way is found before the network is built.
    assert StandIn.made == []


@pytest.mark.parametrize(
    "option",
    [
        ("--patch-size", "0"),
        ("--batch-size", "none"),
        ("--iou-thr", "1.5"),
        ("--padding", "-1"),
        ("--scheme", "round"),
        ("--resume", "--overwrite"),
        ("--launcher", "ssh"),
    ],
)
def test_senseless_options(tool, tmp_path, option):
    code, _, error = tool("coarse.json", *GIVEN, "--out", "out.json", *option)
    assert code == 2 and option[0].strip("-") in error and not StandIn.made


def test_resuming_and_replacing(tool, tmp_path):
    tiny_results.write_coco(tmp_path)
    command = ("coarse.json", *GIVEN, "--out", "out.json")
    assert tool(*command)[0] == 0
    code, _, error = tool(*command)
    assert code == 2 and "is there already" in error
    code, out, _ = tool(*command, "--resume")
    assert code == 0 and "nothing was done" in out
    assert tool(*command, "--overwrite")[0] == 0


def test_a_run_is_resumed_with_the_same_network_alone(tool, tmp_path, monkeypatch):
    tiny_results.write_coco(tmp_path)
    command = ("coarse.json", *GIVEN, "--out", "out.json")
    refine = StandIn.refine
    calls = []

    def fail(self, image, masks):
        calls.append(image)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return refine(self, image, masks)

    monkeypatch.setattr(StandIn, "refine", fail)
    with pytest.raises(KeyboardInterrupt):
        tool(*command)
    code, _, error = tool(*command, "--resume", "--iou-thr", "0.5")
    assert code == 2 and "iou_thr was 0.25, is 0.5" in error
    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.init, "zeros_", torch.nn.init.ones_)
        code, _, error = tool(*command, "--resume")
    assert code == 2 and 'refiner was "' in error
    # Another size of batches and another device are no other job.
    code, out, _ = tool(*command, "--resume", "--batch-size", "8", "--device", "cpu")
    assert code == 0 and "1 images were done before" in out


def test_skipped_images_are_listed(tool, tmp_path):
    tiny_results.write_coco(tmp_path)
    (tmp_path / "images" / "003.png").write_bytes(b"")
    (tmp_path / "images" / "004.png").unlink()
    command = ("coarse.json", *GIVEN, "--out", "out.json")
    code, _, error = tool(*command)
    assert code == 2 and "image 104" in error and "does not exist" in error
    code, out, _ = tool(*command, "--skip-bad")
    assert code == 0 and "2 images skipped, which keep their coarse masks:" in out
    assert "\n  image 103: " in out and "\n  image 104: " in out


def test_devices(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert find_device("auto") == torch.device("cpu")
    with pytest.raises(UserError, match="--device cuda: this machine"):
        find_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert find_device("auto") == torch.device("cuda", 1)
    assert find_device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(UserError, match="--device cuda:2: there are 2 GPUs"):
        find_device("cuda:2")


def test_digests_tell_networks_apart():
    def network(**kwargs):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, **kwargs), torch.nn.BatchNorm2d(4))

    assert network_digest(network()) == network_digest(network())
    assert network_digest(network()) != network_digest(network(stride=2))
    other = network()
    other[1].running_mean[2] = 1e-3
    assert network_digest(network()) != network_digest(other)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The smallest refiner of the zoo for tiny patches, with weights as they fall."""
    folder = tmp_path_factory.mktemp("network")
    config = folder / "tiny.py"
    config.write_text(
        f"_base_ = {str(ROOT / 'configs' / '_base_' / 'models' / 'bpr_hrnetv2-w16t.py')!r}\n"
        "custom_imports = dict(imports=['mmseg_plus.bpr'])\n"
        "model = dict(data_preprocessor=dict(input_size=32))\n"
    )
    torch.manual_seed(0)
    model = MODELS.build(Config.fromfile(str(config)).model)
    model.init_weights()
    # Untrained heads may leave every mask as it is.
    torch.nn.init.normal_(model.decode_head.conv_seg.weight, std=3.0)
    torch.save(model.state_dict(), folder / "tiny.pth")
    return config


def test_two_processes_write_what_one_does(network, tmp_path):
    tiny_results.write_coco(tmp_path)
    files = (tmp_path / "coarse.json", tmp_path / "one.json", tmp_path / "images")
    line = ProgressLine(io.StringIO())
    options = dict(config=str(network), patch_size=16, device="cpu", line=line)
    report = refine_command.refine_file(*files, tmp_path / "ann.json", **options)
    assert report.changed and report.patches > sum(COUNTS)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0", TOOL, "coarse.json", *GIVEN]
    command += ["--out", "two.json", "--config", network, "--patch-size", 16, "--device", "cpu"]
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in names}
    done = subprocess.run(
        [*map(str, command), "--launcher", "pytorch"],
        cwd=tmp_path,
        env={**environment, "OMP_NUM_THREADS": "1"},
        timeout=300,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    # One of them tells what was done.
    assert done.returncode == 0 and done.stdout.count("two.json: ") == 1, done.stdout[-3000:]
    assert f"two.json: {report.changed} of {sum(COUNTS)} masks" in done.stdout
    one, two = ((tmp_path / name).read_bytes() for name in ("one.json", "two.json"))
    assert one == two
