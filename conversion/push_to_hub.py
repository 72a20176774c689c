"""The command that uploads a converted folder to the Hub.

python conversion/push_to_hub.py FOLDER REPOSITORY [--private] [--revision BRANCH]
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


if not __package__:  # run as a script: Python put this file's own folder on the path
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "src")]

from conversion.command import CommandParser, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 if nothing was uploaded, 2 for a mistake or Ctrl-C."""
    return run_command(command_parser(), run, argv)


def command_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("push_to_hub.py", description="Upload a converted model to the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the --output of convert_crossformer.py")
    parser.add_argument(
        "repository", metavar="REPOSITORY", help="where to: NAME or OWNER/NAME; made if it is not there"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="the branch to upload to; made if it is not there")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    from conversion.uploading import push  # takes seconds to import, during which Ctrl-C is heeded from here

    push(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
