"""Test a checkpoint with its config, detection and segmentation alike."""

import argparse
import os
import sys

from mmdet_plus.engine import prepare_test_cfg, run_command, test
from mmdet_plus.engine.config import OptionsAction, add_common_arguments


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of a config, or the name of one of the zoo")
    parser.add_argument("checkpoint", help="the weights to test")
    parser.add_argument("--out", metavar="R.pkl", help="write the predictions to this file")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument("--show-dir", help="draw the predictions into this folder")
    parser.add_argument(
        "--wait-time", type=float, default=2, help="seconds for which a window stays"
    )
    parser.add_argument(
        "--tta", action="store_true", help="merge the predictions on flipped views of each image"
    )
    parser.add_argument(
        "--refine",
        nargs="*",
        action=OptionsAction,
        metavar="KEY=VALUE",
        help="also evaluate the masks with refined boundaries (BPR); options of the refiner such "
        "as iou_thr=0.55, config=C.py, checkpoint=K.pth",
    )
    parser.add_argument(
        "--allow-mismatch",
        action="store_true",
        help="go on although the checkpoint lacks weights of the model or has others",
    )
    add_common_arguments(parser)
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    return run_command(
        lambda: test(
            prepare_test_cfg(
                args.config,
                args.checkpoint,
                work_dir=args.work_dir,
                out=args.out,
                show=args.show,
                show_dir=args.show_dir,
                wait_time=args.wait_time,
                tta=args.tta,
                refine=args.refine,
                allow_mismatch=args.allow_mismatch,
                cfg_options=args.cfg_options,
                launcher=args.launcher,
            ),
            out=args.out,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
