"""Compare panoptic fusers on one trained model, which runs once over the test set."""

import argparse
import sys

from mmdet_plus.engine.config import OptionsAction
from mmdet_plus.engine.errors import run_command
from mmdet_plus.engine.fuser_comparison import compare_fusers


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config, or the name of one of the zoo")
    parser.add_argument("checkpoint", help="the weights to test")
    parser.add_argument(
        "--fusers",
        metavar="FUSERS.py",
        help="a file with fusers = dict(name=dict(type=...), ...); default: all that the model's "
        "predictions suffice for, with and without Unknown Erasing",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR_OR_JSON", help="the record; the table goes beside it"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="the first N images only")
    parser.add_argument("--show-dir", metavar="DIR", help="draw the maps side by side into here")
    parser.add_argument(
        "--show", type=int, metavar="N", default=8, help="of the first N images (default: 8)"
    )
    parser.add_argument(
        "--true-order",
        action="store_true",
        help="also paste in the order of the ground truth, as a network without a fault would "
        "have it; for models with an OcclusionHead",
    )
    parser.add_argument(
        "--top-first",
        action="store_true",
        help="the ground truth lists the things of an image from the top down, as Shapes does: "
        "judge the order of overlapping pairs by that, too; for models with an occlusion_head",
    )
    parser.add_argument(
        "--cfg-options", nargs="+", action=OptionsAction, metavar="KEY=VALUE", help="as of test.py"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return run_command(
        lambda: compare_fusers(
            args.config,
            args.checkpoint,
            args.out,
            fusers=args.fusers,
            limit=args.limit,
            show_dir=args.show_dir,
            show=args.show,
            true_order=args.true_order,
            top_first=args.top_first,
            cfg_options=args.cfg_options,
            command=sys.argv,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
