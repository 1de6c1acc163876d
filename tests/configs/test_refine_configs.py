"""What the configs of REFINE say: a switch for each row, two stages, the paper's figures."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
import yaml
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from tiny_refine import make_panoptic_batch

from mmdet_plus.engine import UserError, prepare_train_cfg, training
from mmdet_plus.engine.config import load_config, set_work_dir

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs/refine"
DATA = "_coco-panoptic"
PFPN_R50, PFPN_R101 = (f"panoptic-fpn_{net}_fpn_gn_180k" for net in ("r50", "r101"))
IBPP_R50, IBPP_R101 = (f"ibpp-t3_{net}_fpn_gn_180k" for net in ("r50", "r101"))
CASCADE = "cascade-panoptic-fpn_r101-dcn_fpn_270k"
IBPP_DCN, IBPP_X101 = (f"cascade-ibpp-t3_{net}-dcn_fpn_180k" for net in ("r101", "x101"))
REFINE_R50, REFINE_DCN, REFINE_X101 = (
    f"refine_{net}" for net in ("r50_fpn_gn", "r101-dcn_fpn", "x101-dcn_fpn")
)
X101 = "_x101-dcn_fpn"
STRONG, OCFUSION = f"occlusion-strong-baseline{X101}", f"ocfusion{X101}"
MASKS, SRM = f"occlusion-masks{X101}", f"spatial-ranking{X101}"
SOE_2, SOE, SOE_4 = (f"soft-occlusion-s{sigma}{X101}" for sigma in ("2-0", "2-5", "4-0"))
# The model that the second stage starts from.
STARTS = {
    REFINE_R50: IBPP_R50,
    "refine_r50_fpn_gn_no-ue": IBPP_R50,
    REFINE_DCN: IBPP_DCN,
} | dict.fromkeys((REFINE_X101, STRONG, OCFUSION, MASKS, SRM, SOE_2, SOE, SOE_4), IBPP_X101)
ROOTS = (PFPN_R50, CASCADE)

GONE = "not there"
PRIORS = dict(use_masks=True, use_features=True, use_labels=True)
OCCLUSION = dict(
    type="OcclusionHead",
    num_classes=80,
    roi_extractor=dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=256,
        featmap_strides=[4, 8, 16, 32],
    ),
    overlap_thr=0.2,
    score_thr=0.5,
    match_iou=0.5,
    embedding=32,
    **PRIORS,
)
FUSER = "model.panoptic_fusion_head"
IBPP = {
    "model.type": "REFINE",
    "model.roi_head.type": "IterativeProjectionRoIHead",
    "model.roi_head.num_iterations": 3,
    "model.roi_head.num_stuff_classes": 53,
    "model.roi_head.share_heads": False,
    "model.roi_head.canvas_weight": "score",
    "model.semantic_head.type": "ProjectionSemanticHead",
    "model.semantic_head.inner_channels": 256,
}
STAGE_2 = {
    "model.backbone.init_cfg": None,
    "model.occlusion_only": True,
    "model.occlusion_head": OCCLUSION,
    "occlusion": OCCLUSION,
    f"{FUSER}.type": "SoftOcclusionFusion",
    f"{FUSER}.sigma": 2.5,
    f"{FUSER}.occlusion_thr": 0.2,
    f"{FUSER}.unknown_erasing": dict(threshold=0.5, dilation=3),
    "train_cfg.max_iters": 9000,
    "train_cfg.val_interval": 3000,
    "optim_wrapper.optimizer.lr": 0.002,
    "param_scheduler": [dict(type="MultiStepLR", by_epoch=False, milestones=[6000], gamma=0.1)],
    "default_hooks.checkpoint.interval": 3000,
}
DEEPER = {
    "model.backbone.depth": 101,
    "model.backbone.init_cfg.checkpoint": "open-mmlab://detectron/resnet101_gn",
}
RESNEXT = {
    "model.backbone.type": "ResNeXt",
    "model.backbone.groups": 64,
    "model.backbone.base_width": 4,
}
SHORTER = {
    "train_cfg.max_iters": 180000,
    "train_cfg.val_interval": 20000,
    "param_scheduler.1.milestones": [120000, 160000],
}


def loads(stem: str) -> dict[str, str]:
    return {"load_from": f"work_dirs/{stem}{DATA}/iter_180000.pth"}


# Each config but the two roots: another one, and all in which the two differ.
DIFFERENCES = {
    PFPN_R101: (PFPN_R50, DEEPER),
    IBPP_R50: (PFPN_R50, IBPP),
    "ibpp-t1_r50_fpn_gn_180k": (IBPP_R50, {"model.roi_head.num_iterations": 1}),
    "ibpp-t2_r50_fpn_gn_180k": (IBPP_R50, {"model.roi_head.num_iterations": 2}),
    IBPP_R101: (IBPP_R50, DEEPER),
    IBPP_DCN: (
        CASCADE,
        IBPP | SHORTER | {"model.roi_head.type": "IterativeProjectionCascadeRoIHead"},
    ),
    IBPP_X101: (
        IBPP_DCN,
        RESNEXT | {"model.backbone.init_cfg.checkpoint": "open-mmlab://resnext101_64x4d"},
    ),
    REFINE_R50: (IBPP_R50, STAGE_2 | loads(IBPP_R50)),
    "refine_r50_fpn_gn_no-ue": (REFINE_R50, {f"{FUSER}.unknown_erasing": None}),
    REFINE_DCN: (IBPP_DCN, STAGE_2 | loads(IBPP_DCN)),
    REFINE_X101: (REFINE_DCN, RESNEXT | loads(IBPP_X101)),
    SOE: (REFINE_X101, {f"{FUSER}.unknown_erasing": None}),
    SOE_2: (SOE, {f"{FUSER}.sigma": 2.0}),
    SOE_4: (SOE, {f"{FUSER}.sigma": 4.0}),
    STRONG: (
        SOE,
        {
            f"{FUSER}.type": "OcclusionFusion",
            f"{FUSER}.sigma": GONE,
            f"{FUSER}.unknown_erasing": GONE,
        },
    ),
    OCFUSION: (STRONG, {"model.occlusion_head.use_labels": False}),
    MASKS: (
        STRONG,
        dict.fromkeys(
            ("model.occlusion_head.use_features", "model.occlusion_head.use_labels"), False
        ),
    ),
    SRM: (
        STRONG,
        {
            "model.occlusion_head": dict(type="SpatialRankingHead", num_classes=80, score_thr=0.5),
            f"{FUSER}.type": "SpatialRankingFusion",
            f"{FUSER}.occlusion_thr": GONE,
        },
    ),
}
NAMES = (*ROOTS, *DIFFERENCES)
every_config = pytest.mark.parametrize("name", NAMES)
second_stage = pytest.mark.parametrize("name", STARTS)


@functools.cache
def read(name: str) -> Config:
    """The config, which no test changes."""
    return Config.fromfile(FOLDER / f"{name}{DATA}.py")


@functools.cache
def build(name: str) -> torch.nn.Module:
    """The model, without values."""
    init_default_scope("mmdet")
    with torch.device("meta"):
        return MODELS.build(copy.deepcopy(read(name).model))


def plain(node: Any) -> Any:
    """A part of a config as what ``==`` compares, tuples as lists."""
    if isinstance(node, dict):
        return {key: plain(value) for key, value in node.items()}
    return [plain(value) for value in node] if isinstance(node, (list, tuple)) else node


def differences(one: Any, other: Any, path: str = "") -> dict[str, Any]:
    """By dotted key, what ``one`` has where ``other`` has something else."""
    if one == other:
        return {}
    both = (one, other)
    if path.endswith("param_scheduler") and len(one) == len(other):
        one, other = ({str(i): item for i, item in enumerate(node)} for node in both)
    elif not all(isinstance(node, dict) for node in both) or (
        path.endswith("occlusion_head") and one["type"] != other["type"]
    ):
        return {path: one}
    found = {}
    for key in {*one, *other}:
        place = f"{path}.{key}" if path else key
        found |= differences(one.get(key, GONE), other.get(key, GONE), place)
    return found


def test_the_rows_are_all_there():
    assert {path.stem for path in FOLDER.glob("*.py")} == {name + DATA for name in NAMES}
    assert f"{REFINE_R50}{DATA}" == "refine_r50_fpn_gn_coco-panoptic"  # interfaces.md


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_row_differs_in_its_switch_alone(name):
    other, expected = DIFFERENCES[name]
    found = differences(plain(dict(read(name))), plain(dict(read(other))))
    assert found == expected


def test_panoptic_fpn_is_mmdet_s_with_group_norm():
    ours = plain(read(PFPN_R50).model)
    gn = mmdet_model("gn/mask-rcnn_r50_fpn_gn-all_2x_coco.py")
    theirs = mmdet_model("panoptic_fpn/panoptic-fpn_r50_fpn_1x_coco.py")
    for part in ("backbone", "neck", "rpn_head", "roi_head", "train_cfg"):
        assert ours[part] == gn[part], part
    assert ours["type"] == theirs["type"] == "PanopticFPN"
    assert ours["data_preprocessor"] == theirs["data_preprocessor"] | gn["data_preprocessor"]
    assert differences(ours["semantic_head"], theirs["semantic_head"]) == {
        "conv_cfg": GONE,
        # As detectron2: padding does not thin the loss.
        "loss_seg.avg_non_ignore": True,
    }


def test_cascade_panoptic_fpn_is_mmdet_s_cascade_with_the_same_panoptic_parts():
    ours = plain(read(CASCADE).model)
    dcn = mmdet_model("dcn/cascade-mask-rcnn_r101-dconv-c3-c5_fpn_1x_coco.py")
    plain_fpn = plain(read(PFPN_R50).model)
    for part in ("backbone", "neck", "rpn_head", "roi_head", "train_cfg"):
        assert ours[part] == dcn[part], part
    for part in ("type", "semantic_head", "panoptic_fusion_head"):
        assert ours[part] == plain_fpn[part], part
    padding = dict(mask_pad_value=0, pad_seg=True, seg_pad_value=255)
    assert ours["data_preprocessor"] == dcn["data_preprocessor"] | padding


def mmdet_model(name: str) -> dict:
    """The model of one of mmdet's configs."""
    return plain(Config.fromfile(Path(mmdet.__file__).parent / ".mim/configs" / name).model)


