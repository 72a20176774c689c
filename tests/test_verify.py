"""The command that compares a converted model with the original code, here with a small stand-in for that code."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from golden import tensor_for
from PIL import Image

from conversion import convert_crossformer
from conversion.verify_crossformer import main
from crossformer_hf import CrossFormerConfig, CrossFormerForImageClassification


STAND_IN = Path(__file__).with_name("stand_in_original.py").read_text()
ARCHITECTURE = {
    "image_size": 32,
    "patch_sizes": [4],
    "merge_sizes": [],
    "embed_dim": 32,
    "depths": [2],
    "num_heads": [2],
    "group_sizes": [8],
    "intervals": [1],
}
# The original's name of each part of ours, as in conversion/key_mapping.py but the other way round.
NAMES = [
    (r"^crossformer\.", ""),
    (r"^embeddings\.patch_embeddings\.projections\.", "patch_embed.projs."),
    (r"^embeddings\.layernorm\.", "patch_embed.norm."),
    (r"^encoder\.stages\.(\d)\.layers\.", r"layers.\1.blocks."),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"attention\.position_bias\.projection", "attn.pos.pos_proj"),
    (r"attention\.position_bias\.layers\.(\d)\.layernorm", lambda match: f"attn.pos.pos{int(match[1]) + 1}.0"),
    (r"attention\.position_bias\.layers\.(\d)\.linear", lambda match: f"attn.pos.pos{int(match[1]) + 1}.2"),
    (r"attention\.projection", "attn.proj"),
    (r"attention\.", "attn."),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head."),
]


def original_name(name: str) -> str:
    for pattern, replacement in NAMES:
        name = re.sub(pattern, replacement, name)
    return name


@pytest.fixture
def checkout(tmp_path):
    """Lay out a checkout of the original's `main` or `crossformer` branch; return its folder."""

    def checkout(dense_file: str = "crossformer_backbone_det.py", code: str = STAND_IN) -> Path:
        models = tmp_path / "checkout" / "models"
        models.mkdir(parents=True, exist_ok=True)
        (models / "crossformer.py").write_text(code)
        (models / dense_file).write_text(code.replace("DENSE = False", "DENSE = True"))
        return models.parent

    return checkout


@pytest.fixture
def converted(tmp_path):
    """Convert random weights; return the checkpoint and the folder."""

    def convert(head: bool = True, **changes) -> list[str]:
        settings = {**ARCHITECTURE, **changes}
        model = CrossFormerForImageClassification(CrossFormerConfig(**settings, num_labels=5))
        shapes = {original_name(name): parameter.shape for name, parameter in model.named_parameters()}
        weights = {key: tensor_for(key, shape) for key, shape in shapes.items() if head or not key.startswith("head.")}
        checkpoint, config, folder = (str(tmp_path / name) for name in ("model.pth", "config.json", "model"))
        torch.save({"model": weights}, checkpoint)
        Path(config).write_text(json.dumps(settings))
        assert convert_crossformer.main([checkpoint, "--config", config, "--output", folder, "--overwrite"]) == 0
        return [checkpoint, folder]

    return convert


def differences(printed: str) -> dict[str, float]:
    """The relative differences in the printed table."""
    return {line.split()[0]: float(line.split()[2]) for line in printed.splitlines()[2:-1]}


def test_classifier(checkout, converted, capsys):
    arguments = ["--original", str(checkout()), *converted()]
    capsys.readouterr()
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("models/crossformer.py of branch main, 32 x 32 pixels, float32\n")
    assert list(differences(printed)) == ["embeddings", "stage1", "logits"]
    assert max(differences(printed).values()) < 1e-5
    assert "\nall within 1e-05" in printed


