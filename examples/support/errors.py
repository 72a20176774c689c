"""Whatever a user can mend becomes one clear line on stderr and an exit status, never a traceback."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from tqdm.auto import tqdm
from transformers import HfArgumentParser


MAX_LISTED = 5
FAILED = 1
MISUSED_OR_INTERRUPTED = 2


class InputError(Exception):
    """Something that the user can mend; the message is one line: what, its value, the rule and the way out."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Help that keeps the description's lines and gives every default."""


class CommandParser(HfArgumentParser):
    """Parser of flags described by dataclasses, which explains a mistake in one line.

    Args:
        dataclass_types: The dataclasses, if any.
        description: What the command does.
    """

    def __init__(self, dataclass_types: Sequence[type] = (), *, description: str):
        super().__init__(
            dataclass_types, description=description, usage="%(prog)s [flags]", formatter_class=HelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """Print the message and leave."""
        self.exit(MISUSED_OR_INTERRUPTED, f"{self.prog}: error: {one_line(message)}; see --help\n")

    def parse(self, argv: list[str] | None) -> tuple:
        """One object for each dataclass; a value that a dataclass refuses is a mistake like any other."""
        try:
            *parsed, unknown = self.parse_args_into_dataclasses(
                argv, return_remaining_strings=True, look_for_args_file=False
            )
        except (ValueError, ImportError) as error:
            self.error(str(error))
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return tuple(parsed)


def first_few(names: Sequence[str]) -> str:
    """As many names as fit into a line; an ellipsis stands for the others."""
    return ", ".join(names[:MAX_LISTED]) + (", …" if len(names) > MAX_LISTED else "")


def run_command(parser: argparse.ArgumentParser, action: Callable[[], None]) -> int:
    """Run `action`; return 0, or the exit status of the error that it ran into."""
    try:
        action()
    except KeyboardInterrupt:
        return fail(parser, "interrupted; the same command goes on from what was saved", MISUSED_OR_INTERRUPTED)
    except InputError as error:
        return fail(parser, message_of(error), FAILED)
    except OSError as error:
        return fail(parser, f"{error.strerror}: {error.filename}" if error.filename else str(error), FAILED)
    return 0


def message_of(error: InputError) -> str:
    """The error's message; on its way out of a process that reads images, torch puts a traceback before it."""
    return str(error).rpartition(f"{InputError.__name__}: ")[2].strip()


def fail(parser: argparse.ArgumentParser, message: str, status: int) -> int:
    """Print what went wrong and return the exit status."""
    say(f"{parser.prog}: error: {message}")
    return status


def say(message: str) -> None:
    """Print one line on stderr, above progress bars."""
    tqdm.write(one_line(message), file=sys.stderr)


def one_line(message: str) -> str:
    """`message` without line breaks."""
    return " ".join(message.split())
