"""Every code block of the README runs: Python blocks one after the other, commands one by one."""

import contextlib
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import read_case, tensor_for
from PIL import Image


ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True) for language, block in BLOCKS if language == "bash" for line in block.splitlines()
]

DENSE = {
    "segment-2021-fpn-s": "fpn-crossformer-s",
    "detect-2021-retinanet-s": "retinanet-crossformer-s",
    "detect-2021-mask-rcnn-s": "mask-rcnn-crossformer-s",
}


@contextlib.contextmanager
def arguments(command: list[str]):
    """The command line of another program."""
    original, sys.argv = sys.argv, command
    try:
        yield
    finally:
        sys.argv = original


def run(command: list[str]):
    """Run a Python command in this process; of a make target, which installs things, only ask what it would do."""
    if command[0] == "make":
        subprocess.run(["make", "--dry-run", *command[1:]], cwd=ROOT, check=True, capture_output=True)
        return
    assert command[0] == "python"
    with arguments([str(ROOT / command[1]), *command[2:]]):
        try:
            runpy.run_path(str(ROOT / command[1]), run_name="__main__")
        except SystemExit as stop:
            assert not stop.code, command


def image(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (240, 320, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README's user has: a checkpoint as the original code saves it, a photo, and images of two classes."""
    folder = tmp_path_factory.mktemp("readme")
    parameters = read_case("classify-crossformer-s-224")["parameters"]
    torch.save({"model": {key: tensor_for(key, shape) for key, shape in parameters}}, folder / "crossformer-s.pth")
    for case, name in DENSE.items():
        weights = {key: tensor_for(key, shape) for key, shape in read_case(case)["state_dict"]}
        torch.save({"state_dict": weights}, folder / f"{name}.pth")
    image(0).save(folder / "photo.jpg")
    for seed, name in enumerate(["cat", "cat", "dog", "dog"]):
        file = folder / "my_images" / "train" / name / f"{seed}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        image(seed).save(file)
    original = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(original)


def test_all_blocks_are_known():
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    assert len(COMMANDS) == 7


def test_commands(folder):
    for command in COMMANDS:
        run(command)
    assert (folder / "crossformer-s" / "model.safetensors").exists()


def test_python_blocks(folder):
    if not (folder / "crossformer-s").exists():
        test_commands(folder)
    namespace = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(compile(block, "README.md", "exec"), namespace)
    sizes = [tuple(feature_map.shape[-2:]) for feature_map in namespace["feature_maps"]]
    assert sizes == [(54, 80), (27, 40), (14, 20)]
    assert (folder / "fine-tuned" / "model.safetensors").exists()
