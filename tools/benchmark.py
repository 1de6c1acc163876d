"""Measure speed and size; the record is JSON, times are comparable within one run alone."""

import argparse
import json
import shlex
import sys

from mmdet_plus.engine.errors import run_command
from mmseg_plus.common.arguments import count
from mmseg_plus.common.errors import UserError
from mmseg_plus.common.files import write_file, write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    ops = kinds.add_parser("ops", help="the operators beside what they stand on")
    ops.add_argument(
        "--repeats", type=count, default=5, help="rounds, of which the median counts (5)"
    )
    ops.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    ops.add_argument("--tables", metavar="FILE.md", help="write the tables there")
    pipeline = kinds.add_parser("pipeline", help="drawing Shapes, and refining masks step by step")
    pipeline.add_argument(
        "--only", choices=("shapes", "refinement"), help="one of the two instead of both"
    )
    pipeline.add_argument("--images", type=count, default=1000, help="images to draw (1000)")
    pipeline.add_argument("--repeats", type=count, default=5, help="rounds of refining (5)")
    pipeline.add_argument("--instances", type=count, default=20, help="masks to refine (20)")
    model = kinds.add_parser("model", help="whole models beside Mask R-CNN, images in, masks out")
    model.add_argument(
        "--models", nargs="+", metavar="CONFIG", help="configs; the first is the baseline"
    )
    model.add_argument(
        "--size", nargs=2, type=count, default=(800, 1216), metavar=("H", "W"), help="(800 1216)"
    )
    model.add_argument("--repeats", type=count, default=3, help="rounds (3)")
    model.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    complexity = kinds.add_parser(
        "complexity", help="parameters and FLOPs of mask branches beside Mask R-CNN's"
    )
    complexity.add_argument(
        "--models", nargs="+", metavar="CONFIG", help="two-stage configs; the first is the baseline"
    )
    complexity.add_argument("--rois", type=count, default=100, help="RoIs with a mask (100)")
    panoptic = kinds.add_parser("panoptic", help="panoptic quality beside panopticapi and mmdet")
    panoptic.add_argument("--images", type=count, default=20, help="images of Shapes (20)")
    panoptic.add_argument(
        "--size", nargs=2, type=count, default=(480, 640), metavar=("H", "W"), help="(480 640)"
    )
    panoptic.add_argument("--ann", metavar="GT.json", help="a COCO panoptic file to measure on too")
    panoptic.add_argument("--seg-dir", metavar="DIR", help="folder of its PNGs")
    panoptic.add_argument("--repeats", type=count, default=5, help="rounds (5)")
    occlusion = kinds.add_parser("occlusion", help="REFINE's occlusion head in a crowd")
    occlusion.add_argument("--instances", type=count, default=100, help="in the picture (100)")
    occlusion.add_argument(
        "--size", nargs=2, type=count, default=(800, 1216), metavar=("H", "W"), help="(800 1216)"
    )
    occlusion.add_argument("--repeats", type=count, default=3, help="rounds (3)")
    occlusion.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    for kind in (ops, pipeline, model, complexity, panoptic, occlusion):
        kind.add_argument("--out", metavar="FILE.json", help="write the record there")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    kinds = {
        "ops": run_ops,
        "pipeline": run_pipeline,
        "model": run_model,
        "complexity": run_complexity,
        "panoptic": run_panoptic,
        "occlusion": run_occlusion,
    }
    return run_command(lambda: kinds[args.kind](args))


def run_ops(args: argparse.Namespace) -> None:
    """Measure the operators."""
    from mmdet_plus.benchmark.ops import markdown, ops_speed

    record = ops_speed(args.repeats, args.device)
    print(markdown(record))
    if args.tables:
        write_file(args.tables, markdown(record).encode())
    report(record, args.out)


def run_pipeline(args: argparse.Namespace) -> None:
    """Measure what happens outside of networks."""
    from mmdet_plus.benchmark.pipeline import shapes_speed
    from mmdet_plus.benchmark.refinement_speed import markdown, refinement_speed

    record = {}
    if args.only != "refinement":
        record.update(shapes_speed(args.images))
    if args.only != "shapes":
        record["refinement"] = refinement_speed(args.repeats, args.instances)
        print(markdown(record["refinement"]))
    report(record, args.out)


def run_model(args: argparse.Namespace) -> None:
    """Measure whole models."""
    from mmdet_plus.benchmark.models import MODELS_COMPARED, markdown, model_speed

    models = args.models or MODELS_COMPARED
    record = model_speed(models, tuple(args.size), args.repeats, args.device)
    print(markdown(record))
    report(record, args.out)


def run_complexity(args: argparse.Namespace) -> None:
    """Count parameters and FLOPs."""
    from mmdet_plus.benchmark.complexity import MODELS_COMPARED, complexity, markdown

    record = complexity(args.models or MODELS_COMPARED, rois=args.rois)
    print(markdown(record))
    report(record, args.out)


def run_panoptic(args: argparse.Namespace) -> None:
    """Measure panoptic evaluation."""
    from mmdet_plus.benchmark.panoptic import markdown, panoptic_speed

    if (args.ann is None) != (args.seg_dir is None):
        raise UserError("--ann and --seg-dir go together: the file, and the folder of its PNGs")
    real = (args.ann, args.seg_dir) if args.ann else None
    record = panoptic_speed(args.images, tuple(args.size), args.repeats, real)
    print(markdown(record))
    report(record, args.out)


def run_occlusion(args: argparse.Namespace) -> None:
    """Measure the occlusion head."""
    from mmdet_plus.benchmark.occlusion import markdown, occlusion_speed

    record = occlusion_speed(args.instances, tuple(args.size), args.repeats, args.device)
    print(markdown(record))
    report(record, args.out)


def report(record: dict, out: str | None) -> None:
    """Print a record, or write it where that was asked for."""
    record = {"command": shlex.join(["python", *sys.argv]), **record}
    if out:
        write_json(out, record)
    else:
        print(json.dumps(record, indent=1))


if __name__ == "__main__":
    sys.exit(main())
