"""Make a trained checkpoint small: weights and classes stay, the training's state goes."""

import argparse
import sys
from pathlib import Path

from mmdet_plus.convert.publish import publish
from mmdet_plus.engine.errors import run_command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", metavar="SRC.pth", help="checkpoint of a training")
    parser.add_argument("target", metavar="DST.pth", help="the small one")
    parser.add_argument(
        "--half",
        action="store_true",
        help="store weights as float16; models load them all the same",
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return run_command(lambda: report(args.target, publish(args.source, args.target, args.half)))


def report(target: str, digest: str) -> None:
    """Print what was written."""
    size = Path(target).stat().st_size / 1e6
    print(f"{target}: {size:.1f} MB, SHA-256 begins with {digest}")


if __name__ == "__main__":
    sys.exit(main())
