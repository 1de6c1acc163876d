"""Fusers side by side: on a model that knows the truth, and on small real ones."""

import copy
import json
from functools import partial
from io import StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from tiny_mr_rcnn import TWO_IMAGES
from tiny_refine import CHANNELS, STUFF, THINGS, build, make_panoptic_batch, model_cfg

import mmdet_plus.blendmask  # noqa: F401, registers its parts
from mmdet_plus.engine import fuser_comparison, prepare_test_cfg
from mmdet_plus.engine import test as run_test
from mmdet_plus.engine.compared_fusers import (
    RecordingFusionHead,
    Seen,
    build_fuser,
    default_fusers,
    fuse,
    read_fusers,
)
from mmdet_plus.engine.errors import UserError
from mmdet_plus.engine.fuser_comparison import (
    FIGURES,
    FuserMetric,
    compare_fusers,
    markdown,
    panel_of,
    portable,
    true_things,
    use_fuser_metric,
)
from mmdet_plus.engine.fuser_pictures import Panel, draw_panels
from mmdet_plus.evaluation.id_maps import encode_id_map
from mmdet_plus.visualization.panoptic_map import ERASED
from mmseg_plus.common.config import read_config
from mmseg_plus.common.progress import ProgressLine

SIDE, IMAGES = 64, 5
CLASSES = ("square", "disc", "other", "sky", "ground")
FIRST, SECOND = (slice(8, 40), slice(8, 40)), (slice(24, 56), slice(24, 56))
# Where the model takes sky for ground, and is not sure of it.
MISTAKE = (slice(2, 6), slice(44, 60))
SETTINGS = dict(overlap_thr=0.5, stuff_area_limit=16)
HEAD = dict(
    type="OcclusionHead",
    num_classes=THINGS,
    roi_extractor=dict(
        type="SingleRoIExtractor",
        roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=0),
        out_channels=CHANNELS,
        featmap_strides=[4, 8, 16, 32],
    ),
    conv_channels=8,
    fc_channels=16,
    embedding=4,
)


def square_in_front(number):
    return number % 2 == 0


