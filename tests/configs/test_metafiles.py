"""Metafiles name every config of their folder, and carry the papers' figures as the papers'."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
METAFILES = sorted(ROOT.glob("configs/*/metafile.yml"))
# Families that carry the figures of a paper.
PAPERS = {"blendmask", "bpr", "maskplus", "mr_rcnn", "refine"}
METRICS = [f"{part} AP{iou}" for part in ("box", "mask") for iou in ("", "@0.5", "@0.75")]
REFINERS = {
    "RefineHRNet": "HRNetV2",
    "HRNet": "HRNetV2",
    "RefineMobileNetV2": "MobileNetV2",
}
BACKBONES = {"ResNet-50": "r50", "ResNet-101": "r101", "ResNeXt-101": "x101-32x8d"}


def read(metafile: Path) -> dict:
    return yaml.safe_load(metafile.read_text())


@functools.cache
def config(path: str) -> Config:
    """A config, which no test changes."""
    return Config.fromfile(ROOT / path)


def figures_of(model: dict) -> dict[str, float]:
    """Figures by 'split metric', each there once and under the task it measures."""
    figures = {}
    for result in model.get("Results", []):
        for name, value in result["Metrics"].items():
            key = f"{result['Dataset']} {name}"
            assert key not in figures
            assert name.startswith("box") == (result["Task"] == "Object Detection")
            figures[key] = value
    return figures


@pytest.fixture(scope="module")
def mr_rcnn() -> dict[str, dict]:
    data = read(ROOT / "configs/mr_rcnn/metafile.yml")
    return {model["Name"]: model for model in data["Models"]}


@pytest.fixture(scope="module")
def paper() -> str:
    path = ROOT.parent / "shared/papers/mr_rcnn.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/papers beside the repository")
    return path.read_text()


def table(paper: str, number: int) -> list[list[str]]:
    """The rows of a table, which stands above its caption."""
    above = paper[: paper.index(f"\nTable {number}:")].rstrip().splitlines()
    rows = []
    while above and above[-1].startswith("|"):
        rows.append([cell.strip() for cell in above.pop().strip("|").split("|")])
    return [row for row in reversed(rows) if not re.fullmatch(r"[-: ]*", row[0])][1:]


def first_number(cell: str) -> float:
    return float(re.match(r"[\d.]+", cell)[0])


def backbone(cell: str) -> str:
    name = cell.removesuffix("+FPN").removesuffix(" FPN").strip()
    return "r101-dconv-c3-c5" if name == "ResNet-101 DCN" else BACKBONES[name]


def test_the_index_imports_every_metafile():
    index = yaml.safe_load((ROOT / "model-index.yml").read_text())
    assert METAFILES
    assert sorted(index["Import"]) == [path.relative_to(ROOT).as_posix() for path in METAFILES]


@pytest.mark.parametrize("metafile", METAFILES, ids=lambda path: path.parent.name)
def test_every_entry_is_a_config(metafile):
    data = read(metafile)
    collections = {collection["Name"] for collection in data["Collections"]}
    configs = {
        path.stem: path.relative_to(ROOT).as_posix()
        for path in metafile.parent.rglob("*.py")
        if not path.stem.endswith("_demo")
    }
    entries = {model["Name"]: model["Config"] for model in data["Models"]}
    assert entries == configs
    assert len(entries) == len(data["Models"])
    assert all(name == name.lower() for name in entries)
    assert {model["In Collection"] for model in data["Models"]} == collections
    assert all((ROOT / collection["README"]).is_file() for collection in data["Collections"])


def test_every_family_of_configs_has_a_metafile():
    families = {path.parent for path in ROOT.glob("configs/*/*.py")}
    families.discard(ROOT / "configs/_base_")
    assert families == {path.parent for path in METAFILES}


@pytest.mark.parametrize("metafile", METAFILES, ids=lambda path: path.parent.name)
def test_figures_are_labelled_as_the_papers(metafile):
    data = read(metafile)
    (collection,) = data["Collections"]
    label = collection["Metadata"]["Figures"]
    if metafile.parent.name in PAPERS:
        assert label.startswith("reported") and collection["Paper"]["URL"]
    else:
        assert label.startswith("none here")
        assert not any("Results" in model for model in data["Models"])


@pytest.mark.parametrize("metafile", METAFILES, ids=lambda path: path.parent.name)
def test_architecture_is_the_config_s(metafile):
    for model in read(metafile)["Models"]:
        cfg = config(model["Config"]).model
        parts = set(model["Metadata"]["Architecture"])
        assert ("Boundary Patch Refinement" in parts) == (cfg.type == "BoundaryPatchRefiner")
        if cfg.type == "BoundaryPatchRefiner":
            seen = cfg.data_preprocessor.get("use_coarse_mask", True)
            assert ("Coarse Mask Input" in parts) == seen
            assert ("FCN" in parts) == (cfg.decode_head.type == "FCNHead")
            assert ("Residual FCN" in parts) == (cfg.decode_head.type == "ResidualFCNHead")
            assert model["Metadata"]["Backbone"].startswith(REFINERS[cfg.backbone.type])
            continue
        assert ("BlendMask" in parts) == (cfg.type == "BlendMask")
        if cfg.type == "BlendMask":
            head = cfg.bbox_head
            assert ("Shared Tower" in parts) == bool(head.get("num_shared_convs"))
            assert ("BN per Level" in parts) == bool(head.get("norm_per_level"))
            assert ("DCNv2" in parts) == ("dcn" in cfg.backbone)
            assert ("Semantic FPN" in parts) == ("semantic_head" in cfg)
            assert model["Metadata"]["Backbone"].startswith(f"ResNet-{cfg.backbone.depth}")
            continue
        head = cfg.roi_head
        refining = head.type in ("MaskRefiningRoIHead", "MaskPlusMaskRefiningRoIHead")
        assert ("Mask Refining" in parts) == refining
        assert ("Shape-aware RoIAlign" in parts) == (refining and head.shape_aware)
        refinement = head.get("boundary_refinement")
        assert ("Contextual Fusion" in parts) == bool(head.get("contextual_fusion"))
        assert ("Deconvolutional Pyramid" in parts) == bool(head.get("deconv_pyramid"))
        assert ("Boundary Refinement" in parts) == (refinement == "improved")
        assert ("GCN Refinement" in parts) == (refinement == "gcn")
        assert ("Quasi-multitask Learning" in parts) == bool(head.get("quasi_multitask"))
        assert ("Cascade" in parts) == ("Cascade" in head.type)
        assert ("Semantic FPN" in parts) == ("semantic_head" in cfg)
        assert ("Iterative Projection" in parts) == bool(head.get("num_iterations"))
        occlusion = cfg.get("occlusion_head", {}).get("type")
        assert ("Occlusion Estimation" in parts) == (occlusion == "OcclusionHead")
        assert ("Spatial Ranking" in parts) == (occlusion == "SpatialRankingHead")
        fusion = cfg.get("panoptic_fusion_head", {})
        assert ("Unknown Erasing" in parts) == (fusion.get("unknown_erasing") is not None)
        hooks = config(model["Config"]).get("custom_hooks", [])
        biased = any(hook["type"] == "BiasedTrainingHook" for hook in hooks)
        techniques = model["Metadata"].get("Training Techniques", [])
        assert ("Biased Training" in techniques) == biased


def test_no_figure_stands_for_another_training_without_a_note(mr_rcnn):
    for name, model in mr_rcnn.items():
        note = model["Metadata"].get("Note", "")
        assert note.startswith("The control") == name.startswith("mask-rcnn")
        assert ("ot in the paper" in note) == (not figures_of(model))
        assert (model["Metadata"]["Paper Tables"] == "none") == (not figures_of(model))


@pytest.mark.parametrize("metafile", METAFILES, ids=lambda path: path.parent.name)
def test_mim_can_read_it(metafile):
    modelindex = pytest.importorskip("modelindex")
    index = modelindex.load(str(ROOT / "model-index.yml"))
    index.build_models_with_collections()
    # It looks for READMEs beside the metafile; mmdet's metafiles, too, count from the root.
    assert [fault for fault in index.check(silent=True) if "README" not in fault] == []
    assert {model["Name"] for model in read(metafile)["Models"]} <= {m.name for m in index.models}


def test_checkpoints_that_are_shared_are_named(mr_rcnn):
    shared = {name: m["Metadata"].get("Checkpoint Of") for name, m in mr_rcnn.items()}
    for name, other in shared.items():
        variant = re.search("cls-only_|box-only_", name)
        assert other == (name.replace(variant[0], "") if variant else None)


def test_tables_1_and_2(mr_rcnn, paper):
    compared = []
    for number, split in ((1, "COCO val2017"), (2, "COCO test-dev2017")):
        for method, network, *cells in table(paper, number):
            method = method.split("[")[0]
            if method not in ("Mask R-CNN", "MR R-CNN"):
                continue
            name = f"{method.replace(' R-CNN', '').lower()}-rcnn_{backbone(network)}_fpn_9k_coco"
            figures = figures_of(mr_rcnn[name])
            reported = [figures[f"{split} {metric}"] for metric in METRICS]
            assert reported == [float(cell) for cell in cells], (number, name)
            compared.append((number, name))
    assert len(compared) == 6 + 7
    reported = {(n, m) for n, m in compared if n == 2}
    assert {name for _, name in reported} == {
        name for name, m in mr_rcnn.items() if any("test-dev" in key for key in figures_of(m))
    }


@pytest.mark.parametrize(
    ("number", "rows"),
    [
        (3, {(True, False): "no-shape-aware_", (True, True): ""}),
        (4, {(True, False): "cls-only_", (False, True): "box-only_", (True, True): ""}),
    ],
)
def test_ablations(mr_rcnn, paper, number, rows):
    compared = 0
    for network, first, second, box, mask in table(paper, number):
        ticks = ("checkmark" in first, "checkmark" in second)
        kind = f"mr-rcnn_{backbone(network)}_fpn_{rows[ticks]}" if any(ticks) else None
        name = (kind or f"mask-rcnn_{backbone(network)}_fpn_") + "9k_coco"
        figures = figures_of(mr_rcnn[name])
        assert figures["COCO val2017 box AP"] == first_number(box), name
        assert figures["COCO val2017 mask AP"] == first_number(mask), name
        compared += 1
    assert compared == 3 * (len(rows) + 1)


def test_table_5(mr_rcnn, paper):
    figures = figures_of(mr_rcnn["mr-rcnn_r50_fpn_9k_coco"])
    found = {key: value for key, value in figures.items() if "alpha" in key}
    wanted = {}
    for left, *first, right, box, mask in table(paper, 5):
        for alpha, cells in ((left, first), (right, (box, mask))):
            for part, cell in zip(("box", "mask"), cells, strict=True):
                wanted[f"COCO val2017 {part} AP (alpha {alpha})"] = float(cell)
    assert found == wanted and len(found) == 2 * 8
    for part in ("box", "mask"):
        assert figures[f"COCO val2017 {part} AP (alpha 1)"] == figures[f"COCO val2017 {part} AP"]


def test_table_5_in_the_readme(paper):
    wanted = {}
    for left_alpha, *left, right_alpha, box, mask in table(paper, 5):
        wanted[left_alpha] = tuple(left)
        wanted[right_alpha] = (box, mask)
    lines = (ROOT / "configs/mr_rcnn/README.md").read_text().splitlines()
    rows = {}
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("α (reported)", "box AP", "mask AP"):
            rows[cells[0]] = cells[1:]
    found = zip(rows["box AP"], rows["mask AP"], strict=True)
    assert dict(zip(rows["α (reported)"], found, strict=True)) == wanted


def test_readme_and_metafile_agree(mr_rcnn):
    text = (ROOT / "configs/mr_rcnn/README.md").read_text()
    sections = {
        "COCO val2017": "Reported for COCO val2017 (Tables",
        "COCO test-dev2017": "(Table 2)",
    }
    for split, start in sections.items():
        block = text[text.index(start) :].split("\n\n")[1]
        found = {}
        for line in block.splitlines()[2:]:
            *_, box, mask, link = [cell.strip() for cell in line.strip("|").split("|")]
            stem = re.search(r"\((.+)\.py\)", link)[1]
            found[stem] = (box, mask)
        wanted = {}
        for name, model in mr_rcnn.items():
            figures = figures_of(model)
            if f"{split} box AP" in figures:
                wanted[name] = (str(figures[f"{split} box AP"]), str(figures[f"{split} mask AP"]))
            elif name in found:
                wanted[name] = ("not in the paper", "not in the paper")
        assert found == wanted


@pytest.fixture(scope="module")
def bpr() -> dict[str, dict]:
    data = read(ROOT / "configs/bpr/metafile.yml")
    return {model["Name"]: model for model in data["Models"]}


@pytest.fixture(scope="module")
def supplement() -> str:
    path = ROOT.parent / "shared/papers/bpr_supplement.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/papers beside the repository")
    return path.read_text()


def table_s1(supplement: str) -> dict[str, list[float]]:
    """AP, AP50 and AF by the first cell of the row."""
    above = supplement[: supplement.index("\nTable S1:")].rstrip().splitlines()[-3:]
    rows = [line.split("\t") for line in above]
    return {name: [float(cell) for cell in cells] for name, *cells in rows}


def test_bpr_has_the_figures_of_table_s1_and_no_others(bpr, supplement):
    rows = table_s1(supplement)
    assert len(rows) == 3
    figures = {name: figures_of(model) for name, model in bpr.items()}
    for segmenter in ("PointRend", "SegFix"):
        name = f"bpr_hrnetv2-w18s_{segmenter.lower()}_160k_cityscapes-128x128"
        metrics = [f"Cityscapes val mask {metric}" for metric in ("AP", "AP@0.5", "AF")]
        wanted = dict(zip(metrics, rows[f"w/ BPR (trained on {segmenter})"], strict=True))
        assert figures.pop(name) == wanted
        assert segmenter in bpr[name]["Metadata"]["Note"]
        assert bpr[name]["Metadata"]["Supplement"] == "Table S1"
        baseline = re.findall(r"\d+\.\d+(?=,|$)", bpr[name]["Metadata"]["Baseline"])
        assert [float(figure) for figure in baseline] == rows["Mask R-CNN"]
    assert not any(figures.values())


def test_time_of_bpr_is_that_of_the_supplement(bpr, supplement):
    found = re.search(r"about (\d+)ms \((\d+)ms,(\d+)ms,(\d+)ms", supplement)
    total, *parts = found.groups()
    timed = {
        name: model["Metadata"]["Time (reported)"]
        for name, model in bpr.items()
        if "Time (reported)" in model["Metadata"]
    }
    assert list(timed) == ["bpr_hrnetv2-w18s_160k_cityscapes-128x128"]
    (text,) = timed.values()
    assert text.startswith(f"{total} ms") and f"({', '.join(parts)})" in text
    readme = (ROOT / "configs/bpr/README.md").read_text()
    (row,) = [line for line in readme.splitlines() if line.startswith("| HRNet-W18s, 128 x 128")]
    assert [cell.strip() for cell in row.strip("|").split("|")][1:] == [*parts, total]


def test_training_of_bpr_is_the_config_s(bpr):
    for name, model in bpr.items():
        facts = model["Metadata"]
        cfg = config(model["Config"])
        techniques = {"SGD": "SGD with Momentum", "AdamW": "AdamW"}
        assert techniques[cfg.optim_wrapper.optimizer.type] in facts["Training Techniques"]
        if "Iterations" in facts:
            assert facts["Iterations"] == cfg.train_cfg.max_iters
            assert facts["Batch Size"] == cfg.auto_scale_lr.base_batch_size
            data = cfg.train_dataloader.dataset.data_root
            assert facts["Training Data"].lower() in data, name
        assert ("Iterations" in facts) == ("_160k_" in name)


def test_readme_of_bpr_has_each_config_and_table_s1(bpr):
    text = (ROOT / "configs/bpr/README.md").read_text()
    linked = re.findall(
        r"\]\((bpr_[\w-]+)\.py\)", text.split("\n## Configs\n")[1].split("\n## ")[0]
    )
    assert sorted(linked) == sorted(bpr)
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 5 and re.fullmatch(r"\d\d\.\d", cells[1]):
            link = re.search(r"\((.+)\.py\)", cells[4])
            rows[link and link[1]] = [float(cell) for cell in cells[1:4]]
    baseline = rows.pop(None)
    wanted = {name: list(figures_of(model).values()) for name, model in bpr.items()}
    assert rows == {name: figures for name, figures in wanted.items() if figures}
    for name in rows:
        assert bpr[name]["Metadata"]["Baseline"].endswith(
            "mask AP {}, mask AP@0.5 {}, mask AF {}".format(*baseline)
        )


@pytest.fixture(scope="module")
def maskplus() -> dict[str, dict]:
    data = read(ROOT / "configs/maskplus/metafile.yml")
    return {model["Name"]: model for model in data["Models"]}


MASKPLUS_METRICS = ("AP", "AP@0.5", "AP@0.75", "AP_S", "AP_M", "AP_L")
# The paper's rows, in the order of its tables; None is a row of another model.
MASKPLUS_TABLES = {
    1: (
        "mask-rcnn_r50_fpn",
        "maskplus_r50_fpn_contextual-fusion-256-256",
        "maskplus_r50_fpn_contextual-fusion-256-256-256",
        "maskplus_r50_fpn_contextual-fusion",
    ),
    2: ("mask-rcnn_r50_fpn", "maskplus_r50_fpn_deconv-pyramid"),
    3: (
        "mask-rcnn_r50_fpn",
        "maskplus_r50_fpn_gcn-refinement",
        "maskplus_r50_fpn_boundary-refinement",
    ),
    5: ("mask-rcnn_r50_fpn", "maskplus_r50_fpn_biased-training"),
    6: ("mask-rcnn_r50_fpn", "maskplus_r50_fpn_biased-training"),
    7: (None, None, "mask-rcnn_r101_fpn", None, None, None, None, "maskplus_r101_fpn", "540k"),
}


def maskplus_rows(paper: str, number: int) -> list[list[float | None]]:
    """The last six cells of each row of a table, None for a dash."""
    above = paper[: paper.index(f"\nTable {number}.")].rstrip().splitlines()
    rows = []
    while "\t" in above[-1] or not above[-1].strip():
        cells = above.pop().split("\t")[-6:]
        if all(re.fullmatch(r"[\d.]+|-", cell.strip()) for cell in cells):
            rows.append([None if cell.strip() == "-" else float(cell) for cell in cells])
    return rows[::-1]


@pytest.mark.parametrize("number", MASKPLUS_TABLES)
def test_tables_of_maskplus(maskplus, number):
    path = ROOT.parent / "shared/papers/maskplus.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/papers beside the repository")
    rows = maskplus_rows(path.read_text(), number)
    assert len(rows) == len(MASKPLUS_TABLES[number])
    split = "COCO test-dev2017" if number == 7 else "COCO val2017"
    part = "box" if number == 5 else "mask"
    for stem, cells in zip(MASKPLUS_TABLES[number], rows, strict=True):
        if stem is None:
            continue
        name = "cascade-maskplus_r101_fpn_540k_coco" if stem == "540k" else f"{stem}_360k_coco"
        assert str(number) in re.findall(r"\d", _spelt(maskplus[name])), name
        figures = figures_of(maskplus[name])
        assert [figures[f"{split} {part} {metric}"] for metric in MASKPLUS_METRICS] == cells, name


def test_table_4_of_maskplus(maskplus):
    """Its second lines, of another experiment, are garbled in the text; the first are searched."""
    path = ROOT.parent / "shared/papers/maskplus.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/papers beside the repository")
    paper = path.read_text()
    section = paper[paper.index("As shown in Table 4") : paper.index("\nTable 4.")]
    for stem, row in (
        ("mask-rcnn_r50_fpn", 1),
        ("mask-rcnn_r50_fpn_half-mask", 3),
        ("maskplus_r50_fpn_half-quasi-multitask", 6),
        ("maskplus_r50_fpn_double-quasi-multitask", 10),
    ):
        model = maskplus[f"{stem}_360k_coco"]
        assert "4" in re.findall(r"\d", _spelt(model)), stem
        figures = figures_of(model)
        cells = [str(figures[f"COCO val2017 mask {metric}"]) for metric in MASKPLUS_METRICS]
        assert section.splitlines()[row + 2].split("\t")[1:7] == cells, stem


def _spelt(model: dict) -> str:
    """Table numbers with ranges written out."""
    return model["Metadata"]["Paper Tables"].replace("1 to 6", "1 2 3 4 5 6")


def test_readme_of_maskplus_has_the_metafile_s_figures(maskplus):
    text = (ROOT / "configs/maskplus/README.md").read_text()
    found = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        link = re.fullmatch(r"\[config\]\((.+)\.py\)", cells[-1])
        if link:
            found.setdefault(link[1], []).append(tuple(cells[1:-1]))
    assert found.keys() == maskplus.keys()
    for name, model in maskplus.items():
        wanted = [tuple(str(v) for v in r["Metrics"].values()) for r in model.get("Results", [])]
        assert sorted(found[name]) == sorted(wanted or [()]), name


def test_maskplus_says_what_is_not_in_the_paper(maskplus):
    for model in maskplus.values():
        absent = model["Metadata"]["Paper Tables"] == "none"
        assert absent == (not figures_of(model))
        assert absent == ("ot in the paper" in model["Metadata"].get("Note", ""))
