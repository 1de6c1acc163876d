"""Build a data set of boundary patches, to train a refiner on.

COARSE holds a segmenter's results on the images of GT: a list of COCO results (.json), what
tools/test.py --out writes (.pkl), or a folder of Cityscapes results. Without it, coarse masks are
made from the ground truth. GT is a COCO instances file, or the folder of Cityscapes' gtFine maps.

The patches go to OUT/train.sqlite, or to OUT/val.sqlite with --split val; BoundaryPatchDataset
reads them (store=...). A run that is cut short keeps what it has done; --resume goes on with it.
"""

import argparse
import sys

from mmdet_plus.engine.errors import run_command
from mmseg_plus.bpr.coarse_masks import KINDS
from mmseg_plus.bpr.patch_store import CODECS
from mmseg_plus.bpr.patches_command import SPLITS, build_files
from mmseg_plus.bpr.sources import FORMATS
from mmseg_plus.common.arguments import count, share, whole


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("coarse", nargs="?", metavar="COARSE", help="a segmenter's results")
    parser.add_argument("--ann", required=True, metavar="GT", help="the ground truth")
    parser.add_argument("--img-dir", required=True, metavar="DIR", help="folder of the images")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--split", choices=tuple(SPLITS), default="train", help="(train)")
    parser.add_argument("--format", choices=("auto", *FORMATS), default="auto", help="of COARSE")
    parser.add_argument(
        "--degrade",
        nargs="+",
        choices=tuple(KINDS),
        metavar="KIND",
        help=f"ways to make coarse masks, without COARSE: {', '.join(KINDS)} (all)",
    )
    filtering = parser.add_mutually_exclusive_group()
    filtering.add_argument(
        "--min-iou", type=share, help="of a mask with its ground truth (0.5; results on val: 0)"
    )
    filtering.add_argument(
        "--no-filter", dest="min_iou", action="store_const", const=0.0, help="the same as 0"
    )
    parser.add_argument("--patch-size", type=count, default=64, help="side in pixels (64)")
    parser.add_argument(
        "--iou-thr", type=share, default=0.25, help="overlap of patches; more leaves more (0.25)"
    )
    parser.add_argument("--scheme", choices=("dense", "grid", "instance"), default="dense")
    parser.add_argument("--padding", type=whole, default=0, help="pixels around patches (0)")
    parser.add_argument(
        "--max-instances", type=count, metavar="N", help="sample so many (the paper's COCO: 70000)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of samples and coarse masks (0)")
    parser.add_argument(
        "--codec",
        choices=tuple(CODECS),
        default="webp",
        help="png: a third larger, built six times as fast (webp)",
    )
    parser.add_argument("--workers", type=whole, metavar="N", help="processes (one a core)")
    parser.add_argument("--resume", action="store_true", help="go on with an unfinished run")
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable images")
    args = parser.parse_args()
    if args.coarse and args.degrade:
        parser.error("--degrade makes coarse masks from the ground truth; leave COARSE out")
    return args


def main() -> int:
    args = parse_args()
    try:
        return run_command(lambda: build(args))
    except KeyboardInterrupt:
        print("bpr_patches: interrupted; go on with --resume", file=sys.stderr)
        return 130


def build(args: argparse.Namespace) -> None:
    """Build the patches of one split."""
    settings = {} if args.degrade is None else {"degrade": tuple(args.degrade)}
    build_files(
        args.coarse,
        args.ann,
        args.img_dir,
        args.out,
        args.split,
        format=args.format,
        min_iou=args.min_iou,
        workers=args.workers,
        resume=args.resume,
        skip_bad=args.skip_bad,
        patch_size=args.patch_size,
        iou_thr=args.iou_thr,
        scheme=args.scheme,
        padding=args.padding,
        max_instances=args.max_instances,
        seed=args.seed,
        codec=args.codec,
        **settings,
    )


if __name__ == "__main__":
    sys.exit(main())
