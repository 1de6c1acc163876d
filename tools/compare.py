"""Train configs with the same seeds, and write their logs and the table of their figures.

The first config is the baseline. Started again, a comparison goes on where it stopped.
"""

import argparse
import sys
from pathlib import Path

from mmdet_plus.engine.comparison import compare
from mmdet_plus.engine.config import OptionsAction
from mmdet_plus.engine.errors import run_command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("configs", nargs="+", help="paths or names of configs, baseline first")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="one run for each")
    parser.add_argument("--out", required=True, help="folder for records and summary")
    parser.add_argument("--work-dirs", default="work_dirs/compare", help="folder of the trainings")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument(
        "--cfg-options", nargs="+", action=OptionsAction, metavar="KEY=VALUE", help="for all runs"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    options = [f"{key}={value}" for key, value in (args.cfg_options or {}).items()]
    return run_command(
        lambda: compare(
            args.configs,
            args.seeds,
            args.out,
            Path(__file__).resolve().with_name("train.py"),
            work_dirs=args.work_dirs,
            jobs=args.jobs,
            options=options,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
