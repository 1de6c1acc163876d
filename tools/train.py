"""Train a model from a config, detection and segmentation alike."""

import argparse
import os
import sys

from mmdet_plus.engine import prepare_train_cfg, run_command, train
from mmdet_plus.engine.config import add_common_arguments


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config, or the name of one of the zoo")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from this checkpoint, or from the latest one in the working folder",
    )
    parser.add_argument("--amp", action="store_true", help="train in mixed precision")
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate with the batch size over all processes",
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return run_command(
        lambda: train(
            prepare_train_cfg(
                args.config,
                work_dir=args.work_dir,
                resume=args.resume,
                amp=args.amp,
                auto_scale_lr=args.auto_scale_lr,
                cfg_options=args.cfg_options,
                launcher=args.launcher,
            )
        )
    )


if __name__ == "__main__":
    sys.exit(main())
