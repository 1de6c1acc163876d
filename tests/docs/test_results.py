"""Figures in docs/results come from the records that lie beside them."""

import json
import re

from mmdet_plus.benchmark.complexity import markdown as complexity_table
from mmdet_plus.benchmark.models import markdown as model_table
from mmdet_plus.benchmark.occlusion import markdown as occlusion_table
from mmdet_plus.benchmark.ops import markdown
from mmdet_plus.benchmark.refinement import markdown as refinement_table
from mmdet_plus.benchmark.refinement_speed import markdown as speed_table
from mmdet_plus.engine.comparison import summarise
from mmdet_plus.engine.demo import METRICS
from mmdet_plus.engine.fuser_comparison import markdown as fuser_table


def studies(root):
    """Folders of finished comparisons."""
    return sorted(path.parent for path in (root / "docs/results").rglob("summary.json"))


def test_there_are_results(repo_root):
    found = studies(repo_root)
    assert repo_root / "docs/results/refine/iterations" in found
    assert repo_root / "docs/results/refine/occlusion/seed2" in found


def test_summaries_follow_from_their_records(repo_root):
    for folder in studies(repo_root):
        records = [json.loads(path.read_text()) for path in sorted(folder.glob("*_seed*.json"))]
        assert summarise(records) == json.loads((folder / "summary.json").read_text()), folder


def test_pages_quote_the_summaries(repo_root):
    for folder in studies(repo_root):
        # Single seeds of the second stage: the page has them fuser by fuser, over all seeds.
        if folder.parent == repo_root / "docs/results/refine/occlusion":
            continue
        page = (folder.parent.with_suffix(".md")).read_text()
        for row in (folder / "summary.md").read_text().splitlines():
            assert row in page, f"{folder.parent.name}.md lacks a row of {folder.name}: {row}"


def test_records_tell_command_and_log(repo_root):
    for folder in studies(repo_root):
        for path in folder.glob("*_seed*.json"):
            record = json.loads(path.read_text())
            assert record["command"].startswith("python tools/train.py configs/"), path
            assert f"randomness.seed={record['seed']}" in record["command"], path
            assert record["training"][-1]["step"] == record["iterations"] > 0


def test_the_order_of_drawing_is_told_as_in_its_record(repo_root):
    record = read(repo_root, "refine/drawn_order.json")
    page = (repo_root / "docs/results/refine.md").read_text()
    *_, by_pixels, by_list = fuser_table(record).strip().split("\n\n")
    assert f"{by_pixels}\n\n{by_list}\n" in page
    assert record["command"] in page.replace(" \\\n    ", " ")
    pairs = record["listed_pairs"]
    # Where this changes, the page's words change with it.
    assert 0.55 < pairs["right_by_network"] / pairs["number"] < 0.65
    assert 0.6 < pairs["right_by_pixels"] / pairs["number"] < 0.7


def test_the_canvas_is_told_as_in_its_records(repo_root):
    page = " ".join((repo_root / "docs/results/refine.md").read_text().split())
    records = [read(repo_root, f"refine/canvas/seed{seed}.json") for seed in range(3)]
    assert records[0]["command"] in page.replace("\\ ", "")
    counts = [record["training"] for record in records]
    images, things, lacking = (
        [count[key] for count in counts] for key in ("images", "things", "things_without_roi")
    )
    assert (
        f"On {images[0]} pictures of its training each, {sum(lacking)} of {sum(things)} things"
        in page
    )
    assert set(images) == {48} and {record["test"]["images"] for record in records} == {300}
    # Where this changes, the manual's words change with it.
    assert 1 / 7.5 < sum(lacking) / sum(things) < 1 / 6.5
    for row in (row for count in counts for row in count["share_named_rightly"]):
        assert row["with_canvas"]["things"] > row["with_empty_canvas"]["things"] + 0.05


def test_stuff_with_lighter_losses_is_told_as_in_its_record(repo_root):
    page = " ".join((repo_root / "docs/results/refine.md").read_text().split())
    record = read(repo_root, "refine/balanced_canvas.json")
    stuff = [100 * row["stuff"] for row in record["test"]["mean_iou"]]
    assert (
        f"the first semantic prediction is {stuff[0]:.1f} % for stuff, that of the last one "
        f"{stuff[-1]:.1f} %" in page
    )
    assert max(stuff) - min(stuff) < 1.5


def test_the_demo_s_table_is_that_of_its_record(repo_root):
    record = json.loads((repo_root / "docs/results/mr_rcnn/demo.json").read_text())
    page = (repo_root / "docs/results/mr_rcnn.md").read_text()
    for name, metrics in record["metrics"].items():
        row = [name, *(f"{100 * metrics[metric]:.1f}" for metric in METRICS)]
        assert f"| {' | '.join(row)} |" in page
    assert f"{record['seconds']:.0f} s" in page
    assert f"{record['cpu_seconds']:.0f} s" in page
    assert record["command"] in page


def test_the_demo_keeps_to_its_time(repo_root):
    record = json.loads((repo_root / "docs/results/mr_rcnn/demo.json").read_text())
    assert record["seconds"] < 300 and record["cores"] == 2 and not record["continued"]


def test_speed_of_drawing_shapes_is_that_of_its_record(repo_root):
    record = json.loads((repo_root / "docs/results/shapes/generation.json").read_text())
    page = (repo_root / "docs/results/shapes.md").read_text()
    for row in record["shapes"]:
        rate = row["images_per_second"]
        assert f"| {row['processes']} | {row['images']} | {row['seconds']} | {rate} |" in page
    assert record["command"] in page


