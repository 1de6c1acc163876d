"""Measure what refining boundaries is worth: AP, boundary AP and AF before and after."""

import argparse
import shlex
import sys

from mmdet_plus.engine.errors import run_command
from mmseg_plus.common.arguments import amount, count, share, whole
from mmseg_plus.common.files import write_json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "coarse", nargs="?", help="COCO results JSON, or a pickle of tools/test.py --out"
    )
    parser.add_argument("--ann", required=True, metavar="GT.json", help="COCO ground truth")
    parser.add_argument("--img-dir", required=True, help="folder of its images")
    parser.add_argument(
        "--degrade",
        nargs="+",
        metavar="KIND",
        help="instead of results: coarse masks made from the ground truth, by mask_head, polygon, "
        "morphology",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --degrade (0)")
    parser.add_argument("--config", help="the refiner's config; the shipped one if left out")
    parser.add_argument("--checkpoint", help="its weights; those beside the config if left out")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--patch-size", type=count, default=64, help="side of the patches (64)")
    parser.add_argument("--iou-thr", type=share, default=0.25, help="of the NMS (0.25)")
    parser.add_argument("--scheme", default="dense", help="dense (default), grid or instance")
    parser.add_argument("--padding", type=whole, default=0, help="pixels around each patch (0)")
    parser.add_argument("--max-patches", type=count, help="budget of patches an image")
    parser.add_argument(
        "--caution", type=amount, metavar="C", help="change less: odds for the mask (the config's)"
    )
    parser.add_argument("--amp", action="store_true", help="the network in half precision")
    parser.add_argument(
        "--vary",
        nargs="+",
        default=[],
        metavar="OPTION=A,B",
        help="further values of an option, a row each: iou_thr=0.15,0.55 scheme=grid,instance",
    )
    parser.add_argument("--images", type=count, help="only the first so many images")
    parser.add_argument("--out", metavar="FILE.json", help="write the record there")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return run_command(lambda: evaluate(args))


def evaluate(args: argparse.Namespace) -> None:
    """Refine, evaluate, print the table and write the record."""
    from mmdet_plus.benchmark.refinement import evaluate_file, markdown

    names = ("patch_size", "iou_thr", "scheme", "padding", "max_patches", "amp", "caution")
    record = evaluate_file(
        args.coarse,
        args.ann,
        args.img_dir,
        degrade_kinds=args.degrade,
        seed=args.seed,
        config=args.config,
        checkpoint=args.checkpoint,
        device=args.device,
        options={name: getattr(args, name) for name in names},
        vary=args.vary,
        images=args.images,
    )
    print(markdown(record))
    if args.out:
        write_json(args.out, {"command": shlex.join(["python", *sys.argv]), **record})


if __name__ == "__main__":
    sys.exit(main())