@every_config
def test_fusers_get_equal_detections(name):
    model = read(name).model
    assert plain(model.test_cfg.rcnn) == dict(
        score_thr=0.05,
        nms=dict(type="nms", iou_threshold=0.5),
        max_per_img=100,
        mask_thr_binary=0.5,
    )
    assert plain(model.test_cfg.panoptic) == dict(
        score_thr=0.5, overlap_thr=0.5, stuff_area_limit=4096
    )
    head = model.get("occlusion_head")
    if head:
        # What the fuser will not use need not be compared.
        assert head.score_thr == model.test_cfg.panoptic.score_thr
        thresholds = {head.get("overlap_thr"), model.panoptic_fusion_head.get("occlusion_thr")}
        assert thresholds == ({None} if head.type == "SpatialRankingHead" else {0.2})


@every_config
def test_schedule(name):
    cfg = read(name)
    optimizer = dict(type="SGD", lr=0.02, momentum=0.9, weight_decay=0.0001)
    length, steps = 180000, [120000, 160000]
    if name in STARTS:
        length, steps, optimizer["lr"] = 9000, [6000], 0.002
    elif name == CASCADE:
        length, steps = 270000, [180000, 240000]
    assert (cfg.train_cfg.type, cfg.train_cfg.max_iters) == ("IterBasedTrainLoop", length)
    assert cfg.optim_wrapper.optimizer == optimizer
    assert cfg.param_scheduler[-1].milestones == steps
    assert [s.type for s in cfg.param_scheduler[:-1]] == ["LinearLR"] * (name not in STARTS)
    assert cfg.auto_scale_lr.base_batch_size == 8 * cfg.train_dataloader.batch_size == 16
    assert length % cfg.train_cfg.val_interval == 0
    # The last checkpoint is among those that are kept, for the next stage.
    assert length % cfg.default_hooks.checkpoint.interval == 0
    assert not cfg.default_hooks.checkpoint.by_epoch