def true_ids(number):
    """The square (1) and the disc (2), which overlap, on sky (3) and ground (4)."""
    ids = np.full((SIDE, SIDE), 3, np.uint32)
    ids[SIDE // 2 :] = 4
    for ident, place in (
        ((2, SECOND), (1, FIRST))
        if square_in_front(number)
        else (
            (1, FIRST),
            (2, SECOND),
        )
    ):
        ids[place] = ident
    return ids


@MODELS.register_module()
class Oracle(BaseDetector):
    """Finds both things whole, the square always with the higher score.

    Args:
        fields: What the instances have besides; ``occlusion`` is the truth,
            with ``no order`` it tells nothing.
        occlusion_head: For its ``pair_accuracy``.
        fused: Whether to call the fuser image by image, as BlendMask does.
    """

    def __init__(
        self, panoptic_fusion_head, fields=(), occlusion_head=None, fused=False, test_cfg=None
    ):
        super().__init__(data_preprocessor=dict(type="DetDataPreprocessor"))
        self.panoptic_fusion_head = MODELS.build(panoptic_fusion_head | dict(test_cfg=test_cfg))
        self.occlusion_head = MODELS.build(occlusion_head) if occlusion_head else None
        self.fields, self.fused = fields, fused

    def predict(self, batch_inputs, batch_data_samples, rescale=True):
        assert not self.training and not torch.is_grad_enabled()
        seen = [self.find(sample.img_id) for sample in batch_data_samples]
        if self.fused:
            # BlendMask's semantics begin with the channel of things.
            maps = [
                self.panoptic_fusion_head.fuse(found, logits.roll(1, 0), range(1, STUFF + 1))
                for found, logits in seen
            ]
        else:
            maps = self.panoptic_fusion_head.predict(*zip(*seen, strict=True))
        for sample, panoptic in zip(batch_data_samples, maps, strict=True):
            sample.pred_panoptic_seg = panoptic
        return batch_data_samples

    def find(self, number):
        masks = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
        masks[0][FIRST] = masks[1][SECOND] = True
        found = InstanceData(
            masks=masks,
            scores=torch.tensor([0.9, 0.8]),
            labels=torch.tensor([0, 1]),
            bboxes=torch.zeros(2, 4),
        )
        front = 0 if square_in_front(number) else 1
        if "occlusion" in self.fields:
            found.occlusion = torch.zeros(2, 2)
            found.occlusion[front, 1 - front], found.occlusion[1 - front, front] = 0.9, 0.1
        if "no order" in self.fields:
            found.occlusion = torch.zeros(2, 2)
        if "ranking_scores" in self.fields:
            found.ranking_scores = torch.tensor([0.1, 0.9])
        logits = torch.zeros(STUFF + 1, SIDE, SIDE)
        logits[0, : SIDE // 2] = logits[1, SIDE // 2 :] = 5
        logits[0][MISTAKE], logits[1][MISTAKE] = 0, 0.1
        return found, logits

    def loss(self, *args): ...

    def _forward(self, *args): ...

    def extract_feat(self, *args): ...


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("pictures")
    (root / "images").mkdir()
    (root / "maps").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(IMAGES):
        name = f"{number:03d}"
        ids = true_ids(number)
        image = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        image[ids < 3] //= 2
        cv2.imwrite(str(root / "images" / f"{name}.png"), image)
        (root / "maps" / f"{name}.png").write_bytes(encode_id_map(ids))
        images.append(dict(id=number, file_name=f"{name}.png", height=SIDE, width=SIDE))
        records = [
            dict(
                id=ident,
                category_id=category,
                iscrowd=0,
                area=int((ids == ident).sum()),
                bbox=[0, 0, SIDE, SIDE],
            )
            for ident, category in ((1, 10), (2, 20), (3, 40), (4, 50))
        ]
        annotations.append(dict(image_id=number, file_name=f"{name}.png", segments_info=records))
    categories = [
        dict(id=10 * (label + 1), name=name, isthing=int(label < THINGS))
        for label, name in enumerate(CLASSES)
    ]
    content = dict(images=images, annotations=annotations, categories=categories)
    (root / "panoptic.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def prepare(data, tmp_path_factory):
    """Write the config and the checkpoint of a model."""

    def prepare(model, **changes):
        folder = tmp_path_factory.mktemp("model")
        pipeline = [
            dict(type="LoadImageFromFile"),
            dict(type="Resize", scale=(SIDE, SIDE), keep_ratio=True),
            dict(
                type="PackDetInputs",
                meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor"),
            ),
        ]
        cfg = dict(
            default_scope="mmdet",
            custom_imports=dict(
                imports=["mmdet_plus.datasets", "mmdet_plus.evaluation", "mmdet_plus.refine"],
                allow_failed_imports=False,
            ),
            model=model,
            test_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type="DefaultSampler", shuffle=False),
                dataset=dict(
                    type="CheckedCocoPanopticDataset",
                    metainfo=dict(classes=CLASSES),
                    data_root=str(data),
                    ann_file="panoptic.json",
                    data_prefix=dict(img="images/", seg="maps/"),
                    test_mode=True,
                    pipeline=pipeline,
                ),
            ),
            test_cfg=dict(type="TestLoop"),
            test_evaluator=dict(
                type="PanopticMetric",
                ann_file=str(data / "panoptic.json"),
                seg_prefix=str(data / "maps"),
                classwise=True,
            ),
        )
        path = folder / "tiny.py"
        Config(cfg | changes).dump(path)
        torch.save(dict(state_dict=build(Config(cfg).model).state_dict()), folder / "tiny.pth")
        return str(path), str(folder / "tiny.pth")

    return prepare


def oracle(**arguments):
    fuser = dict(type="HeuristicFusion", num_things_classes=THINGS, num_stuff_classes=STUFF)
    return dict(type="Oracle", panoptic_fusion_head=fuser, test_cfg=SETTINGS, **arguments)


@pytest.fixture(scope="module")
def all_knowing(prepare):
    fields = ["occlusion", "ranking_scores"]
    return prepare(oracle(fields=fields, occlusion_head=HEAD))


def quiet():
    return ProgressLine(StringIO())


def compare(model, out, **arguments):
    return compare_fusers(*model, str(out), line=quiet(), **arguments)


def write_fusers(folder, text):
    (folder / "fusers.py").write_text(text)
    return str(folder / "fusers.py")


# ---- a model that knows the truth ----


def test_each_fuser_pastes_in_its_own_order(all_knowing, tmp_path):
    record = compare(all_knowing, tmp_path)
    found = {name: entry["metrics"] for name, entry in record["fusers"].items()}
    names = ["heuristic", "spatial_ranking", "occlusion", "soft_occlusion"]
    assert list(found) == [name + suffix for name in names for suffix in ("", "_ue")]
    # Where the wrong one lies on top, both have an IoU of 3 / 4.
    for name in names:
        right = dict(heuristic=3, spatial_ranking=2).get(name, 5)
        quality = 100 * (right + 0.75 * (IMAGES - right)) / IMAGES
        for suffix in ("", "_ue"):
            assert found[name + suffix]["PQ_th"] == pytest.approx(quality)
            assert found[name + suffix]["RQ_th"] == 100
    # Without the erasing 4 x 16 pixels of sky are ground.
    ground = {"_ue": 0, "": 64}
    for suffix, wrong in ground.items():
        qualities = []
        for number in range(IMAGES):
            sky, own = ((true_ids(number) == ident).sum() for ident in (3, 4))
            qualities += [(sky - 64) / sky, own / (own + wrong)]
        expected = 100 * np.mean(qualities)
        assert found["heuristic" + suffix]["PQ_st"] == pytest.approx(expected)
    # The truth, 1 against 0, wins over scores that lie near enough together.
    assert record["overlapping_pairs"] == {
        "number": IMAGES,
        "right_by_network": IMAGES,
        "right_by_score": 3,
        "right_by_soft_2.5": IMAGES,
    }


def test_the_true_order_needs_no_network(prepare, tmp_path):
    # A network that knows nothing, and one that there is not.
    ignorant = prepare(oracle(fields=["no order"], occlusion_head=HEAD))
    fusers = write_fusers(tmp_path, "fusers = dict(a=dict(type='HeuristicFusion'))")
    record = compare(ignorant, tmp_path, fusers=fusers, true_order=True)
    found = {name: entry["metrics"]["PQ_th"] for name, entry in record["fusers"].items()}
    assert list(found) == ["a", "true order"]
    assert found["a"] == pytest.approx(90) and found["true order"] == 100
    none = prepare(oracle())
    with pytest.raises(UserError, match="OcclusionHead; the model has none"):
        compare(none, tmp_path, true_order=True)
    fusers = write_fusers(tmp_path, "fusers = {'true order': dict(type='HeuristicFusion')}")
    with pytest.raises(UserError, match="the name 'true order'"):
        compare(ignorant, tmp_path, fusers=fusers, true_order=True)


def test_things_that_are_listed_from_the_top_down(all_knowing, prepare, tmp_path):
    """The square comes first in the list, with the higher score, and lies in front in three."""
    record = compare(all_knowing, tmp_path, top_first=True)
    assert record["listed_pairs"] == {
        "number": IMAGES,
        "right_by_network": 3,
        "right_by_score": IMAGES,
        "right_by_soft_2.5": 3,
        "right_by_pixels": 3,
    }
    assert record["overlapping_pairs"]["right_by_network"] == IMAGES
    told = "Of 5 overlapping pairs of things, judged by the ground truth's list, the order is right"
    assert f"{told} in 60.0 % by the network, in 100.0 % by score alone" in markdown(record)
    assert "listed_pairs" not in compare(all_knowing, tmp_path)
    with pytest.raises(UserError, match="--top-first judges the pairs of an occlusion_head; the"):
        compare(prepare(oracle()), tmp_path, top_first=True)


def test_the_record(all_knowing, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(all_knowing[1]).parent)
    stream = StringIO()
    record = compare_fusers(
        "tiny.py",
        str(Path("tiny.pth").absolute()),
        str(tmp_path / "deep" / "out.json"),
        command=["tools/x.py", str(Path("tiny.py").absolute()), f"--out={tmp_path}/deep/out.json"],
        cfg_options={"model.test_cfg.stuff_area_limit": 32},
        line=ProgressLine(stream),
    )
    text = (tmp_path / "deep" / "out.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(record))
    assert str(tmp_path) not in text and str(Path.cwd()) not in text
    assert record["command"] == "python tools/x.py tiny.py --out=out.json"
    assert record["config"] == "tiny" and record["checkpoint"] == "tiny.pth"
    assert len(record["config_digest"]) == 8 and "torch" in record["versions"]
    assert (record["images"], record["images_in_set"]) == (IMAGES, IMAGES)
    assert record["fusers"]["soft_occlusion_ue"]["config"] == dict(
        type="SoftOcclusionFusion",
        num_things_classes=THINGS,
        num_stuff_classes=STUFF,
        test_cfg=dict(overlap_thr=0.5, stuff_area_limit=32),
        unknown_erasing=dict(threshold=0.5, dilation=3),
        occlusion_thr=0.2,
        sigma=2.5,
    )
    table = (tmp_path / "deep" / "out.md").read_text()
    assert table in stream.getvalue()
    (row,) = [line for line in table.splitlines() if line.startswith("| heuristic |")]
    metrics = record["fusers"]["heuristic"]["metrics"]
    assert row.split(" | ")[1:4] == [f"{metrics[key]:.2f}" for key in ("PQ", "SQ", "RQ")]
    assert "tiny, 5 images" in table
    assert "Of 5 overlapping pairs" in table and "100.0 % by the network, in 60.0 %" in table
    assert "in 100.0 % by Eq. 7 with sigma 2.5" in table
    assert not list(Path.cwd().glob("work_dirs")) and {
        f.name for f in (tmp_path / "deep").iterdir()
    } == {
        "out.json",
        "out.md",
    }


def test_a_table_of_what_is_undefined():
    metrics = dict.fromkeys(FIGURES, 12.345) | dict(PQ_st=-1.0, SQ_st=-1.0, RQ_st=-1.0)
    pairs = dict(number=0, right_by_network=0, right_by_score=0)
    record = dict(config="c", images=2, images_in_set=2, fusers=dict(a=dict(metrics=metrics)))
    table = markdown(record | dict(overlapping_pairs=pairs))
    row = table.splitlines()[2].split("|")
    assert [cell.strip() for cell in row[1:-1]] == ["a", *["12.35"] * 6, "", "", ""]
    assert "No overlapping pair" in table and "No overlapping pair" not in markdown(record)


def test_it_counts_what_a_test_with_that_fuser_counts(all_knowing, tmp_path):
    arguments = dict(work_dir=str(tmp_path / "work"))
    expected = run_test(prepare_test_cfg(*all_knowing, **arguments))
    record = compare(all_knowing, tmp_path / "out")
    metrics = record["fusers"]["heuristic"]["metrics"]
    assert {f"coco_panoptic/{key}": value for key, value in metrics.items()} == expected
    options = {"model.panoptic_fusion_head.type": "SoftOcclusionFusion"}
    expected = run_test(prepare_test_cfg(*all_knowing, cfg_options=options, **arguments))
    metrics = record["fusers"]["soft_occlusion"]["metrics"]
    assert {f"coco_panoptic/{key}": value for key, value in metrics.items()} == expected


def test_a_limit_and_models_that_predict_less(prepare, tmp_path):
    record = compare(prepare(oracle(occlusion_head=HEAD)), tmp_path, limit=3)
    assert list(record["fusers"]) == ["heuristic", "heuristic_ue"]
    assert (record["images"], record["images_in_set"]) == (3, IMAGES)
    # Two of the three right.
    assert record["fusers"]["heuristic"]["metrics"]["PQ_th"] == pytest.approx(100 * 2.75 / 3)
    assert "overlapping_pairs" not in record
    assert "3 of 5 images" in (tmp_path / "fusers.md").read_text()


def test_a_limit_beyond_the_set_is_the_set(all_knowing, tmp_path):
    assert compare(all_knowing, tmp_path, limit=99)["images"] == IMAGES


def test_models_that_fuse_by_themselves(prepare, all_knowing, tmp_path):
    """BlendMask calls ``fuse``, with channels of its own."""
    fields = ["occlusion", "ranking_scores"]
    record = compare(prepare(oracle(fields=fields, fused=True)), tmp_path / "a")
    expected = compare(all_knowing, tmp_path / "b")
    assert record["fusers"] == expected["fusers"]
    # mmdet's fuser would take things for stuff.
    path = write_fusers(tmp_path, "fusers = dict(theirs=dict(type='HeuristicFusionHead'))")
    with pytest.raises(UserError, match="'theirs': HeuristicFusionHead does not know this model's"):
        compare(prepare(oracle(fused=True)), tmp_path, fusers=path)


def test_fusers_of_ones_own(all_knowing, tmp_path):
    path = write_fusers(
        tmp_path,
        """
fusers = dict(
    strict=dict(type='HeuristicFusion', test_cfg=dict(score_thr=0.85)),
    theirs=dict(type='mmdet.HeuristicFusionHead', test_cfg=dict(mask_overlap=0.5)),
    wide=dict(type='SoftOcclusionFusion', sigma=1e9))
""",
    )
    record = compare(all_knowing, tmp_path, fusers=path)["fusers"]
    assert list(record) == ["strict", "theirs", "wide"]
    # The disc is never found.
    assert record["strict"]["metrics"]["RQ_th"] == 50
    assert record["strict"]["config"]["test_cfg"] == {**SETTINGS, "score_thr": 0.85}
    # So large a sigma leaves the scores alone.
    assert record["wide"]["config"]["sigma"] == 1e9
    assert record["wide"]["metrics"] == record["theirs"]["metrics"]
    assert record["theirs"]["config"]["test_cfg"] == dict(stuff_area_limit=16, mask_overlap=0.5)
    assert record["theirs"]["metrics"]["PQ_th"] == pytest.approx(90)


def test_pictures(all_knowing, tmp_path):
    path = write_fusers(
        tmp_path,
        "fusers = dict(a=dict(type='HeuristicFusion'), "
        "b=dict(type='OcclusionFusion', unknown_erasing=dict(dilation=1)))",
    )
    compare(all_knowing, tmp_path, fusers=path, show_dir=str(tmp_path / "shown"), show=2)
    files = sorted((tmp_path / "shown").iterdir())
    assert [file.name for file in files] == ["000.png", "001.png"]
    pictures = [cv2.imread(str(file)) for file in files]
    # Image, truth, a and b; 64 pixels are enlarged eightfold.
    width = pictures[0].shape[1] // 4
    assert width > 8 * SIDE
    reds = [(picture == np.array(ERASED, np.uint8)).all(2) for picture in pictures]
    for red in reds:
        assert not red[:, : 3 * width].any() and red[:, 3 * width :].any()

    def thing_in(number, column):
        """The colour, void of the picture under it, amid what both things claim."""
        top = pictures[number].shape[0] - 8 - 8 * SIDE
        spot = pictures[number][top + 8 * 30 : top + 8 * 36, column * width + 8 * 30 :][:, :48]
        return spot.reshape(-1, 3).mean(0)

    same = np.abs(thing_in(0, 1) - thing_in(0, 2)).max()
    other = np.abs(thing_in(1, 1) - thing_in(1, 2)).max()
    assert same < 3 < 30 < other  # in the second image the wrong one is on top
    assert np.abs(thing_in(1, 1) - thing_in(1, 3)).max() < 3


# ---- small real models ----


def refine_cfg(**changes):
    cfg = model_cfg(num_iterations=1)
    cfg.panoptic_fusion_head.type = "HeuristicFusion"
    cfg.test_cfg.panoptic.update(score_thr=0.05)
    cfg.update(changes)
    return cfg


def refine_without_iterations(fuser):
    cfg = refine_cfg(panoptic_fusion_head=fuser, occlusion_head=HEAD | dict(score_thr=0.05))
    cfg.roi_head.num_iterations = 0
    return cfg


def panoptic_fpn():
    cfg = model_cfg(num_iterations=0)
    cfg.type, cfg.roi_head.type, cfg.semantic_head.type = (
        "PanopticFPN",
        "StandardRoIHead",
        "PanopticFPNHead",
    )
    cfg.panoptic_fusion_head.type = "HeuristicFusionHead"
    for key in ("num_iterations", "num_stuff_classes", "semantic_norm_cfg"):
        cfg.roi_head.pop(key)
    return cfg


def blendmask():
    cfg = read_config("blendmask-panoptic_r18_shapes").model
    cfg.backbone.init_cfg = None
    cfg.bbox_head.num_classes, cfg.semantic_head.num_stuff_classes = THINGS, STUFF
    cfg.test_cfg.score_thr = 0.001
    cfg.test_cfg.panoptic = dict(overlap_thr=0.5, stuff_area_limit=16, score_thr=0.001)
    return cfg


FUSER = dict(num_things_classes=THINGS, num_stuff_classes=STUFF)
RANKING = dict(type="SpatialRankingHead", num_classes=THINGS, channels=4, score_thr=0.05)
UNSURE = dict(unknown_erasing=dict(threshold=0.35, dilation=1))


@pytest.mark.parametrize(
    ("model", "fuser"),
    [
        (panoptic_fpn, dict(type="HeuristicFusionHead")),
        (refine_cfg, dict(type="HeuristicFusion")),
        (
            lambda: refine_without_iterations(dict(type="SoftOcclusionFusion", sigma=0.1, **FUSER)),
            dict(type="SoftOcclusionFusion", sigma=0.1),
        ),
        (
            lambda: refine_cfg(
                panoptic_fusion_head=dict(type="SpatialRankingFusion", **FUSER, **UNSURE),
                occlusion_head=RANKING,
            ),
            dict(type="SpatialRankingFusion", **UNSURE),
        ),
        (blendmask, dict(type="HeuristicFusion")),
    ],
    ids=["mmdet", "refine", "soft", "ranking-ue", "blendmask"],
)
def test_what_real_models_hand_over_fuses_to_their_own_maps(model, fuser):
    model = build(model()).eval()
    batch = make_panoptic_batch(TWO_IMAGES)
    with torch.no_grad():
        expected = [s.pred_panoptic_seg.sem_seg for s in model.test_step(copy.deepcopy(batch))]
        own, head = model.panoptic_fusion_head, RecordingFusionHead(THINGS + STUFF)
        _, fuser = build_fuser("x", fuser, own)
        model.panoptic_fusion_head = head
        blank = [s.pred_panoptic_seg.sem_seg for s in model.test_step(copy.deepcopy(batch))]
    seen = head.take()
    assert len(seen) == len(TWO_IMAGES)
    for one, wanted, void in zip(seen, expected, blank, strict=True):
        assert torch.equal(fuse("x", fuser, one).long(), wanted.long())
        assert len(wanted.unique()) > 3 and (void == THINGS + STUFF).all()


@pytest.fixture
def tool(run_tool):
    return partial(run_tool, "compare_fusers.py")


def test_the_command(prepare, tmp_path, tool):
    model = prepare(refine_cfg())
    code, out, _ = tool(*model, "--out", "out", "--limit", 1, "--show-dir", "shown", "--show", 1)
    assert code == 0
    assert "| heuristic_ue |" in out and "1 of 5 images" in out
    record = json.loads((tmp_path / "out/fusers.json").read_text())
    assert record["command"].endswith(
        "compare_fusers.py tiny.py tiny.pth --out out --limit 1 --show-dir shown --show 1"
    )
    assert [file.name for file in (tmp_path / "shown").iterdir()] == ["000.png"]


def test_a_mistake_is_one_line_and_code_2(prepare, tmp_path, tool):
    empty = write_fusers(tmp_path, "x = 1")
    code, out, err = tool("a.py", "b.pth", "--out", "out", "--fusers", empty)
    assert (code, out) == (2, "")
    start = f"error: {empty}: there is no fuser in it; write fusers = dict("
    assert err.startswith(start) and err.count("\n") == 1


# ---- parts ----


def test_the_recording_head_notes_and_hands_back_void():
    head = RecordingFusionHead(THINGS + STUFF)
    logits = torch.randn(3, 4, 6)
    results = [InstanceData(scores=torch.ones(number)) for number in range(2)]
    maps = head.predict(results, [logits, logits * 2])
    assert [m.sem_seg.shape for m in maps] == [(1, 4, 6)] * 2
    assert (maps[0].sem_seg == THINGS + STUFF).all() and maps[0].sem_seg.dtype == torch.int32
    head.fuse(results[0], logits, range(1, 3))
    seen = head.take()
    assert [one.results for one in seen] == [*results, results[0]]
    assert [one.stuff_channels for one in seen] == [None, None, range(1, 3)]
    assert torch.equal(seen[1].seg_logits, logits * 2)
    # What was taken is let go.
    assert head.take() == []


def own(things_apart=None, **changes):
    arguments = dict(num_things_classes=1, num_stuff_classes=2, test_cfg=dict(overlap_thr=0.4))
    head = MODELS.build(dict(type="HeuristicFusion", **arguments | changes))
    head.things_apart = things_apart
    return head


@pytest.mark.parametrize("things_apart", [True, False])
def test_fusers_read_the_semantics_as_the_models_own_does(things_apart):
    """One class of things: the number of channels does not tell where it stands."""
    seen = Seen(
        InstanceData(
            masks=torch.zeros(0, 8, 8), scores=torch.zeros(0), labels=torch.zeros(0).long()
        ),
        torch.eye(3)[:, [0, 1, 2, 1]]
        .reshape(3, 2, 2)
        .repeat_interleave(4, 1)
        .repeat_interleave(4, 2),
    )
    head = own(things_apart, test_cfg=dict(stuff_area_limit=1))
    (expected,) = head.predict([seen.results], [seen.seg_logits])
    _, fuser = build_fuser("x", dict(type="HeuristicFusion"), head)
    assert torch.equal(fuse("x", fuser, seen), expected.sem_seg)
    # The first quarter is of the first channel: things, or the first class of stuff (after things).
    assert int(expected.sem_seg[0, 0, 0]) == (3 if things_apart else 1)
    # It may be told otherwise.
    told = dict(type="HeuristicFusion", things_apart=not things_apart)
    assert build_fuser("x", told, head)[1].things_apart is not things_apart


def test_beside_mmdets_own_fuser_things_come_last():
    theirs = MODELS.build(
        dict(
            type="HeuristicFusionHead",
            num_things_classes=1,
            num_stuff_classes=2,
            test_cfg=dict(mask_overlap=0.3),
        )
    )
    config, fuser = build_fuser("x", dict(type="OcclusionFusion", occlusion_thr=0.1), theirs)
    assert fuser.things_apart is False
    assert fuser.settings == dict(overlap_thr=0.3, occlusion_thr=0.1)
    assert config["num_stuff_classes"] == 2


def test_settings_come_from_the_own_fuser_one_by_one():
    given = dict(type="HeuristicFusion", test_cfg=dict(score_thr=0.7))
    assert build_fuser("x", given, own())[1].settings == dict(overlap_thr=0.4, score_thr=0.7)
    given = dict(type="HeuristicFusion", test_cfg=dict(overlap_thr=0.9))
    assert build_fuser("x", given, own())[1].settings == dict(overlap_thr=0.9)
    given = dict(type="HeuristicFusion", test_cfg=dict(mask_overlap=0.6), num_stuff_classes=7)
    _, fuser = build_fuser("x", given, own())
    assert fuser.settings == dict(overlap_thr=0.6) and fuser.num_stuff_classes == 7
    assert given == dict(
        type="HeuristicFusion", test_cfg=dict(mask_overlap=0.6), num_stuff_classes=7
    )


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            dict(type="SoftOclusionFusion"),
            "'x': there is no fuser of the type.*SoftOcclusionFusion",
        ),
        (dict(type="ResNet"), "no fuser of the type 'ResNet'; there are .*HeuristicFusion"),
        (dict(type="MaskFormerFusionHead"), "no fuser of the type 'MaskFormerFusionHead'"),
        (dict(type="HeuristicFusion", sigma=2), "'x' cannot be built: .*sigma"),
        (
            dict(type="HeuristicFusion", unknown_erasing=dict(thr=1)),
            "'x' cannot be built: .*UnknownErasing.*thr",
        ),
    ],
)
def test_fusers_that_cannot_be_built(config, words):
    with pytest.raises(UserError, match=words):
        build_fuser("x", config, own())


