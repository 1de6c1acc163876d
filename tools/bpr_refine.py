"""Refine the boundaries of anybody's instance masks.

COARSE is a list of COCO results (.json), what tools/test.py --out writes (.pkl), or a folder of
Cityscapes results (*_pred.txt and PNGs). The refined results have the same format and differ in
masks, and in the boxes around them, alone; predictions can also be written as COCO results.

A run that is cut short keeps what it has done; --resume goes on with it.
"""

import argparse
import sys

from mmdet_plus.engine.distributed import open_cpu_group
from mmdet_plus.engine.errors import run_command
from mmseg_plus.bpr.refine_command import refine_file
from mmseg_plus.bpr.sources import FORMATS
from mmseg_plus.common.arguments import amount, count, share, whole


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("coarse", metavar="COARSE", help="the results to refine")
    parser.add_argument("--ann", metavar="GT.json", help="COCO file with the images and categories")
    parser.add_argument("--img-dir", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--out", required=True, help="the file or folder to write")
    parser.add_argument("--config", help="path or name of a refiner's config (the shipped one)")
    parser.add_argument("--checkpoint", help="its weights (those beside the config)")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="of COARSE")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    again.add_argument(
        "--overwrite", action="store_true", help="replace what is there, unfinished runs too"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--patch-size", type=count, default=64, help="side in pixels (64)")
    parser.add_argument(
        "--iou-thr", type=share, default=0.25, help="overlap of patches; more is finer (0.25)"
    )
    parser.add_argument("--scheme", choices=("dense", "grid", "instance"), default="dense")
    parser.add_argument("--padding", type=whole, default=0, help="pixels around patches (0)")
    parser.add_argument("--batch-size", type=count, default=256, help="patches at a time (256)")
    parser.add_argument("--max-patches", type=count, metavar="N", help="budget of patches an image")
    parser.add_argument(
        "--caution", type=amount, metavar="C", help="change less: odds for the mask (the config's)"
    )
    parser.add_argument("--amp", action="store_true", help="the network in half precision")
    parser.add_argument(
        "--score-thr", type=float, metavar="S", help="instances below keep the coarse mask"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="keep the coarse masks of unreadable images"
    )
    parser.add_argument("--launcher", choices=("none", "pytorch", "slurm", "mpi"), default="none")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return run_command(lambda: refine(args))


def refine(args: argparse.Namespace) -> None:
    """Join the other processes, if any, and refine."""
    if args.launcher != "none":
        open_cpu_group(args.launcher)
    refine_file(
        args.coarse,
        args.out,
        args.img_dir,
        args.ann,
        config=args.config,
        checkpoint=args.checkpoint,
        format=args.format,
        device=args.device,
        resume=args.resume,
        overwrite=args.overwrite,
        score_thr=args.score_thr,
        skip_bad=args.skip_bad,
        batch_size=args.batch_size,
        patch_size=args.patch_size,
        iou_thr=args.iou_thr,
        scheme=args.scheme,
        padding=args.padding,
        max_patches=args.max_patches,
        amp=args.amp,
        caution=args.caution,
    )


if __name__ == "__main__":
    sys.exit(main())