@every_config
def test_data(name):
    cfg = read(name)
    assert cfg.train_dataloader.sampler == dict(type="InfiniteSampler")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        dataset = loader.dataset
        assert dataset.type == "CheckedCocoPanopticDataset"
        (resize,) = (step for step in dataset.pipeline if step.type == "Resize")
        assert (resize.scale, resize.keep_ratio) == ((1333, 800), True)
    assert cfg.train_dataloader.dataset.ann_file == "annotations/panoptic_train2017.json"
    assert cfg.test_dataloader.dataset.ann_file == "annotations/panoptic_val2017.json"
    assert cfg.val_evaluator.type == cfg.test_evaluator.type == "PanopticMetric"


@every_config
def test_classes(name):
    model = build(name)
    fusion = model.panoptic_fusion_head
    assert (fusion.num_things_classes, fusion.num_stuff_classes) == (80, 53)
    iterations = read(name).model.roi_head.get("num_iterations", 0)
    # mmdet's Panoptic-FPN has one class for all things.
    classes = 133 if iterations else 54
    assert model.semantic_head.conv_logits.out_channels == classes
    assert list(fusion.stuff_channels(classes)) == list(range(80, 133) if iterations else range(53))
    box_heads = model.roi_head.bbox_head
    for head in [box_heads] if hasattr(box_heads, "fc_cls") else box_heads:
        assert head.fc_cls.out_features == 81
    if iterations:
        projection = model.roi_head.projection
        assert len(projection.mask_heads) == len(projection.semantic_heads) == iterations
        for mask_head, semantic_head in zip(
            projection.mask_heads, projection.semantic_heads, strict=True
        ):
            assert mask_head.conv_logits.out_channels == 80
            # Features, and the semantics beside them (Eq. 4); the canvas beside F_sem (Eq. 6).
            assert mask_head.convs[0].conv.in_channels == 256 + 133
            assert semantic_head.conv.conv.in_channels == 80 + 256
            assert semantic_head.conv_logits.out_channels == 133
    occlusion = getattr(model, "occlusion_head", None)
    assert (occlusion is not None) == (name in STARTS)
    if hasattr(occlusion, "network"):
        embedding = occlusion.network.embedding
        labels = read(name).model.occlusion_head.use_labels
        assert (embedding.num_embeddings if labels else embedding) == (80 if labels else None)
    elif occlusion is not None:
        assert occlusion.num_classes == 80


