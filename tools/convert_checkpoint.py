"""Turn a checkpoint of another model into one of ours."""

import argparse
import sys

from mmdet_plus.convert.files import CONVERTERS, convert_file
from mmdet_plus.engine.errors import run_command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="KIND")
    for kind, converter in CONVERTERS.items():
        sub = kinds.add_parser(kind, help=converter.summary, description=converter.summary)
        sub.add_argument("source", metavar="SRC.pth", help="checkpoint to convert")
        sub.add_argument("target", metavar="DST.pth", help="the converted one")
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    return run_command(lambda: convert(args.kind, args.source, args.target))


def convert(kind: str, source: str, target: str) -> None:
    """Write the converted checkpoint, and say so and what was left of the source."""
    unused: list[str] = []
    number = convert_file(kind, source, target, unused.extend)
    print(f"{target}: {number} tensors")
    if unused:
        print(f"not used: {', '.join(unused)}")


if __name__ == "__main__":
    sys.exit(main())