def test_backbone_in_double_precision(checkout, converted, capsys):
    arguments = ["--original", str(checkout()), *converted(head=False)]
    capsys.readouterr()
    assert main([*arguments, "--dtype", "float64", "--tolerance", "1e-12"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("models/crossformer_backbone_det.py of branch main")
    assert list(differences(printed)) == ["embeddings", "stage1"]


def test_the_branch_of_2021(checkout, converted, capsys):
    original = str(checkout("crossformer_backbone.py"))
    assert main(["--original", original, *converted(head=False, grouping="fixed_interval")]) == 0
    assert "models/crossformer_backbone.py of branch crossformer" in capsys.readouterr().out
    assert main(["--original", original, *converted()]) == 0  # its intervals are the same at this size
    assert "models/crossformer.py of branch crossformer" in capsys.readouterr().out


def test_an_image(checkout, converted, tmp_path):
    Image.new("RGB", (70, 50), (200, 30, 90)).save(tmp_path / "image.png")
    assert main(["--original", str(checkout()), *converted(), "--image", str(tmp_path / "image.png")]) == 0


@pytest.mark.parametrize(
    ("old", "new", "first"),
    [
        ("gelu(self.fc1(tokens))", 'gelu(self.fc1(tokens), approximate="tanh")', "stage1"),
        (".mean(dim=1)", ".amax(dim=1)", "logits"),
        ("self.norm(self.projs[0](image)", "1.001 * self.norm(self.projs[0](image)", "embeddings"),
        ("self.head(", "self.head(math.nan * ", "logits"),
    ],
)
def test_a_difference_is_found_where_it_starts(checkout, converted, capsys, old, new, first):
    assert old in STAND_IN
    arguments = ["--original", str(checkout(code=STAND_IN.replace(old, new))), *converted()]
    capsys.readouterr()
    assert main(arguments) == 1
    printed = capsys.readouterr()
    found = differences(printed.out)
    assert next(name for name, difference in found.items() if not difference <= 1e-5) == first
    assert "NOT all within" in printed.out and not printed.err


def test_the_tolerance_decides(checkout, converted):
    arguments = ["--original", str(checkout(code=STAND_IN.replace("self.head(", "1.001 * self.head("))), *converted()]
    assert main([*arguments, "--tolerance", "1e-2"]) == 0
    assert main([*arguments, "--tolerance", "1e-4"]) == 1


@pytest.mark.parametrize(
    ("changes", "options", "problem"),
    [
        ({"grouping": "fixed_interval"}, [], "does not compute the grouping `fixed_interval`"),
        ({}, ["--image_size", "30"], "multiples of 4 pixels only"),
        ({}, ["--image_size", "32", "64"], "square images only"),
        ({}, ["--image_size", "0"], "must be one side or height and width"),
        ({}, ["--image_size", "1", "2", "3"], "must be one side or height and width"),
        ({}, ["--image", "none.png"], "No such file or directory: none.png"),
    ],
)
def test_what_cannot_be_compared(checkout, converted, capsys, changes, options, problem):
    arguments = ["--original", str(checkout()), *converted(**changes), *options]
    assert main(arguments) == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and problem in printed


def test_other_weights_or_folders(checkout, converted, tmp_path, capsys):
    checkpoint, folder = converted()
    deeper = [
        "--original",
        str(checkout(code=STAND_IN.replace("range(depth)", "range(depth + 1)"))),
        checkpoint,
        folder,
    ]
    assert main(deeper) == 1
    assert "the original code with this configuration has other weights: layers.0.blocks.2" in capsys.readouterr().err
    assert main(["--original", str(tmp_path), checkpoint, folder]) == 1
    assert "is no checkout of the original code" in capsys.readouterr().err
    assert main(["--original", str(checkout()), checkpoint, str(tmp_path)]) == 1
    assert "cannot be loaded" in capsys.readouterr().err
    assert main(["--original", str(checkout()), checkpoint, str(tmp_path / "absent")]) == 1
    assert "holds no converted model" in capsys.readouterr().err
    assert main(["--original", str(checkout()), str(tmp_path / "absent"), folder]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert main(["--original", str(checkout(code="import an_old_library")), checkpoint, folder]) == 1
    assert "No module named 'an_old_library'" in capsys.readouterr().err


def test_the_stand_in_libraries_are_gone_afterwards(checkout, converted):
    before = {name for name in sys.modules if name.split(".")[0] in ("timm", "mmcv", "mmdet", "mmseg")}
    assert main(["--original", str(checkout()), *converted()]) == 0
    assert {name for name in sys.modules if name.split(".")[0] in ("timm", "mmcv", "mmdet", "mmseg")} == before