@every_config
def test_normalisation(name):
    model = build(name)
    parts = {
        part: {type(m).__name__ for m in getattr(model, part).modules()}
        & {"GroupNorm", "BatchNorm2d", "SyncBatchNorm"}
        for part in ("backbone", "neck", "roi_head", "semantic_head")
    }
    if "dcn" not in name:
        assert all(kinds == {"GroupNorm"} for kinds in parts.values()), parts
        return
    assert parts["backbone"] == {"BatchNorm2d"} and parts["neck"] == set()
    assert parts["semantic_head"] == {"GroupNorm"}
    assert model.backbone.norm_eval
    deformable = [
        layer
        for layer in ("layer1", "layer2", "layer3", "layer4")
        if any(
            type(m).__name__ == "DeformConv2dPack" for m in getattr(model.backbone, layer).modules()
        )
    ]
    assert deformable == ["layer2", "layer3", "layer4"]


@second_stage
def test_second_stage_starts_from_the_first_one_s_last_checkpoint(name):
    first, cfg = read(STARTS[name]), read(name)
    saved = copy.deepcopy(first)
    set_work_dir(saved, None)
    assert cfg.load_from == f"{saved.work_dir}/iter_{first.train_cfg.max_iters}.pth"
    # The model is that one, and an occlusion head, which alone is trained.
    ours = {key: value.shape for key, value in build(name).state_dict().items()}
    theirs = {key: value.shape for key, value in build(STARTS[name]).state_dict().items()}
    assert {key: ours.get(key) for key in theirs} == theirs
    added = ours.keys() - theirs.keys()
    assert added and all(key.startswith("occlusion_head.") for key in added)
    trained = {key for key, value in build(name).named_parameters() if value.requires_grad}
    assert trained == added


