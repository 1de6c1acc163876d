"""What the documentation says is there: files, options, configs, examples; and Sphinx builds it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/results/*.md"),
        *ROOT.glob("configs/*/README.md"),
    ]
)
FENCE = re.compile(r"^( *)(`{3,})(\w*)\n(.*?)^\1\2$", re.MULTILINE | re.DOTALL)
FOLDERS = "configs|tools|docs|tests|requirements|dev|mmdet_plus|mmseg_plus|ops"
# Where a page speaks of a place that is not in the repository.
MADE = {"docs/_build", "docs/_build/html"}

every_page = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)


def blocks(page: Path, language: str) -> list[str]:
    return [code for _, _, found, code in FENCE.findall(page.read_text()) if found == language]


def without_output(page: Path) -> str:
    """The page without ``text`` blocks, which show trees, formulas and messages."""
    return FENCE.sub(lambda m: "" if m[3] == "text" else m[0], page.read_text())


def config_stems() -> set[str]:
    return {path.stem for path in ROOT.glob("configs/*/*.py")}


@every_page
def test_relative_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target) or target.startswith("#"):
            continue
        assert (page.parent / target.split("#")[0]).exists(), target


@every_page
def test_paths_named_exist(page):
    named = re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]*\w", without_output(page))
    for path in set(named) - MADE:
        assert (ROOT / path).exists(), path


@every_page
def test_configs_named_by_their_bare_name_exist(page):
    name = r"(?<![\w./-])((?:mask|mr)-rcnn_r\d[\w-]*)(?=\.py|[` \n]|$)"
    named = set(re.findall(name, without_output(page)))
    assert named - {"mr-rcnn_r50"} <= config_stems()


@every_page
def test_checkpoints_named_are_the_last_of_their_training(page):
    from mmengine.config import Config

    text = page.read_text()
    for stem, iteration in re.findall(r"work_dirs/([\w-]+)/iter_(\d+)\.pth", text):
        paths = list(ROOT.glob(f"configs/*/{stem}.py"))
        if not paths:  # of a training whose length the page itself sets
            assert f"train_cfg.max_iters={iteration}" in text, stem
            continue
        (path,) = paths
        assert Config.fromfile(str(path)).train_cfg.max_iters == int(iteration)


def options_of(*sources: str) -> set[str]:
    text = "".join((ROOT / source).read_text() for source in sources)
    found = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text))
    # For launchers, not for people; the help hides it as well.
    return found - {"--local-rank"}


@pytest.mark.parametrize(
    ("tool", "sources"),
    [
        ("train.py", ["tools/train.py", "mmdet_plus/engine/config.py"]),
        ("test.py", ["tools/test.py", "mmdet_plus/engine/config.py"]),
        ("compare.py", ["tools/compare.py"]),
        ("compare_fusers.py", ["tools/compare_fusers.py"]),
        ("make_shapes.py", ["tools/make_shapes.py"]),
        ("benchmark.py", ["tools/benchmark.py"]),
        ("convert_checkpoint.py", ["tools/convert_checkpoint.py"]),
        ("publish_checkpoint.py", ["tools/publish_checkpoint.py"]),
        ("demo.py", ["tools/demo.py"]),
        ("bpr_refine.py", ["tools/bpr_refine.py"]),
        ("bpr_evaluate.py", ["tools/bpr_evaluate.py"]),
        ("bpr_patches.py", ["tools/bpr_patches.py"]),
        ("panoptic_fuse.py", ["tools/panoptic_fuse.py"]),
    ],
)
def test_tools_page_lists_each_option(tool, sources):
    text = (ROOT / "docs/tools.md").read_text()
    section = text.split(f"\n## {tool}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `--")]
    listed = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    assert listed == options_of(*sources)


def test_tools_page_has_every_tool():
    text = (ROOT / "docs/tools.md").read_text()
    tools = [path.name for path in (ROOT / "tools").iterdir() if not path.name.startswith("_")]
    assert [name for name in tools if path_is_tool(name) and name not in text] == []


def path_is_tool(name: str) -> bool:
    return name.endswith((".py", ".sh"))


@every_page
def test_tables_of_the_papers_figures_say_reported(page):
    if "results" in page.relative_to(ROOT).parts:
        pytest.skip("our own figures")
    for table in re.findall(r"(?:^\|.*\n)+", page.read_text(), re.MULTILINE):
        if re.search(r"\bAP\b", table) and re.search(r"\|\s*\d\d\.\d\s*\|", table):
            assert "reported" in table.splitlines()[0], table


def test_python_of_the_ops_page_runs(capsys):
    (code,) = blocks(ROOT / "docs/ops.md", "python")
    exec(compile(code, "docs/ops.md", "exec"), {})
    expected = re.search(r"print\(.*# (.*)", code)[1]
    assert capsys.readouterr().out.strip() == expected


def test_config_for_own_data_builds(tmp_path):
    """The block of the data page, as a user would copy it, on files of their own."""
    from mmdet.registry import DATASETS, MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    (code,) = blocks(ROOT / "docs/data.md", "python")
    base = ROOT / "configs/mr_rcnn/mr-rcnn_r50_fpn_9k_coco.py"
    assert f'"./{base.name}"' in code
    code = code.replace(f"./{base.name}", base.as_posix()).replace("path/to", tmp_path.as_posix())
    (tmp_path / "own.py").write_text(code)
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        (tmp_path / split / "a.jpg").touch()
        box = dict(bbox=[1, 2, 40, 50], area=2000, iscrowd=0)
        content = dict(
            images=[dict(id=1, file_name="a.jpg", height=64, width=64)],
            annotations=[dict(id=1, image_id=1, category_id=9, segmentation=[], **box)],
            categories=[dict(id=4, name="cat"), dict(id=9, name="dog")],
        )
        (tmp_path / f"{split}.json").write_text(json.dumps(content))

    cfg = Config.fromfile(str(tmp_path / "own.py"))
    register_all_modules()
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.dataset.pipeline = []
        (record,) = DATASETS.build(loader.dataset)
        assert [instance["bbox_label"] for instance in record["instances"]] == [1]
    assert cfg.val_evaluator.ann_file == cfg.test_evaluator.ann_file == f"{tmp_path}/val.json"
    cfg.model.backbone.init_cfg = None
    head = MODELS.build(cfg.model).roi_head
    for part in (head.bbox_head, head.refining_bbox_head, head.mask_head, head.refining_mask_head):
        assert part.num_classes == 2


def test_configs_of_the_refine_page_build(tmp_path):
    """A fuser in the place of mmdet's, and Panoptic-FPN with an occlusion head beside it."""
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    from mmengine.config import Config

    base = '_base_ = "mmdet::panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py"\n'
    fuser, network = blocks(ROOT / "docs/refine.md", "python")
    assert network.startswith(base)
    models = []
    for name, code in (("fuser", base + fuser), ("network", network)):
        (tmp_path / f"{name}.py").write_text(code)
        cfg = Config.fromfile(str(tmp_path / f"{name}.py"))
        register_all_modules()
        cfg.model.backbone.init_cfg = None
        models.append(MODELS.build(cfg.model))
    plain, ours = models
    assert type(plain).__name__ == "PanopticFPN"
    assert plain.panoptic_fusion_head.unknown_erasing.threshold == 0.5
    assert ours.num_iterations == 0 and ours.test_cfg.rcnn.nms.class_agnostic is False
    # A checkpoint of Panoptic-FPN has all but the new network.
    left = ours.state_dict().keys() - plain.state_dict().keys()
    assert left and all(name.startswith("occlusion_head") for name in left)
    assert not plain.state_dict().keys() - ours.state_dict().keys()


