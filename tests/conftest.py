"""A converted checkpoint for the tests of what users do with one, and the same logging for every test."""

import json
from pathlib import Path

import pytest
from golden import DATA, config_for, read_case
from transformers.utils import logging

from conversion.convert_crossformer import main


VERBOSITY = logging.get_verbosity()
# Run as part of a checkout of the original code, never by itself.
collect_ignore = ["stand_in_original.py"]


@pytest.fixture(autouse=True)
def usual_logging():
    """Undo what a script that ran in this process chose."""
    logging.set_verbosity(VERBOSITY)
    logging.enable_progress_bar()


def convert(name: str, output: Path, *options: str) -> Path:
    """Convert one of the original's checkpoint files with the converter's command."""
    config = config_for({**read_case(name), "code": "main/classification"})
    config_file = output.parent / f"{output.name}.json"
    config_file.write_text(json.dumps(config.to_diff_dict()))
    arguments = [str(DATA / f"{name}.pth"), "--config", str(config_file), "--output", str(output), *options]
    assert main(arguments) == 0
    return output


@pytest.fixture(scope="session")
def converted(tmp_path_factory) -> Path:
    """Folder of a small CrossFormer++ classifier with ten classes, as the converter writes it."""
    return convert("checkpoint-pp-micro-main", tmp_path_factory.mktemp("converted") / "crossformer-pp-micro")
