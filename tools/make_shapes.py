"""Draw the Shapes data set into a folder; an interrupted run goes on when started again."""

import argparse
import os
import sys
from pathlib import Path


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("root", help="folder of the data set, for example data/shapes")
    parser.add_argument("--num-train", type=int, default=200, metavar="N", help="training images")
    parser.add_argument("--num-val", type=int, default=50, metavar="N", help="validation images")
    parser.add_argument(
        "--size", type=int, nargs=2, default=(256, 256), metavar=("W", "H"), help="pixels"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="same seed, same bytes")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes; 0 draws in this one",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    from mmdet_plus.engine import run_command

    try:
        return run_command(lambda: draw(args))
    except KeyboardInterrupt:
        print("make_shapes: interrupted; run the same command to go on", file=sys.stderr)
        return 130


def draw(args: argparse.Namespace) -> None:
    from mmdet_plus.datasets import make_shapes
    from mmseg_plus.common.errors import UserError

    try:
        root = make_shapes(
            args.root,
            num_train=args.num_train,
            num_val=args.num_val,
            image_size=tuple(args.size),
            seed=args.seed,
            workers=args.workers,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{error.filename or args.root}: {reason}; mend that and run the same command again, "
            "what is drawn is kept"
        ) from error
    print(f"Shapes: {args.num_train} + {args.num_val} images in {root}")


if __name__ == "__main__":
    # A clone works without installation.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(main())
