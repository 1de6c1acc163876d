"""Fuse saved instances and semantic maps of any model into panoptic maps.

INSTANCES.json is a list of COCO results with masks; those of spatial ranking have a ranking_score.
ANN.json is a COCO file with the images and the categories, each with isthing, such as the panoptic
ground truth. An image's other files are named as the image but for the ending: semantic maps are
PNGs of one channel, probabilities .npz with `probs` (classes, height, width), occlusion matrices
.npz with `occlusion` (N, N) in the order of the image's records.

OUT/panoptic.json and OUT/panoptic/ are a COCO panoptic result. A run that is cut short goes on when
the same command is started again.
"""

import argparse
import sys

from mmdet_plus.engine.errors import run_command
from mmdet_plus.panoptic_fusion.files import FUSERS, FusionSettings, fuse_files
from mmdet_plus.panoptic_fusion.files_inputs import SEM_ORDERS, SEM_VALUES
from mmseg_plus.common.arguments import amount, share, whole


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("instances", metavar="INSTANCES.json", help="COCO results with masks")
    parser.add_argument("--ann", required=True, metavar="ANN.json", help="images and categories")
    parser.add_argument("--sem", metavar="DIR", help="folder of semantic maps")
    parser.add_argument(
        "--sem-values",
        choices=SEM_VALUES,
        default="ids",
        help="what they hold: category ids, or labels, which count ANN's categories from 0 (ids)",
    )
    parser.add_argument(
        "--sem-order",
        choices=SEM_ORDERS,
        help="how labels and channels count the categories: as ANN lists them, or all things first",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--fuser", choices=FUSERS, default="heuristic", help="(heuristic)")
    parser.add_argument(
        "--score-thr", type=amount, default=0.5, metavar="S", help="of instances (0.5)"
    )
    parser.add_argument(
        "--overlap-thr", type=share, default=0.5, help="covered share of those left out (0.5)"
    )
    parser.add_argument(
        "--stuff-area-limit", type=whole, default=4096, help="least pixels of a class (4096)"
    )
    parser.add_argument("--occlusion", metavar="DIR", help="folder of occlusion matrices")
    parser.add_argument(
        "--occlusion-thr", type=share, default=0.2, help="overlap from which they count (0.2)"
    )
    parser.add_argument("--sigma", type=amount, default=2.5, help="of soft-occlusion (2.5)")
    parser.add_argument("--sem-probs", metavar="DIR", help="folder of probabilities")
    parser.add_argument(
        "--erase-unknown", action="store_true", help="make uncertain regions of stuff void"
    )
    parser.add_argument(
        "--erase-threshold", type=share, default=0.5, help="least confidence of a region (0.5)"
    )
    parser.add_argument(
        "--erase-dilation", type=whole, default=3, help="pixels that a region is grown by (3)"
    )
    parser.add_argument("--workers", type=whole, metavar="N", help="processes (one a core)")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return run_command(lambda: fuse(args))


def fuse(args: argparse.Namespace) -> None:
    """Fuse."""
    fuse_files(
        args.instances,
        args.ann,
        args.out,
        sem=args.sem,
        sem_probs=args.sem_probs,
        occlusion=args.occlusion,
        settings=FusionSettings(
            fuser=args.fuser,
            score_thr=args.score_thr,
            overlap_thr=args.overlap_thr,
            stuff_area_limit=args.stuff_area_limit,
            occlusion_thr=args.occlusion_thr,
            sigma=args.sigma,
            erase_unknown=args.erase_unknown,
            erase_threshold=args.erase_threshold,
            erase_dilation=args.erase_dilation,
            sem_values=args.sem_values,
            sem_order=args.sem_order,
        ),
        workers=args.workers,
    )


if __name__ == "__main__":
    sys.exit(main())