def test_messages_quoted_are_the_real_ones():
    from mmdet_plus.engine import UserError, prepare_test_cfg
    from mmdet_plus.engine.config import load_config

    quoted = re.findall(r"^error: .*", (ROOT / "docs/tools.md").read_text(), re.MULTILINE)
    messages = []
    for call in (
        lambda: load_config("mr-rcnn_r18_shapes", {"modle.roi_head.alpha": 0.5}),
        lambda: prepare_test_cfg("mr-rcnn_r18_shapes", "my/iter_9.pth"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        messages.append(f"error: {caught.value}")
    assert quoted == messages


def test_installation_page_quotes_messages_of_the_bootstrap():
    sources = [ROOT / "dev/bootstrap.py", *(ROOT / "dev/_bootstrap").glob("*.py")]
    code = "".join(path.read_text() for path in sources)
    # Literals that go on in the next line, and values put into them.
    code = re.sub(r'"\s*\n\s*f?"', "", code)
    code = re.sub(r"\{[^{}]*\}", "...", code)
    text = (ROOT / "docs/installation.md").read_text().split("\n## When a step fails\n")[1]
    rows = [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    for row in rows:
        message = re.match("`([^`]*)`", row)[1].replace("'venv'", "'...'")
        for part in message.split("..."):
            assert part.strip() in code, message


needs_sphinx = pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None, reason="needs `make setup-docs`, as make test does"
)


@needs_sphinx
def test_sphinx_builds_without_warnings(tmp_path):
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(tmp_path / "html")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    reference = (tmp_path / "html/api.html").read_text()
    for name in ("shape_aware_roi_align", "MaskRefiningRoIHead", "make_shapes", "load_config"):
        assert f">{name}<" in reference
