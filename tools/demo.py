"""Draw Shapes, fine-tune a small Mask R-CNN and a small MR R-CNN, test both and refine their masks.

Writes figures before and after the refinement, with boundary AP, and pictures. Takes less than five
minutes on two cores. A demo that was stopped goes on when started again.
"""

import argparse
import shlex
import signal
import sys
from pathlib import Path

from mmdet_plus.engine.demo import Settings, run_demo
from mmdet_plus.engine.errors import run_command


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--root", default="demo_out", help="folder of all that the demo writes")
    parser.add_argument(
        "--iterations", type=int, default=100, metavar="N", help="trainings' length, for each model"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of data and trainings")
    parser.add_argument("--num-train", type=int, default=400, metavar="N", help="training images")
    parser.add_argument(
        "--num-val", type=int, default=100, metavar="N", help="new images for the test"
    )
    parser.add_argument("--images", type=int, default=4, metavar="N", help="images in the pictures")
    parser.add_argument(
        "--score-thr", type=float, default=0.5, metavar="T", help="draw predictions from here on"
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    # Ending the demo ends its trainings with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    settings = Settings(args.iterations, args.seed, args.num_train, args.num_val)
    try:
        return run_command(
            lambda: run_demo(
                args.root,
                settings,
                tools=Path(__file__).resolve().parent,
                command=shlex.join(["python", *sys.argv]),
                images=args.images,
                score_thr=args.score_thr,
            )
        )
    except KeyboardInterrupt:
        print("\ndemo: stopped; start the same command again to go on", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