def test_mmdets_fuser_is_not_for_semantics_with_things_apart():
    with pytest.raises(UserError, match="'x': mmdet's HeuristicFusionHead does not know"):
        build_fuser("x", dict(type="HeuristicFusionHead"), own(True))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("fusers = dict()", "there is no fuser in it"),
        ("fusers = [dict(type='HeuristicFusion')]", "there is no fuser in it"),
        ("fuser = dict(a=dict(type='HeuristicFusion'))", "there is no fuser in it"),
        ("fusers = dict(a='HeuristicFusion')", "fuser 'a' is 'HeuristicFusion'; write it as dict"),
        ("fusers = dict(a=dict(sigma=2.0))", "fuser 'a' is .*write it as dict"),
        ("fusers = dict(", "cannot be read as a config"),
    ],
)
def test_files_without_fusers(tmp_path, text, words):
    path = write_fusers(tmp_path, text)
    with pytest.raises(UserError, match=f"{path}: .*{words}"):
        read_fusers(path)


def test_a_missing_file_of_fusers(tmp_path):
    with pytest.raises(UserError, match="there is no such config file"):
        read_fusers(str(tmp_path / "absent.py"))


def test_default_fusers_follow_the_fields():
    found = InstanceData(masks=torch.zeros(1, 2, 2), ranking_scores=torch.zeros(1))
    names = ["heuristic", "heuristic_ue", "spatial_ranking", "spatial_ranking_ue"]
    assert list(default_fusers(found)) == names
    assert "unknown_erasing" in default_fusers(found)["heuristic_ue"]