def test_a_first_stage_starts_from_pretrained_backbones():
    for name in set(NAMES) - set(STARTS):
        assert read(name).load_from is None
        assert read(name).model.backbone.init_cfg.type == "Pretrained"


def test_missing_first_stage_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "check_data", lambda *arguments: None)
    path = FOLDER / f"{REFINE_R50}{DATA}.py"
    with pytest.raises(UserError, match=rf"work_dirs/{IBPP_R50}{DATA}/iter_180000\.pth.* no such"):
        prepare_train_cfg(str(path))
    checkpoint = tmp_path / read(REFINE_R50).load_from
    checkpoint.parent.mkdir(parents=True)
    torch.save({}, checkpoint)
    prepare_train_cfg(str(path))


def test_refine_at_full_settings(monkeypatch):
    options = {
        # The networks are as they are, but see fewer boxes.
        "model.train_cfg.rpn_proposal.max_per_img": 32,
        "model.test_cfg.rpn.max_per_img": 32,
        "model.test_cfg.rcnn.max_per_img": 16,
        # Random weights are sure of nothing.
        "model.test_cfg.rcnn.score_thr": 0.0,
        "model.test_cfg.panoptic.score_thr": 0.0,
        "model.occlusion_head.score_thr": 0.0,
        "model.occlusion_only": False,
    }
    cfg = load_config(str(FOLDER / f"{REFINE_R50}{DATA}.py"), options)
    init_default_scope("mmdet")
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    batch = make_panoptic_batch([[(16, 16, 80, 80), (50, 50, 110, 120)]], 128)
    seen, predict = [], model.occlusion_head.predict

    def watched(*arguments):
        seen.extend(predict(*arguments))
        return seen

    monkeypatch.setattr(model.occlusion_head, "predict", watched)
    with torch.no_grad():
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        losses = model.loss(data["inputs"], data["data_samples"])
        model.eval()
        (sample,) = model.predict(data["inputs"], data["data_samples"])
    assert {name for name in losses if "loss" in name} == {
        *("loss_rpn_cls", "loss_rpn_bbox", "loss_cls", "loss_bbox", "loss_occlusion"),
        *("loss_seg", *(f"loss_{task}_{t}" for task in ("mask", "seg") for t in (1, 2, 3))),
    }
    total, _ = model.parse_losses(losses)
    assert torch.isfinite(total)
    (results,) = seen
    assert results.occlusion.shape == (16, 16) and (results.occlusion > 0).any()
    fused = sample.pred_panoptic_seg.sem_seg
    assert fused.shape == (1, 128, 128)
    # Instances lie there; the semantics of random weights are erased.
    assert fused.max() >= 1000 and not ((fused >= 80) & (fused < 133)).any()


METRICS = {
    1: ("PQ", "PQ (things)", "PQ (stuff)", "SQ", "RQ", "split"),
    2: ("PQ", "PQ (things)", "PQ (stuff)", "box AP", "mask AP", "speed"),
    3: ("PQ", "PQ (things)", "PQ (stuff)"),
    4: ("PQ", "PQ (things)", "PQ (stuff)"),
    5: ("PQ (things)", "SQ (things)", "RQ (things)"),
    6: ("PQ (things)", "SQ (things)", "RQ (things)"),
}
# The rows of the paper's tables, in their order; None is a row without config.
TABLES = {
    1: (None, PFPN_R101, *[None] * 7, REFINE_R50, REFINE_DCN, REFINE_X101),
    2: (PFPN_R101, CASCADE, REFINE_DCN),
    3: (PFPN_R50, IBPP_R50, "refine_r50_fpn_gn_no-ue", REFINE_R50),
    4: (
        PFPN_R50,
        *(f"ibpp-t{t}_r50_fpn_gn_180k" for t in (1, 2, 3)),
        PFPN_R101,
        IBPP_R101,
    ),
    5: (IBPP_X101, None, SRM, OCFUSION, STRONG, SOE_2, SOE, SOE_4),
    6: (IBPP_X101, MASKS, OCFUSION, STRONG, SOE),
}


