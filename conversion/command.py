"""What the commands share: whatever goes wrong becomes one clear line on stderr and an exit status."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn


FAILED = 1
MISUSED_OR_INTERRUPTED = 2


class ConversionError(Exception):
    """Something that the user can act on; the message is one line."""


class CommandParser(argparse.ArgumentParser):
    """An argument parser that explains a mistake in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        """Print the message and leave."""
        self.exit(MISUSED_OR_INTERRUPTED, f"{self.prog}: error: {message}; see --help\n")


def run_command(parser: CommandParser, action: Callable, argv: Sequence[str] | None) -> int:
    """Run `action` on the parsed arguments; return its exit status, or that of the error it ran into."""
    try:
        return action(parser.parse_args(argv))
    except SystemExit as leaving:  # argparse, after --help or a mistake
        return int(leaving.code or 0)
    except KeyboardInterrupt:
        return _fail(parser, "interrupted", MISUSED_OR_INTERRUPTED)
    except ConversionError as error:
        return _fail(parser, str(error), FAILED)
    except OSError as error:
        return _fail(parser, explain(error), FAILED)


def explain(error: Exception) -> str:
    """What went wrong, in one line: `No space left on device: model.safetensors`."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__


def _fail(parser: CommandParser, message: str, status: int) -> int:
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return status