@pytest.mark.parametrize(
    ("fuser", "words"),
    [
        ("OcclusionFusion", "'a': OcclusionFusion needs 'occlusion' of the instances"),
        ("SpatialRankingFusion", "'a': SpatialRankingFusion needs 'ranking_scores'"),
    ],
)
def test_fusers_that_need_more_than_the_model_gives(prepare, tmp_path, fuser, words):
    path = write_fusers(tmp_path, f"fusers = dict(a=dict(type='{fuser}'))")
    with pytest.raises(UserError, match=words):
        compare(prepare(oracle()), tmp_path / "out", fusers=path)
    assert not (tmp_path / "out").exists()


def test_a_fuser_that_looks_at_more_than_the_network_is_refused(prepare, tmp_path):
    fuser = "dict(type='SoftOcclusionFusion', test_cfg=dict(score_thr={}))"
    path = write_fusers(tmp_path, f"fusers = dict(a={fuser.format(0.1)}, b={fuser.format(0.01)})")
    model = prepare(refine_cfg(occlusion_head=HEAD | dict(score_thr=0.05)))
    with pytest.raises(UserError, match="fuser 'b': .* give occlusion_head score_thr=0.01 as well"):
        compare(model, tmp_path / "out", fusers=path)
    assert not (tmp_path / "out").exists()


