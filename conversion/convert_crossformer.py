"""The command that ports an original checkpoint: read, rename, load strictly, save.

    python conversion/convert_crossformer.py CHECKPOINT --variant crossformer-s --output FOLDER

Nothing in the checkpoint is ever executed, and the folder appears whole or not at all.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


if not __package__:  # run as a script: Python put this file's own folder on the path
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "src")]

from conversion.command import CommandParser, ConversionError, run_command
from conversion.variants import VARIANTS, variant_table


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 for what cannot be converted, 2 for a mistake or Ctrl-C."""
    return run_command(command_parser(), run, argv)


def command_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("convert_crossformer.py", description="Port an original CrossFormer checkpoint.")
    parser.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="a file of the original code")
    architecture = parser.add_mutually_exclusive_group()
    architecture.add_argument(
        "--variant", choices=VARIANTS, metavar="NAME", help="which released checkpoint it is; --list names them"
    )
    architecture.add_argument(
        "--config", type=Path, metavar="CONFIG.json", help="a CrossFormerConfig, for any other checkpoint"
    )
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where to write the model")
    parser.add_argument("--overwrite", action="store_true", help="replace a model in that folder; other files stay")
    parser.add_argument("--labels", type=Path, metavar="FILE", help="class names: JSON, or text with one a line")
    parser.add_argument("--download", action="store_true", help="fetch the released checkpoint from Google Drive")
    parser.add_argument(
        "--backbone-only", action="store_true", help="of a whole detector or segmentor, port the backbone alone"
    )
    parser.add_argument("--allow-nonfinite", action="store_true", help="port weights that are NaN or infinite too")
    parser.add_argument("--list", action="store_true", help="list the released checkpoints and leave")
    return parser


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    if args.list:
        print(variant_table())
        return 0
    check_arguments(args)
    from conversion.converting import convert  # takes seconds to import, during which Ctrl-C is heeded from here

    convert(args)
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Require what belongs together.

    Raises:
        ConversionError: An argument is missing or one too many.
    """
    if args.output is None:
        raise ConversionError("--output is missing; say where to write the model")
    if args.variant is None and args.config is None:
        raise ConversionError("--variant or --config is missing; --list names the released checkpoints")
    if args.download and (args.variant is None or args.checkpoint is not None):
        raise ConversionError("--download needs --variant and no CHECKPOINT; leave one of them out")
    if not args.download and args.checkpoint is None:
        raise ConversionError("CHECKPOINT is missing; give a file, or --download")


if __name__ == "__main__":
    sys.exit(main())