@pytest.fixture(scope="module")
def paper() -> str:
    path = ROOT.parent / "shared/papers/refine.txt"
    if not path.is_file():
        pytest.skip("needs ../shared/papers beside the repository")
    return path.read_text()


@pytest.fixture(scope="module")
def metafile() -> dict[str, dict]:
    data = yaml.safe_load((FOLDER / "metafile.yml").read_text())
    return {model["Name"].removesuffix(DATA): model for model in data["Models"]}


def rows_of_paper(paper: str, number: int) -> list[list[str]]:
    """The cells of a table's rows that hold figures; gains in brackets are left out."""
    above = paper[: paper.index(f"\nTable {number}:")].rstrip().splitlines()
    rows = []
    while "\t" in above[-1]:
        rows.append(above.pop().split("\t")[-len(METRICS[number]) :])
    rows = [[cell.partition(" (")[0].strip() for cell in row] for row in rows[::-1]][1:]
    if number == 6:
        # The last row came out garbled; it is that of Table 5.
        assert "/" in rows[-1][1]
        rows[-1] = rows_of_paper(paper, 5)[-2]
    return rows


def rows_of_readme(number: int) -> list[tuple[str | None, list[str]]]:
    """By config, all cells of a table's rows."""
    text = (FOLDER / "README.md").read_text()
    section = text.split(f"\n### Table {number}\n")[1].split("\n### ")[0].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    links = [re.fullmatch(rf"\[config\]\((.+){DATA}\.py\)", row[-1]) for row in cells]
    return [(link and link[1], row[:-1]) for link, row in zip(links, cells, strict=True)]


def figures_of(model: dict) -> dict[str, float]:
    figures = {}
    for result in model.get("Results", []):
        for metric, value in result["Metrics"].items():
            key = f"{result['Dataset']} {metric}"
            assert key not in figures
            figures[key] = value
    return figures


@pytest.mark.parametrize("number", TABLES)
def test_readme_has_the_paper_s_table(paper, number):
    rows = rows_of_paper(paper, number)
    assert len(rows) == len(TABLES[number])
    pairs = list(zip(TABLES[number], rows, strict=True))
    if number == 1:  # Methods that are not of this paper.
        pairs = [(name, row) for name, row in pairs if name]
        pairs = [(name, [row[-1], *row[:-1]]) for name, row in pairs]
    found = [(name, cells[-len(METRICS[number]) :]) for name, cells in rows_of_readme(number)]
    assert found == pairs


def test_figures_of_the_metafile_are_the_paper_s(paper, metafile):
    wanted: dict[str, dict] = {name: {} for name in NAMES}
    tables: dict[str, list[int]] = {name: [] for name in NAMES}
    speeds = {}
    for number, names in TABLES.items():
        for name, cells in zip(names, rows_of_paper(paper, number), strict=True):
            if name is None:
                continue
            tables[name].append(number)
            row = dict(zip(METRICS[number], cells, strict=True))
            test_dev = row.pop("split", "val") == "test-dev"
            split = "COCO test-dev2017" if test_dev else "COCO val2017"
            if "speed" in row:
                speeds[name] = row.pop("speed")
            for metric, cell in row.items():
                if cell != "-":
                    key = f"{split} {metric}"
                    assert wanted[name].setdefault(key, float(cell)) == float(cell), (name, key)
    assert {name: figures_of(model) for name, model in metafile.items()} == wanted
    for name, model in metafile.items():
        said = model["Metadata"]["Paper Tables"]
        assert [int(digit) for digit in re.findall(r"\d", said)] == tables[name], name
        assert (said == "none") == (not tables[name])
        assert (said == "none") == ("ot in the paper" in model["Metadata"].get("Note", ""))
        speed = model["Metadata"].get("Speed (reported)", "")
        assert speed.partition(" ")[0] == speeds.get(name, "")