def test_a_setting_out_of_range_is_told(all_knowing, tmp_path):
    path = write_fusers(tmp_path, "fusers = dict(a=dict(type='SoftOcclusionFusion', sigma=-1))")
    with pytest.raises(UserError, match="fuser 'a': sigma must be a positive number"):
        compare(all_knowing, tmp_path, fusers=path)


@MODELS.register_module()
class Fuserless(BaseDetector):
    """A detector of instances."""

    def __init__(self):
        super().__init__()
        self.part = BaseModule()

    def predict(self, *args): ...

    def loss(self, *args): ...

    def _forward(self, *args): ...

    def extract_feat(self, *args): ...


def test_mistakes_in_the_model_and_its_metric(prepare, tmp_path):
    with pytest.raises(UserError, match="tiny.py: Fuserless has no panoptic fuser"):
        compare(prepare(dict(type="Fuserless")), tmp_path)
    fuser = dict(type="MaskFormerFusionHead", num_things_classes=THINGS, num_stuff_classes=STUFF)
    with pytest.raises(UserError, match="Oracle has no panoptic fuser"):
        compare(prepare(dict(type="Oracle", panoptic_fusion_head=fuser)), tmp_path)
    config, _ = prepare(oracle())
    with pytest.raises(UserError, match="absent.pth: there is no such checkpoint"):
        compare((config, "absent.pth"), tmp_path)
    _, checkpoint = prepare(refine_cfg())
    with pytest.raises(UserError, match="these weights are not of"):
        compare((config, checkpoint), tmp_path)
    for option in ("limit", "show"):
        with pytest.raises(UserError, match=f"--{option}: at least 1, not 0"):
            compare((config, "absent.pth"), tmp_path, **{option: 0})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def crowded(data, tmp_path):
    """A copy of the annotations in which the first image's disc is a crowd, its sky without use."""
    content = json.loads((data / "panoptic.json").read_text())
    first = content["annotations"][0]["segments_info"]
    first[1]["iscrowd"] = 1
    first[2]["category_id"] = 60
    content["categories"].append(dict(id=60, name="unused", isthing=0))
    (tmp_path / "crowded.json").write_text(json.dumps(content))
    metric = FuserMetric(str(tmp_path / "crowded.json"), str(data / "maps"))
    metric.dataset_meta = dict(classes=CLASSES)
    return metric


