"""The command that runs the original code beside a converted model and prints how far apart they are.

    python conversion/verify_crossformer.py --original CHECKOUT CHECKPOINT FOLDER

CHECKOUT is a checkout of github.com/cheerss/CrossFormer, whose code is run: branch `main`, or `crossformer` for the
detectors and segmentors of 2021. FOLDER is what `convert_crossformer.py` made of CHECKPOINT.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


if not __package__:  # run as a script: Python put this file's own folder on the path
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "src")]

from conversion.command import CommandParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0 if the two agree, 1 if not or not comparable, 2 for a mistake."""
    return run_command(command_parser(), run, argv)


def command_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("verify_crossformer.py", description="Compare a converted model with the original code.")
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the file that was converted")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="what it was converted to")
    parser.add_argument(
        "--original", type=Path, required=True, metavar="CHECKOUT", help="a checkout of the original code, to be run"
    )
    parser.add_argument(
        "--image_size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="one side or height and width; the model's unless given",
    )
    parser.add_argument("--image", type=Path, metavar="FILE", help="an image; random pixels unless given")
    parser.add_argument("--seed", type=int, default=0, help="for the random pixels")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="what both compute in")
    parser.add_argument(
        "--tolerance", type=float, default=1e-5, help="largest relative difference that passes; 1e-5 unless given"
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    from conversion.verifying import verify  # takes seconds to import, during which Ctrl-C is heeded from here

    return verify(args)


if __name__ == "__main__":
    sys.exit(main())
