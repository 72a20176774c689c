"""The converter's command: original checkpoints give their logits, and whatever is wrong is told in one line."""

import io
import json
import os
import pickle
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from golden import DATA, config_for, image_for, read_case, relative_error
from PIL import Image
from safetensors import safe_open
from transformers import AutoImageProcessor

from conversion.checkpoint import read_checkpoint
from conversion.convert_crossformer import main
from conversion.variants import VARIANTS
from crossformer_hf import CrossFormerBackbone, CrossFormerConfig, CrossFormerForImageClassification


SCRIPT = Path(__file__).parents[1] / "conversion" / "convert_crossformer.py"
MICRO_2021 = DATA / "checkpoint-micro-2021.pth"
MICRO_PP = DATA / "checkpoint-pp-micro-main.pth"
MICRO_BACKBONE = DATA / "checkpoint-pp-micro-mmdet-backbone.pth"
FILES = {
    "README.md",
    "boxes_crossformer.py",
    "linear_crossformer.py",
    "image_processing_crossformer.py",
    "modeling_crossformer_detection.py",
    "config.json",
    "configuration_crossformer.py",
    "conversion_report.json",
    "model.safetensors",
    "modeling_crossformer.py",
    "preprocessor_config.json",
}


@pytest.fixture
def output(tmp_path):
    return tmp_path / "model"


@pytest.fixture
def config_file(tmp_path):
    """Write the configuration of one of the two small architectures."""

    def write(checkpoint: Path = MICRO_PP, **changes) -> Path:
        name = "checkpoint-micro-2021" if checkpoint == MICRO_2021 else "checkpoint-pp-micro-main"
        config = config_for(read_case(name)).to_diff_dict()
        path = tmp_path / "config.json"
        path.write_text(json.dumps({**config, **changes}))
        return path

    return write


@pytest.fixture
def convert(output, config_file):
    """Convert a checkpoint file of a small architecture."""

    def convert(checkpoint: Path = MICRO_PP, *options: str, **changes) -> int:
        config = config_file(checkpoint, **changes)
        return main([str(checkpoint), "--config", str(config), "--output", str(output), *map(str, options)])

    return convert


@pytest.fixture
def refusal(convert, output, capsys):
    """Convert a file; return the one line with which it is refused, without a trace of an output."""

    def refuse(checkpoint: Path = MICRO_PP, *options: str, status: int = 1, **changes) -> str:
        beside = set(os.listdir(output.parent)) | {"config.json"}
        assert convert(checkpoint, *options, **changes) == status
        assert set(os.listdir(output.parent)) == beside
        return one_line(capsys)

    return refuse


def one_line(capsys) -> str:
    """The one line on stderr."""
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("convert_crossformer.py: error: "), printed.err
    assert not printed.out
    return lines[0].removeprefix("convert_crossformer.py: error: ")


def weights_in(checkpoint: Path = MICRO_PP) -> dict[str, torch.Tensor]:
    """A copy of the weights in a checkpoint, under the original's names."""
    return {key: tensor.clone() for key, tensor in read_checkpoint(checkpoint).state_dict.items()}


def saved(path: Path, weights: dict, **entries) -> Path:
    torch.save({"model": weights, **entries}, path)
    return path


def zeros(name: str, prefix: str = "", head: bool = True) -> dict[str, torch.Tensor]:
    """Weights of a released architecture that are all zero, with or without the final norm and the head."""
    return {
        prefix + key: torch.zeros(shape)
        for key, shape in read_case(f"classify-{name}-224")["parameters"]
        if head or not key.startswith(("norm.", "head."))
    }