def sample_of(number, data):
    return DetDataSample(
        metainfo=dict(
            img_id=number, img_path=str(data / f"images/{number:03d}.png"), ori_shape=(SIDE, SIDE)
        )
    )


def test_the_truth_as_a_map(crowded, data):
    ids = true_ids(0)
    codes = crowded.true_map(sample_of(0, data))
    void = (codes == len(CLASSES)).sum()
    assert void == ((ids == 2) | (ids == 3)).sum()
    assert (codes[ids == 1] == INSTANCE_OFFSET).all() and (codes[ids == 4] == 4).all()
    masks, labels = true_things(codes, torch.device("cpu"))
    assert masks.shape == (1, SIDE, SIDE) and labels.tolist() == [0]
    # The next image, of which nothing was changed.
    ids = true_ids(1)
    masks, labels = true_things(crowded.true_map(sample_of(1, data)), torch.device("cpu"))
    assert labels.tolist() == [0, 1] and masks.dtype == torch.bool
    for mask, ident in zip(masks, (1, 2), strict=True):
        assert torch.equal(mask, torch.from_numpy(ids == ident))
    masks, labels = true_things(np.full((4, 4), 5), torch.device("cpu"))
    assert masks.shape == (0, 4, 4) and labels.shape == (0,)


def test_metrics_count_apart_and_read_the_truth_once(crowded, data, monkeypatch):
    reads = []
    read = fuser_comparison.read_id_map
    monkeypatch.setattr(
        fuser_comparison, "read_id_map", lambda path, *a: reads.append(path) or read(path, *a)
    )
    metrics = [crowded.another() for _ in range(2)]
    for number in (1, 2):
        sample = sample_of(number, data)
        codes = torch.from_numpy(crowded.true_map(sample))[None]
        metrics[0].count(sample, codes)
        metrics[1].count(sample, torch.full_like(codes, len(CLASSES)))
        # Nothing piles up with the images.
        assert [metric.results for metric in metrics] == [[], []]
    assert [Path(path).name for path in reads] == ["001.png", "002.png"]
    assert [metric.figures()["PQ"] for metric in metrics] == [100, 0]
    assert crowded.figures()["PQ"] == metrics[0].another().figures()["PQ"] == -1