def test_metafile_tells_tasks_stages_and_shared_checkpoints(metafile):
    assert metafile.keys() == set(NAMES)
    tasks = {"box AP": "Object Detection", "mask AP": "Instance Segmentation"}
    for name, model in metafile.items():
        facts, cfg = model["Metadata"], read(name)
        assert facts["Iterations"] == cfg.train_cfg.max_iters
        start = STARTS.get(name)
        assert facts.get("Starts From") == (start and start + DATA)
        shared = None
        if name == "refine_r50_fpn_gn_no-ue":
            shared = REFINE_R50
        elif name in (STRONG, SOE_2, SOE, SOE_4):
            shared = REFINE_X101
        assert facts.get("Checkpoint Of") == (shared and shared + DATA)
        if shared:
            # They train the same: only what stands behind the networks differs.
            found = differences(plain(dict(cfg)), plain(dict(read(shared))))
            assert found and all(key.startswith(f"{FUSER}.") for key in found)
        for result in model.get("Results", []):
            for metric in result["Metrics"]:
                assert result["Task"] == tasks.get(metric, "Panoptic Segmentation")


def test_architecture_of_the_metafile_is_the_config_s(metafile):
    # What test_metafiles.py does not look at.
    for name, model in metafile.items():
        parts, cfg = set(model["Metadata"]["Architecture"]), read(name).model
        assert ("DCN" in parts) == ("dcn" in cfg.backbone)
        assert ("GroupNorm" in parts) == (cfg.backbone.norm_cfg.type == "GN")
        soft = cfg.panoptic_fusion_head.type == "SoftOcclusionFusion"
        assert ("Soft Penalization" in parts) == soft
        kind = "ResNeXt-101-64x4d" if cfg.backbone.type == "ResNeXt" else "ResNet-"
        depth = "" if cfg.backbone.type == "ResNeXt" else str(cfg.backbone.depth)
        assert model["Metadata"]["Backbone"].startswith(kind + depth)


def test_readme_leaves_shr_open_and_says_why():
    (row,) = [row for name, row in rows_of_readme(5) if name is None]
    assert row == ["SHR", "-", "56.9", "84.1", "67.2"]
    text = " ".join((FOLDER / "README.md").read_text().split())
    assert "The row of SHR stays open" in text and "no public description" in text


def test_readme_pairs_stages_and_checkpoints(metafile):
    text = (FOLDER / "README.md").read_text()
    table = text.split("| stage | train |")[1].split("\n\n")[0]
    found, first = {}, None
    for line in table.splitlines()[2:]:
        stage, trained, tested = (cell.strip() for cell in line.strip("|").split("|"))
        (name,) = re.findall(rf"\(([\w-]+){DATA}\.py\)", trained)
        if stage == "1":
            first = name
            continue
        assert STARTS[name] == first
        for shared in re.findall(rf"\(([\w-]+){DATA}\.py\)", tested):
            found[shared] = name
        found[name] = None
    assert found.keys() == STARTS.keys()
    for name, shared in found.items():
        said = metafile[name]["Metadata"].get("Checkpoint Of")
        assert said == (shared and shared + DATA)


@pytest.mark.parametrize("stage", [1, 2])
def test_readme_s_configs_for_own_data_build(tmp_path, stage):
    codes = re.findall(r"```python\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    assert len(codes) == 2
    code = codes[stage - 1]
    (tmp_path / "own.py").write_text(code.replace('"./', f'"{FOLDER.as_posix()}/'))
    cfg = Config.fromfile(tmp_path / "own.py")
    init_default_scope("mmdet")
    with torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert model.semantic_head.conv_logits.out_channels == 5
    projection = model.roi_head.projection
    assert {head.conv_logits.out_channels for head in projection.mask_heads} == {2}
    assert {head.conv_logits.out_channels for head in projection.semantic_heads} == {5}
    assert model.roi_head.bbox_head.fc_cls.out_features == 3
    assert list(model.panoptic_fusion_head.stuff_channels(5)) == [2, 3, 4]
    assert model.occlusion_only is (stage == 2)
    if stage == 2:
        assert model.occlusion_head.network.embedding.num_embeddings == 2
        assert cfg.load_from == "first_stage.pth"