def test_speed_of_the_ops_is_that_of_its_record(repo_root):
    record = json.loads((repo_root / "docs/results/ops/cpu.json").read_text())
    page = (repo_root / "docs/results/ops.md").read_text()
    assert markdown(record) in page and record["command"] in page
    assert record["library"]["compiled"]


def test_records_name_no_folder_of_a_machine(repo_root):
    for path in (repo_root / "docs/results").rglob("*.json"):
        found = re.search(r"[\s\"'=](/(?!/)[^\s\"',]+)", path.read_text())
        assert found is None, f"{path.name}: {found.group(1)}"


def test_tables_of_refinement_are_those_of_their_records(repo_root):
    page = (repo_root / "docs/results/bpr.md").read_text()
    paths = sorted((repo_root / "docs/results/bpr").glob("*.json"))
    assert len(paths) >= 3
    for path in paths:
        record = json.loads(path.read_text())
        assert refinement_table(record) in page, path.name
        assert record["command"] in page, path.name


def test_the_page_says_where_refinement_helps(repo_root):
    for name, helps in (
        ("shapes_mask-rcnn", True),
        ("nuclei_mask-rcnn", True),
        ("coco-tiny_all-kinds", True),
        ("coco-tiny_mask-head", False),
    ):
        refined = read(repo_root, f"bpr/{name}.json")["refined"]
        first = next(iter(refined.values()))
        # Where this changes, the page's words and docs/bpr.md change with it.
        assert (first["gain"]["boundary_mAP"] > 0) == helps, name
        if name.startswith("coco"):
            (careful,) = (row for row in refined if row.endswith("caution 0.4"))
            assert refined[careful]["gain"]["boundary_mAP"] > 0
            assert first["gain"]["boundary_mAP_s"] < 0 < first["gain"]["boundary_mAP_l"]


def read(root, name):
    return json.loads((root / "docs/results" / name).read_text())


def change(record, key):
    """A figure of a record's first row with its gain, in percent."""
    row = next(iter(record["refined"].values()))
    return f"{100 * row['figures'][key]:.1f} ({100 * row['gain'][key]:+.1f})"


def test_sizes_of_the_input_are_those_of_their_records(repo_root):
    page = (repo_root / "docs/results/bpr.md").read_text()
    records = {
        path.stem: path for path in (repo_root / "docs/results/bpr/input_size").glob("*.json")
    }
    assert {"32", "64"} <= set(records)
    same = repo_root / "docs/results/bpr/transfer/mask-rcnn-to-mask-rcnn.json"
    for size, path in {**records, "128": same}.items():
        record = json.loads(path.read_text())
        row = next(iter(record["refined"].values()))
        cells = [size, *(change(record, key) for key in ("segm_mAP", "boundary_mAP", "AF"))]
        cells.append(f"{1e3 * row['seconds']['network'] / row['patches']:.1f}")
        assert f"| {' | '.join(cells)} |" in page and record["command"] in page


def test_transfer_is_that_of_its_records(repo_root):
    page = (repo_root / "docs/results/bpr.md").read_text()
    sources = {
        "mask-rcnn": "Mask R-CNN's masks",
        "mr-rcnn": "MR R-CNN's masks",
        "degraded": "degraded ground truth",
    }
    for source, name in sources.items():
        cells = [name]
        for target in ("mask-rcnn", "mr-rcnn"):
            record = read(repo_root, f"bpr/transfer/{source}-to-{target}.json")
            assert record["command"] in page
            cells += [change(record, "boundary_mAP"), change(record, "AF")]
        assert f"| {' | '.join(cells)} |" in page


def test_cost_of_the_techniques_is_that_of_its_record(repo_root):
    record = read(repo_root, "maskplus/complexity.json")
    page = (repo_root / "docs/maskplus.md").read_text()
    assert complexity_table(record) in page and record["command"] in page


def test_speed_of_models_is_that_of_its_record(repo_root):
    record = read(repo_root, "blendmask/speed.json")
    page = (repo_root / "docs/results/blendmask.md").read_text()
    assert model_table(record) in page and record["command"] in page


def test_speed_of_refinement_is_that_of_its_record(repo_root):
    record = read(repo_root, "bpr/speed/pipeline.json")
    page = (repo_root / "docs/results/bpr.md").read_text()
    assert speed_table(record["refinement"]) in page and record["command"] in page
    steps = {row["step"]: row["share"] for row in record["refinement"]["steps"]}
    # The project's own bar: what is not the network's takes less than a twentieth.
    assert steps["extraction"] + steps["reassembly"] < 0.05


def test_cost_of_occlusion_is_that_of_its_record(repo_root):
    record = read(repo_root, "refine/occlusion_speed.json")
    page = (repo_root / "docs/refine.md").read_text()
    assert occlusion_table(record) in page and record["command"] in page


def test_tables_of_fusers_are_those_of_their_records(repo_root, docs_script):
    page = (repo_root / "docs/results/refine.md").read_text()
    tables = docs_script("refine_tables").tables()
    for title, table in tables.items():
        assert table in page, f"run python docs/refine_tables.py: {title}"
    for row in read(repo_root, "refine/instances.json")["rows"]:
        assert row["command"].startswith("python tools/test.py docs/results/refine/instances_t")
    for path in (repo_root / "docs/results/refine/fusers").glob("*.json"):
        record = json.loads(path.read_text())
        assert record["command"].startswith("python tools/compare_fusers.py configs/"), path.name
        assert record["images"] == record["images_in_set"], path.name
    for name in ("fusers/refine_seed0", "erasing"):
        assert read(repo_root, f"refine/{name}.json")["command"] in " ".join(
            page.replace("\\\n", " ").split()
        )