def test_only_what_was_erased_and_is_void_now_is_marked():
    logits = torch.zeros(STUFF + 1, 16, 16)
    logits[0] = 5
    logits[0, :, :8], logits[1, :, :8] = 0, 0.1  # ground, perhaps
    masks = torch.zeros(1, 16, 16, dtype=torch.bool)
    masks[0, :, :4] = True
    found = InstanceData(masks=masks, scores=torch.ones(1), labels=torch.zeros(1).long())
    head = own(num_things_classes=THINGS, num_stuff_classes=STUFF, test_cfg=SETTINGS)
    for config, erased in ((dict(unknown_erasing={}), True), ({}, False)):
        _, fuser = build_fuser("x", dict(type="HeuristicFusion", **config), head)
        for seen in (Seen(found, logits), Seen(found, logits.roll(1, 0), range(1, STUFF + 1))):
            panel = panel_of(fuser, seen, fuse("x", fuser, seen))
            assert (panel.codes[:, :4] == INSTANCE_OFFSET).all() and (panel.codes[:, 8:] == 3).all()
            assert (panel.erased is not None) == erased
            if erased:
                assert panel.erased[:, 4:8].all() and panel.erased.sum() == 64


def test_the_panoptic_metric_is_found_wherever_it_stands():
    metric = dict(type="CocoPanopticMetric", ann_file="a.json", outfile_prefix="x", classwise=True)
    other = dict(type="CocoMetric")
    for evaluator in ([metric], [other, metric], dict(metrics=[other, metric])):
        cfg = Config(dict(test_evaluator=evaluator))
        use_fuser_metric(cfg)
        assert cfg.test_evaluator == dict(type="mmdet.FuserMetric", ann_file="a.json")
    for evaluator, number in ((other, "no"), ([metric, metric], "2")):
        with pytest.raises(UserError, match=f"test_evaluator has {number} panoptic metrics"):
            use_fuser_metric(Config(dict(test_evaluator=evaluator)))


