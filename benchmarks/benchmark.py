"""The command that measures speed and memory, on a CPU or with CUDA, and says how models compare.

    python benchmarks/benchmark.py --models crossformer-s transformers:swin-t timm:convnext-t
    python benchmarks/benchmark.py --models original:crossformer-s crossformer-s --original CHECKOUT

A model is [IMPLEMENTATION:]NAME[@DTYPE][@compiled]: `crossformer-s`, `original:crossformer-s@autocast@compiled`.
CHECKOUT is a checkout of github.com/cheerss/CrossFormer, whose code is run. Weights are random; nothing is downloaded.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path


if not __package__:  # run as a script: Python put this file's own folder on the path
    sys.path[:1] = [str(Path(__file__).resolve().parents[1] / folder) for folder in ("", "src")]

from benchmarks.cases import COMPILED, DTYPES, EAGER, MODES, TASKS, parse_size
from benchmarks.errors import BenchmarkError
from conversion.command import CommandParser, run_command


GROUPINGS = ("fixed_group", "fixed_interval", "adaptive_interval")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status: 0, 1 if something could not be measured, 2 for a mistake."""
    return run_command(command_parser(), run, argv)


def at_least(smallest: int):
    """Parser of whole numbers from `smallest` on."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < smallest:
            raise argparse.ArgumentTypeError(f"{text} must be a whole number, at least {smallest}")
        return int(text)

    return parse


def seconds(text: str) -> float:
    """Parser of a time that is not negative."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} must be a number of seconds, at least 0")
    return value


def size(text: str) -> tuple[int, int]:
    """Parser of a size."""
    try:
        return parse_size(text)
    except BenchmarkError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def command_parser() -> CommandParser:
    """The arguments."""
    parser = CommandParser("benchmark.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_kinds(parser.add_argument_group("what to do").add_mutually_exclusive_group())
    add_cases(parser.add_argument_group("what to measure; every combination"))
    add_effort(parser.add_argument_group("how"))
    add_outputs(parser.add_argument_group("what to write"))
    return parser


def add_kinds(group) -> None:
    """Arguments that choose what is done."""
    group.add_argument("--preset", choices=("cpu", "gpu"), help="a ready-made list of comparisons; see README.md")
    group.add_argument("--flops", action="store_true", help="print the work and memory of each part; nothing is run")
    group.add_argument(
        "--growth", action="store_true", help="how time grows with area (all sizes) and batch (at the first size)"
    )


def add_cases(group) -> None:
    """Arguments that say what is measured."""
    group.add_argument("--models", nargs="+", metavar="MODEL", help="crossformer-s and swin-t unless given")
    group.add_argument("--baseline", metavar="MODEL", help="the one of --models to compare with; the first")
    group.add_argument("--original", nargs="+", type=Path, default=[], metavar="CHECKOUT", help="of either branch")
    group.add_argument(
        "--sizes", nargs="+", type=size, default=[(224, 224)], metavar="SIZE", help="224, or 800x1216: height first"
    )
    group.add_argument("--batch_sizes", nargs="+", type=at_least(1), default=[1], metavar="IMAGES")
    group.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32"])
    group.add_argument("--execution", nargs="+", choices=(EAGER, COMPILED), default=[EAGER])
    group.add_argument("--modes", nargs="+", choices=MODES, default=["inference"])
    group.add_argument("--task", choices=TASKS, default="classify")
    group.add_argument("--grouping", choices=GROUPINGS, help="of CrossFormer; fixed_group unless given")


def add_effort(group) -> None:
    """Arguments that say how long and where to measure."""
    group.add_argument("--device", help="cpu or cuda; CUDA where it is")
    group.add_argument("--threads", type=at_least(1), help="of a CPU; torch's choice unless given")
    group.add_argument("--rounds", type=at_least(1), default=10, help="everything runs once a round (%(default)s)")
    group.add_argument("--warmup", type=at_least(0), default=2, help="runs beforehand (%(default)s)")
    group.add_argument(
        "--min_seconds", type=seconds, default=0.0, help="in a round, repeat a model for so long (%(default)s)"
    )
    group.add_argument("--seed", type=at_least(0), default=0, help="of weights, images and order (%(default)s)")
    group.add_argument("--memory", action="store_true", help="also measure peak memory, in a pass of its own")


def add_outputs(group) -> None:
    """Arguments that name files."""
    group.add_argument("--json", type=Path, default=Path("outputs/benchmark.json"), help="(%(default)s)")
    group.add_argument("--picture", type=Path, default=Path("outputs/benchmark.png"), help="(%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Do what the arguments say."""
    from benchmarks.running import run_benchmark  # takes seconds to import, during which Ctrl-C is heeded from here

    return run_benchmark(args)


if __name__ == "__main__":
    sys.exit(main())