def detector(parts: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Weights of a detector or segmentor with CrossFormer-S, and one in each of its other parts."""
    return {
        **zeros("crossformer-s", "backbone.", head=False),
        **{f"{part}.conv.weight": torch.zeros(1) for part in parts},
    }


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- What comes out ---


@pytest.mark.parametrize("checkpoint", [MICRO_2021, MICRO_PP])
def test_logits(convert, output, checkpoint):
    assert convert(checkpoint) == 0
    case = read_case(checkpoint.stem)
    model, loading = CrossFormerForImageClassification.from_pretrained(output, output_loading_info=True)
    assert not any(loading.values())
    with torch.no_grad():
        logits = model(image_for(case["image_shape"], case["image_seed"])).logits
    assert relative_error(logits.numpy(), torch.tensor(case["logits"]).numpy()) < 1e-5


def test_a_checkpoint_without_head_becomes_a_backbone(convert, output):
    assert convert(MICRO_BACKBONE) == 0
    backbone, loading = CrossFormerBackbone.from_pretrained(output, output_loading_info=True)
    assert not any(loading.values())
    assert backbone.out_features == ["stage1", "stage2", "stage3", "stage4"]
    weights = backbone.state_dict()
    original = weights_in(MICRO_BACKBONE)
    mapped = json.loads((output / "conversion_report.json").read_text())["mapped"]
    assert len(mapped) == len(weights) == len(original)
    for key, name in mapped.items():
        assert torch.equal(weights[name], original["backbone." + key])


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.backbone."])
def test_prefixes(convert, output, tmp_path, prefix):
    weights = {prefix + key: tensor for key, tensor in weights_in().items()}
    assert convert(saved(tmp_path / "a.pth", weights)) == 0
    assert CrossFormerConfig.from_pretrained(output).architectures == ["CrossFormerForImageClassification"]


def test_the_final_norm_of_a_backbone_is_dropped(convert, output, tmp_path):
    weights = {key: tensor for key, tensor in weights_in().items() if not key.startswith("head.")}
    assert convert(saved(tmp_path / "a.pth", weights)) == 0
    report = json.loads((output / "conversion_report.json").read_text())
    assert report["dropped"] == dict.fromkeys(
        ["norm.weight", "norm.bias"], "the final norm, which a backbone does not have"
    )


def test_report(convert, output, capsys):
    assert convert(MICRO_2021) == 0
    report = json.loads((output / "conversion_report.json").read_text())
    original = weights_in(MICRO_2021)
    assert report["mapped"].keys() | report["dropped"].keys() == original.keys()
    assert set(report["dropped"].values()) == {"a buffer that is computed anew"}
    assert report["dropped"].keys() == {key for key in original if key.endswith(("biases", "relative_position_index"))}
    assert report["missing"] == report["unexpected"] == []
    assert report["checkpoint"] == "checkpoint-micro-2021.pth"
    assert "214 keys mapped, 14 dropped on purpose, 0 missing, 0 unexpected" in capsys.readouterr().out


def test_folder(convert, output):
    assert convert() == 0
    assert {path.name for path in output.iterdir()} == FILES
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["CrossFormerForImageClassification"]
    assert config["auto_map"] == {
        "AutoConfig": "configuration_crossformer.CrossFormerConfig",
        "AutoModel": "modeling_crossformer.CrossFormerModel",
        "AutoModelForImageClassification": "modeling_crossformer.CrossFormerForImageClassification",
        "AutoModelForSemanticSegmentation": "modeling_crossformer.CrossFormerForSemanticSegmentation",
        "AutoModelForObjectDetection": "modeling_crossformer_detection.CrossFormerForObjectDetection",
        "AutoModelForInstanceSegmentation": "modeling_crossformer_detection.CrossFormerForInstanceSegmentation",
        "AutoBackbone": "modeling_crossformer.CrossFormerBackbone",
    }
    with safe_open(output / "model.safetensors", framework="pt") as file:
        assert all(file.get_tensor(key).dtype == torch.float32 for key in file.keys())


def test_half_precision_weights_become_single(convert, output, tmp_path):
    weights = {key: tensor.half() for key, tensor in weights_in().items()}
    assert convert(saved(tmp_path / "a.pth", weights)) == 0
    classifier = CrossFormerForImageClassification.from_pretrained(output).classifier
    assert torch.equal(classifier.weight, weights["head.weight"].float())


@pytest.mark.parametrize(("image_size", "shortest_edge"), [(224, 256), (384, 438), ([160, 224], 256)])
def test_images_are_processed_as_in_the_original_evaluation(convert, output, image_size, shortest_edge):
    assert convert(image_size=image_size) == 0
    processor = AutoImageProcessor.from_pretrained(output)
    height, width = [image_size] * 2 if isinstance(image_size, int) else image_size
    assert processor.size["shortest_edge"] == shortest_edge
    assert (processor.crop_size["height"], processor.crop_size["width"]) == (height, width)
    assert processor.resample == Image.Resampling.BICUBIC
    pixel_values = processor(Image.new("RGB", (700, 500), (255, 0, 0)), return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, height, width)
    expected = torch.tensor([(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225])
    torch.testing.assert_close(pixel_values.mean(dim=(0, 2, 3)), expected, rtol=1e-4, atol=1e-4)


def test_a_backbone_sees_whole_images(convert, output):
    assert convert(MICRO_BACKBONE) == 0
    processor = AutoImageProcessor.from_pretrained(output)
    assert processor(Image.new("RGB", (70, 50)), return_tensors="pt")["pixel_values"].shape == (1, 3, 50, 70)


def test_converting_twice_gives_the_same_bytes(convert, output):
    assert convert() == 0
    first = contents(output)
    assert convert(MICRO_PP, "--overwrite") == 0
    assert contents(output) == first
    assert sorted(os.listdir(output.parent)) == ["config.json", "model"]


def test_a_converted_configuration_converts_again(convert, output, tmp_path):
    assert convert() == 0
    again = ["--config", str(output / "config.json"), "--output", str(tmp_path / "again")]
    assert main([str(MICRO_PP), *again]) == 0
    assert contents(tmp_path / "again") == contents(output)


# --- Labels ---


def test_labels_file(convert, output, tmp_path):
    names = [f"digit {index}" for index in range(10)]
    (tmp_path / "labels.txt").write_text("\n".join(names))
    assert convert(MICRO_PP, "--labels", tmp_path / "labels.txt") == 0
    config = CrossFormerConfig.from_pretrained(output)
    assert config.id2label == dict(enumerate(names))
    assert config.label2id == {name: index for index, name in enumerate(names)}


def test_labels_of_the_configuration(convert, output):
    assert convert(id2label={index: f"digit {index}" for index in range(10)}) == 0
    assert CrossFormerConfig.from_pretrained(output).id2label[9] == "digit 9"


def test_labels_without_names(convert, output):
    assert convert() == 0
    assert CrossFormerConfig.from_pretrained(output).id2label == {index: f"LABEL_{index}" for index in range(10)}


def test_wrong_numbers_of_labels(refusal, tmp_path):
    (tmp_path / "labels.txt").write_text("cat\ndog")
    assert "names 2 classes, but the checkpoint's head has 10" in refusal(
        MICRO_PP, "--labels", tmp_path / "labels.txt"
    )
    assert "has 7 labels, but the checkpoint's head has 10" in refusal(num_labels=7)
    assert "no classes to name" in refusal(MICRO_BACKBONE, "--labels", tmp_path / "labels.txt")
    assert "No such file or directory" in refusal(MICRO_PP, "--labels", tmp_path / "no.txt")


# --- Released variants ---


def test_a_released_classifier(output, tmp_path):
    checkpoint = saved(tmp_path / "a.pth", zeros("crossformer-pp-s"))
    assert main([str(checkpoint), "--variant", "crossformer-pp-s", "--output", str(output)]) == 0
    config = CrossFormerConfig.from_pretrained(output)
    assert config.grouping == "fixed_group" and config.drop_path_rate == 0.2
    assert config.num_labels == 1000 and config.id2label[1] == "goldfish, Carassius auratus"
    card = (output / "README.md").read_text()
    assert "83.2" in card and "not measured again" in card and "license: mit" in card


@pytest.mark.parametrize("name", ["retinanet-crossformer-s", "fpn-crossformer-s"])
def test_the_backbone_of_a_released_detector_or_segmentor(output, tmp_path, capsys, name):
    checkpoint = saved(tmp_path / "a.pth", detector(sorted(VARIANTS[name].parts)))
    arguments = [str(checkpoint), "--variant", name, "--output", str(output)]
    assert main(arguments) == 1
    assert "the weights do not fit" in one_line(capsys)
    assert main([*arguments, "--backbone-only"]) == 0
    config = CrossFormerConfig.from_pretrained(output)
    assert config.grouping == "fixed_interval" and config.architectures == ["CrossFormerBackbone"]
    report = json.loads((output / "conversion_report.json").read_text())
    assert set(report["dropped"]) == {f"{part}.conv.weight" for part in VARIANTS[name].parts}


def test_heads_of_another_kind(refusal, convert, tmp_path):
    heads = {"neck.a": torch.zeros(1), "dense_head.b": torch.zeros(1)}
    checkpoint = saved(tmp_path / "a.pth", {**weights_in(MICRO_BACKBONE), **heads})
    assert "whose dense_head, neck cannot be ported; give --backbone-only" in refusal(checkpoint)
    assert convert(checkpoint, "--backbone-only") == 0


def test_a_variant_of_another_kind(output, tmp_path, capsys):
    def refused(weights: dict, variant: str) -> str:
        arguments = [str(saved(tmp_path / "a.pth", weights)), "--variant", variant, "--output", str(output)]
        assert main([*arguments, "--backbone-only"]) == 1
        return one_line(capsys)

    segmentor = detector(("neck", "decode_head"))
    assert "give --variant crossformer-s" in refused(zeros("crossformer-s"), "upernet-crossformer-s")
    assert "has decode_head, neck beside its backbone" in refused(segmentor, "upernet-crossformer-s")
    assert "it fits --variant fpn-crossformer-s" in refused(segmentor, "fpn-crossformer-b")
    assert "it fits --variant crossformer-s" in refused(zeros("crossformer-s"), "crossformer-l")
    assert "it fits --variant crossformer-pp-s" in refused(zeros("crossformer-pp-s"), "crossformer-b")


def test_a_detector_converted_as_a_classifier_is_told_its_grouping(output, tmp_path, capsys):
    checkpoint = saved(tmp_path / "a.pth", detector(("neck", "bbox_head")))
    assert main([str(checkpoint), "--variant", "crossformer-s", "--output", str(output), "--backbone-only"]) == 0
    assert "if this is the released retinanet-crossformer-s" in capsys.readouterr().out


# --- Architectures that do not fit ---


def test_another_shape(refusal):
    message = refusal(embed_dim=32)
    assert "of another shape (patch_embed.projs.0.weight (8, 3, 4, 4) instead of (16, 3, 4, 4)" in message
    assert "and 207 more" in message and "it fits no released variant" in message


def test_a_shape_of_a_released_variant(output, tmp_path, capsys):
    checkpoint = saved(tmp_path / "a.pth", zeros("crossformer-b"))
    assert main([str(checkpoint), "--variant", "crossformer-l", "--output", str(output)]) == 1
    message = one_line(capsys)
    assert "patch_embed.projs.0.weight (48, 3, 4, 4) instead of (64, 3, 4, 4)" in message
    assert message.endswith("it fits --variant crossformer-b")


def test_missing_and_unexpected_keys(refusal):
    message = refusal(use_cooling_layer=False)
    assert "4 unexpected (layers.2.blocks.2.ex_conv.weight" in message and "and 1 more" in message
    message = refusal(depths=[1, 1, 4, 2])
    assert "26 missing (crossformer.encoder.stages.3.layers.1.layernorm_before.weight" in message


def test_keys_that_are_not_the_originals(refusal, tmp_path):
    weights = {**weights_in(), "absolute_pos_embed": torch.zeros(1), "a\nb\x1b[0m": torch.zeros(1)}
    message = refusal(saved(tmp_path / "a.pth", weights))
    assert r"2 unexpected (absolute_pos_embed, a\nb\x1b[0m)" in message


def test_one_tensor_under_two_names(convert, output, tmp_path):
    weights = weights_in()
    weights["norm.bias"] = weights["norm.weight"]
    assert convert(saved(tmp_path / "a.pth", weights)) == 0
    layernorm = CrossFormerForImageClassification.from_pretrained(output).crossformer.layernorm
    assert torch.equal(layernorm.bias, layernorm.weight)


# --- Configurations ---


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"num_layer": 3}, "has the field `num_layer`, which no CrossFormerConfig has; did you mean `num_labels`?"),
        ({"grouping": "none"}, "`grouping` is 'none', but it must be one of"),
        ({"embed_dim": "wide"}, "embed_dim"),
        ({"hidden_act": "none"}, "`hidden_act` is 'none'"),
        ({"model_type": "swin"}, "is of a model of type 'swin'"),
    ],
)
def test_bad_configurations(refusal, changes, problem):
    assert problem in refusal(**changes)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100_000])
def test_configurations_that_are_no_json_object(output, tmp_path, capsys, text):
    (tmp_path / "bad.json").write_text(text)
    assert main([str(MICRO_PP), "--config", str(tmp_path / "bad.json"), "--output", str(output)]) == 1
    assert str(tmp_path / "bad.json") in one_line(capsys)


# --- Arguments ---


@pytest.mark.parametrize(
    ("arguments", "status", "problem"),
    [
        ([], 1, "--output is missing"),
        (["a.pth", "--output", "out"], 1, "--variant or --config is missing"),
        (["--variant", "crossformer-s", "--output", "out"], 1, "CHECKPOINT is missing"),
        (["a.pth", "--variant", "crossformer-s", "--output", "out", "--download"], 1, "--download needs"),
        (["a.pth", "--variant", "crossformer-x", "--output", "out"], 2, "invalid choice: 'crossformer-x'"),
        (["a.pth", "--variant", "crossformer-s", "--config", "c.json", "--output", "out"], 2, "not allowed with"),
        (["a.pth", "--variant", "crossformer-s", "--output", "out", "--fast"], 2, "unrecognized arguments: --fast"),
        (["a.pth", "--variant", "crossformer-s", "--output", "out"], 1, "a.pth does not exist"),
    ],
)
def test_mistakes(tmp_path, monkeypatch, capsys, arguments, status, problem):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == status
    assert problem in one_line(capsys)
    assert not os.listdir(tmp_path)


def test_list(capsys):
    assert main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(VARIANTS)


def test_help(capsys):
    assert main(["--help"]) == 0
    assert "--backbone-only" in capsys.readouterr().out


def test_as_a_script_from_anywhere(tmp_path, config_file):
    command = [sys.executable, SCRIPT, MICRO_PP, "--config", config_file(), "--output", "model"]
    converting = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": ""}, capture_output=True)
    assert (converting.returncode, converting.stderr) == (0, b"")
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES


# --- Files that are no checkpoint ---


class Executes:
    """Pickles as a call of `os.system`."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("nested", [lambda call: call, lambda call: (1, ([call],)), lambda call: {call: 1}])
def test_nothing_in_a_checkpoint_is_executed(refusal, tmp_path, nested, zipped):
    marker, path = tmp_path / "executed", tmp_path / "a.pth"
    content = {"model": weights_in(), "config": nested(Executes(marker))}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refusal(path)
    assert "asks to run" in message and "system" in message and "nothing was executed" in message
    assert not marker.exists()


def test_a_bare_pickle_is_not_executed(refusal, tmp_path):
    marker, path = tmp_path / "executed", tmp_path / "a.pth"
    path.write_bytes(pickle.dumps(Executes(marker)))
    refusal(path)
    assert not marker.exists()


def test_files_that_are_no_checkpoint(refusal, tmp_path):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "text")
    whole = MICRO_PP.read_bytes()
    files = {
        "truncated": (whole[: len(whole) // 2], "damaged, incomplete or not a PyTorch checkpoint"),
        "empty": (b"", "is empty"),
        "text": (b"some text\n", "is a text file"),
        "zip": (archive.getvalue(), "zip archive without a checkpoint"),
        "noise": (os.urandom(5000), "damaged, incomplete or not a PyTorch checkpoint"),
    }
    for name, (content, problem) in files.items():
        (tmp_path / name).write_bytes(content)
        assert problem in refusal(tmp_path / name)
    assert "is a directory" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "absent")


def test_the_format_before_torch_1_6(convert, output, tmp_path):
    torch.save({"model": weights_in()}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert convert(tmp_path / "a.pth") == 0
    weights = CrossFormerForImageClassification.from_pretrained(output).classifier.weight
    assert torch.equal(weights, weights_in()["head.weight"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(refusal, convert, output, tmp_path, value):
    weights = weights_in()
    weights["head.bias"][3] = value
    checkpoint = saved(tmp_path / "a.pth", weights)
    message = refusal(checkpoint)
    assert "1 weights hold NaN or infinity: head.bias;" in message and "--allow-nonfinite" in message
    assert convert(checkpoint, "--allow-nonfinite") == 0
    bias = CrossFormerForImageClassification.from_pretrained(output).classifier.bias
    torch.testing.assert_close(bias, weights["head.bias"], rtol=0, atol=0, equal_nan=True)


# --- Outputs that fail; tests/test_output.py has more ---


def test_an_occupied_output(convert, output, capsys):
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    assert convert() == 1
    assert "is not empty; give --overwrite" in one_line(capsys)
    assert contents(output) == {"notes.txt": b"mine"}
    assert convert(MICRO_PP, "--overwrite") == 0
    assert {path.name for path in output.iterdir()} == {*FILES, "notes.txt"}
    assert (output / "notes.txt").read_text() == "mine"


@pytest.fixture
def full_disk():
    """A disk that takes no more than 100 kB a file, so that the weights do not fit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_full_disk(refusal, full_disk):
    message = refusal()
    assert "cannot be written" in message and "File too large" in message and "nothing was changed there" in message


def test_a_full_disk_spares_what_stood_there(convert, output, capsys, request):
    assert convert(MICRO_2021) == 0
    before = contents(output)
    capsys.readouterr()
    request.getfixturevalue("full_disk")
    assert convert(MICRO_PP, "--overwrite") == 1
    assert "File too large" in one_line(capsys)
    assert contents(output) == before


@pytest.mark.parametrize("step", ["read_weights", "port", "write_folder"])
def test_ctrl_c(refusal, monkeypatch, step):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(f"conversion.converting.{step}", interrupt)
    assert refusal(status=2) == "interrupted"


def test_ctrl_c_while_the_last_file_is_written_spares_what_stood_there(convert, output, monkeypatch, capsys):
    assert convert(MICRO_2021) == 0
    before = contents(output)
    capsys.readouterr()
    write_text = Path.write_text

    def interrupt(path, *arguments, **options):
        if path.name == "README.md":
            raise KeyboardInterrupt
        return write_text(path, *arguments, **options)

    monkeypatch.setattr(Path, "write_text", interrupt)
    assert convert(MICRO_PP, "--overwrite") == 2
    assert one_line(capsys) == "interrupted"
    assert contents(output) == before
    assert sorted(os.listdir(output.parent)) == ["config.json", "model"]


def test_a_folder_that_may_not_be_written(refusal, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert "cannot be written: Permission denied" in refusal()