def test_words_of_a_command_lose_the_machines_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert portable(f"{tmp_path}/a/b.py") == "a/b.py"
    assert portable("/elsewhere/b.py") == "b.py"
    assert portable(f"model.x={tmp_path}/c") == "model.x=c"
    assert portable("--out=/elsewhere/d") == "--out=d"
    for word in ("a/b.py", "--limit", "3", "a.b=[1,2]", "", "-"):
        assert portable(word) == word


def test_panels_are_in_rows_of_four_and_things_keep_their_colour():
    codes = np.full((SIDE, SIDE), THINGS + STUFF)
    codes[8:24, 8:24] = INSTANCE_OFFSET
    codes[40:56, 40:56] = 2 * INSTANCE_OFFSET + 1
    moved = np.roll(codes, 1, 1)
    # Numbered the other way round, and one thing more.
    moved[moved == INSTANCE_OFFSET] = 7 * INSTANCE_OFFSET
    moved[0:6, 30:50] = 3 * INSTANCE_OFFSET + 2
    image = np.zeros((SIDE, SIDE, 3), np.uint8)
    panels = {f"fuser {number}": Panel(moved) for number in range(3)}
    picture = draw_panels(image, codes, panels, THINGS + STUFF)
    one = draw_panels(image, codes, dict(list(panels.items())[:2]), THINGS + STUFF)
    assert picture.shape == (2 * one.shape[0], one.shape[1], 3)
    head, width = one.shape[0] - 8 - 8 * SIDE, 8 * SIDE + 8

    def colour(column, row, col):
        return one[head + 8 * row + 4, 8 + column * width + 8 * col + 4].tolist()

    for row, col in ((16, 16), (48, 48)):
        assert colour(1, row, col) == colour(2, row, col) != [0, 0, 0]
    assert colour(1, 16, 16) != colour(1, 48, 48)
    assert colour(2, 3, 40) not in ([0, 0, 0], colour(1, 16, 16), colour(1, 48, 48))
    assert colour(1, 3, 40) == colour(1, 60, 4) == [0, 0, 0]
