"""The segmentation examples do what they say: train, go on, evaluate, draw, and explain bad input in one line."""

import json
import re
import subprocess
import sys
from pathlib import Path

import datasets
import evaluate_segmentation
import finetune_segmentation
import numpy as np
import pytest
import segment_image
import torch
from PIL import Image
from safetensors.torch import load_file
from support.drawing import class_color, overlay
from support.pretrained import load_image_processor
from support.segmentation_inference import WholeImageSegmentation
from support.segmentation_models import load_segmentor
from support.segmentation_recipes import RECIPES
from support.segmentation_training import SegmentationTrainer
from support.segmentation_transforms import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, RandomRescale
from support.shapes import CLASS_NAMES, make_shapes_image, write_image_folder
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as v2F
from transformers import BertConfig, pipeline

from crossformer_hf import CrossFormerForImageClassification, preset_config


ROOT = Path(__file__).parents[1]
SIZE = 32
TINY = {"patch_sizes": [2, 4, 8, 16], "embed_dim": 16, "num_heads": [1, 1, 2], "depths": [1, 1, 1]}
TINY_IMAGES = f"--crop_size {SIZE} --shortest_edge {SIZE} --longest_edge {4 * SIZE}".split()
TINY_TRAINING = [
    *["--recipe", "shapes"],
    *TINY_IMAGES,
    *"--max_steps 4 --save_steps 2 --eval_steps 2 --logging_steps 1 --warmup_steps 0".split(),
    *"--per_device_train_batch_size 4 --architecture crossformer-64px --config_overrides".split(),
    json.dumps({**TINY, "fpn_hidden_size": 16, "decoder_hidden_size": 16}),
]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Folder with the folders `train` and `validation` of small images."""
    folder = tmp_path_factory.mktemp("data")
    write_image_folder(folder / "train", num_images=9, seed=0, size=SIZE)
    write_image_folder(folder / "validation", num_images=5, seed=1, size=SIZE)
    return folder


def finetune(output, data, *arguments):
    """Run the command on folders of images; return its exit status."""
    folders = ["--train_dir", str(data / "train"), "--validation_dir", str(data / "validation")]
    return finetune_segmentation.main(["--output_dir", str(output), *folders, *TINY_TRAINING, *arguments])


def evaluate(model, output, data, *arguments):
    """Run the command on a folder of images; return its exit status."""
    flags = ["--model_name_or_path", str(model), "--output_dir", str(output), "--device", "cpu"]
    return evaluate_segmentation.main([*flags, "--validation_dir", str(data / "validation"), *arguments])


def segment(model, output, *arguments):
    """Run the command; return its exit status."""
    flags = ["--model_name_or_path", str(model), "--output_dir", str(output), "--device", "cpu"]
    return segment_image.main([*flags, *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """Folder of a Semantic FPN after four steps."""
    output = tmp_path_factory.mktemp("runs") / "fpn"
    assert finetune(output, shapes) == 0
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def error_line(capsys):
    """The one line that says what is wrong."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in re.split(r"[\r\n]", text) if "error:" in line]
    assert len(lines) == 1, text
    return lines[0]


# Training


def test_saves_a_model_that_a_pipeline_runs(trained, shapes):
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in trained.iterdir()
    }
    scores = json.loads((trained / "eval_results.json").read_text())
    assert 0 <= scores["eval_mean_iou"] <= 1 and "eval_iou_background" in scores

    segments = pipeline("image-segmentation", str(trained))(Image.new("RGB", (50, 41)))
    assert {segment["label"] for segment in segments} <= set(CLASS_NAMES)
    assert sum(np.asarray(segment["mask"], dtype=int) for segment in segments).min() == 255
    assert segments[0]["mask"].size == (50, 41)


def test_interrupted_run_goes_on_to_the_same_weights(trained, shapes, tmp_path, capsys, monkeypatch):
    step = SegmentationTrainer.training_step

    def interrupted_step(self, *arguments, **options):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(SegmentationTrainer, "training_step", interrupted_step)
    assert finetune(tmp_path / "run", shapes) == 2
    assert "interrupted" in error_line(capsys)
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoint-9").mkdir()  # As if it had been killed while saving.
    assert finetune(tmp_path / "run", shapes) == 0
    assert "Going on from" in capsys.readouterr().out
    found, expected = weights(tmp_path / "run"), weights(trained)
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


def test_does_not_go_on_with_another_run(trained, shapes, capsys):
    assert finetune(trained, shapes, "--learning_rate", "0.5") == 1
    line = error_line(capsys)
    assert "`learning_rate` is 0.5" in line and "started with 0.002" in line and "--overwrite_output_dir" in line


def test_upernet_from_a_classifier_and_on(shapes, tmp_path):
    classifier = CrossFormerForImageClassification(preset_config("crossformer-64px", **TINY))
    classifier.save_pretrained(tmp_path / "classifier")
    two_steps = ["--head", "upernet", "--max_steps", "2", "--learning_rate", "1e-12"]
    path = ["--model_name_or_path", str(tmp_path / "classifier")]
    assert finetune(tmp_path / "upernet", shapes, *two_steps, *path) == 0
    assert json.loads((tmp_path / "upernet" / "config.json").read_text())["id2label"]["4"] == "star"
    backbone = weights(tmp_path / "upernet")["backbone.embeddings.patch_embeddings.projections.0.weight"]
    torch.testing.assert_close(backbone, classifier.crossformer.embeddings.patch_embeddings.projections[0].weight)

    assert evaluate(tmp_path / "upernet", tmp_path / "scores", shapes) == 0
    path = ["--model_name_or_path", str(tmp_path / "upernet")]
    assert finetune(tmp_path / "further", shapes, *two_steps, *path) == 0
    head = "decode_head.classifier.weight"
    torch.testing.assert_close(weights(tmp_path / "further")[head], weights(tmp_path / "upernet")[head])


def test_semantic_fpn_from_a_classifier(shapes, tmp_path):
    classifier = CrossFormerForImageClassification(preset_config("crossformer-64px", **TINY))
    classifier.save_pretrained(tmp_path / "classifier")
    path = ["--model_name_or_path", str(tmp_path / "classifier"), "--learning_rate", "1e-12", "--max_steps", "1"]
    assert finetune(tmp_path / "run", shapes, *path) == 0
    weight = weights(tmp_path / "run")["crossformer.embeddings.patch_embeddings.projections.0.weight"]
    torch.testing.assert_close(weight, classifier.crossformer.embeddings.patch_embeddings.projections[0].weight)


def test_upernet_from_random_weights(shapes, tmp_path):
    assert finetune(tmp_path / "run", shapes, "--head", "upernet", "--max_steps", "1") == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["auxiliary_in_channels"] == 64
    assert config["backbone_config"]["out_features"] == ["stage1", "stage2", "stage3"]


def test_dataset_whose_labels_count_from_one(shapes, tmp_path):
    """A saved data set, in which label 0 is ignored, trains as a folder does."""
    rows = {"photo": [], "annotation": []}
    for index in range(6):
        sample = make_shapes_image(seed=0, index=index, size=SIZE)
        rows["photo"].append(sample.image)
        rows["annotation"].append(Image.fromarray(sample.semantic_mask + 1))
    features = datasets.Features({"photo": datasets.Image(), "annotation": datasets.Image()})
    rows = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])}).save_to_disk(tmp_path / "saved")
    arguments = [
        "--dataset_name",
        str(tmp_path / "saved"),
        "--validation_split",
        "test",
        "--image_column_name",
        "photo",
    ]
    arguments += ["--label_column_name", "annotation", "--num_labels", "5", "--reduce_labels", "--max_steps", "1"]
    output = ["--output_dir", str(tmp_path / "run")]
    assert finetune_segmentation.main([*output, *TINY_TRAINING, *arguments]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["id2label"]["4"] == "LABEL_4"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_the_default_and_flags_go_first(recipe, tmp_path):
    flags = ["--recipe", recipe, "--output_dir", str(tmp_path)]
    model, _, augmentation, training = finetune_segmentation.build_parser(flags).parse(flags)
    for name, value in RECIPES[recipe].items():
        holder = next(part for part in (model, augmentation, training) if hasattr(part, name))
        value = json.loads(value) if name == "lr_scheduler_kwargs" else value
        assert getattr(holder, name) == value, name
    flags += ["--learning_rate", "0.125"]
    assert finetune_segmentation.build_parser(flags).parse(flags)[-1].learning_rate == 0.125
    flags += ["--num_train_epochs", "7"]
    training = finetune_segmentation.build_parser(flags).parse(flags)[-1]
    assert (training.max_steps, training.num_train_epochs) == (-1, 7)


def test_recipe_follows_from_the_data_and_overrides_from_the_architecture():
    for flags, recipe in {(): "shapes", ("--train_dir", "x"): "fpn", ("--dataset-name", "x"): "fpn"}.items():
        assert finetune_segmentation.recipe_defaults(list(flags))["recipe"] == recipe
    assert "config_overrides" not in finetune_segmentation.recipe_defaults(["--architecture", "crossformer-s"])


@pytest.mark.parametrize("decay_norms", [True, False])
def test_weight_decay_of_norms(decay_norms):
    model = CrossFormerForImageClassification(preset_config("crossformer-64px", **TINY))
    trainer = SegmentationTrainer.__new__(SegmentationTrainer)
    trainer.decay_norms = decay_norms
    decaying = trainer.get_decay_parameter_names(model)
    assert ("crossformer.layernorm.weight" in decaying) == decay_norms
    assert {"classifier.weight", "classifier.bias"} <= set(decaying)


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(512, 683, (512, 683)), (100, 1000, (205, 2048)), (683, 512, (683, 512))]
)
def test_rescaling_fits_both_edges(height, width, expected):
    resize = RandomRescale(longest_edge=2048, shortest_edge=512, min_ratio=1.0, max_ratio=1.0)
    assert resize(torch.zeros(3, height, width)).shape[-2:] == expected


# Bad input


def edit(path, change):
    """Open an image, change it and save it in its place."""
    image = change(Image.open(path))
    image.save(path)


def set_label(mask):
    pixels = np.array(mask)
    pixels[3, 4] = 9
    return Image.fromarray(pixels)


BROKEN = {
    "grey": (
        "images",
        lambda path: edit(path, lambda image: image.convert("L")),
        "mode L (1 channel)",
        "--convert_rgb",
    ),
    "RGBA": ("images", lambda path: edit(path, lambda image: image.convert("RGBA")), "4 channels", "--convert_rgb"),
    "palette": ("images", lambda path: edit(path, lambda image: image.convert("P")), "mode P", "--convert_rgb"),
    "size": ("masks", lambda path: edit(path, lambda mask: mask.resize((7, 9))), "7 x 9 pixels", "size of its image"),
    "label": ("masks", lambda path: edit(path, set_label), "has the label 9", "must be 0 to 4"),
    "colors": ("masks", lambda path: edit(path, lambda mask: mask.convert("RGB")), "3 channels", "grey or palette"),
    "cut off": ("images", lambda path: path.write_bytes(path.read_bytes()[:300]), "cannot be read", "--skip_broken"),
    "no image": ("masks", lambda path: path.write_text("hello"), "cannot be read", "mend it"),
}


@pytest.fixture
def copy(tmp_path):
    """A copy of the shapes that a test may damage."""
    write_image_folder(tmp_path / "data" / "train", num_images=4, seed=0, size=SIZE)
    write_image_folder(tmp_path / "data" / "validation", num_images=2, seed=1, size=SIZE)
    return tmp_path / "data"


@pytest.mark.parametrize("case", BROKEN)
def test_broken_file_is_named(case, copy, tmp_path, capsys):
    folder, damage, *fragments = BROKEN[case]
    path = copy / "train" / folder / "00002.png"
    damage(path)
    assert finetune(tmp_path / "run", copy) == 1
    line = error_line(capsys)
    assert str(path) in line and all(fragment in line for fragment in fragments), line


def test_training_goes_on_without_broken_files(copy, tmp_path, capsys):
    BROKEN["cut off"][1](copy / "train" / "images" / "00001.png")
    BROKEN["label"][1](copy / "validation" / "masks" / "00001.png")
    assert finetune(tmp_path / "run", copy, "--skip_broken", "--max_steps", "1") == 0
    said = capsys.readouterr()
    assert "1 of 4 training images are left out" in said.out + said.err
    assert re.search("skipped: .*train/images/00001.png", said.out + said.err)
    assert re.search("skipped: .*validation/masks/00001.png has the label 9", said.out + said.err)


def test_several_broken_files_are_named_in_one_line(copy, tmp_path, capsys):
    for name in ("00001.png", "00003.png"):
        BROKEN["cut off"][1](copy / "train" / "images" / name)
    assert finetune(tmp_path / "run", copy) == 1
    line = error_line(capsys)
    assert "00001.png" in line and "1 more of 4" in line and "00003.png" in line


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK"])
def test_images_can_be_converted(mode, copy, tmp_path):
    path = copy / "train" / "images" / "00001.png"
    Image.open(path).convert(mode).save(path.with_suffix(".tif"))
    path.unlink()
    assert finetune(tmp_path / "run", copy, "--convert_rgb", "--max_steps", "1") == 0


def remove_mask(data):
    (data / "train" / "masks" / "00001.png").unlink()


BAD_ARGUMENTS = [
    (["--train_dir", "nowhere"], "nowhere"),
    (["--architecture", "resnet"], "--architecture resnet"),
    (["--config_overrides", '{"depths": 3}'], "--config_overrides"),
    (["--num_labels", "7"], "--num_labels is 7, but there are 5"),
    (["--class_names", "nowhere.txt"], "nowhere.txt"),
    (["--model_name_or_path", "BERT"], "type bert"),
    (["--model_name_or_path", "./nowhere/at/all"], "./nowhere/at/all cannot be loaded"),
    (["--head", "upernet", "--per_device_train_batch_size", "1"], "at least 2"),
    (["--learning_rate", "0"], "--learning_rate is 0"),
    (["--warmup_steps", "4"], "--warmup_steps is 4"),
    (["--resume_from_checkpoint", "nowhere"], "is nowhere"),
    (["--dataset_name", "nowhere/at/all"], "nowhere/at/all"),
    (["--crop_size", "0"], "--crop_size is 0"),
    (["--min_ratio", "3", "--max_ratio", "2"], "--min_ratio is 3"),
    (["--learning_rate", "fast"], "fast"),
    (["--recipe", "swin"], "swin"),
    (["--no_such_flag"], "--no_such_flag"),
]


@pytest.mark.parametrize(("arguments", "fragment"), BAD_ARGUMENTS)
def test_bad_arguments(arguments, fragment, shapes, tmp_path, capsys):
    BertConfig().save_pretrained(tmp_path / "bert")
    arguments = [str(tmp_path / "bert") if argument == "BERT" else argument for argument in arguments]
    try:
        status = finetune(tmp_path / "run", shapes, *arguments)
    except SystemExit as leaving:
        status = leaving.code
    assert status in (1, 2)
    assert fragment in error_line(capsys)


def test_missing_mask_and_missing_held_out_images(copy, tmp_path, capsys):
    remove_mask(copy)
    assert finetune(tmp_path / "run", copy) == 1
    assert "00001.png has no mask" in error_line(capsys)
    flags = ["--train_dir", str(copy / "validation"), "--output_dir", str(tmp_path / "other"), *TINY_TRAINING]
    assert finetune_segmentation.main(flags) == 1
    assert "--validation_dir is not given" in error_line(capsys)


def test_broken_row_of_a_dataset_is_named(tmp_path, capsys):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    rows = datasets.Dataset.from_dict(
        {"image": [Image.new("RGB", (40, 40)), Image.new("L", (40, 40))], "label": [Image.new("L", (40, 40))] * 2},
        features=features,
    )
    datasets.DatasetDict({"train": rows, "validation": rows}).save_to_disk(tmp_path / "saved")
    flags = ["--output_dir", str(tmp_path / "run"), "--dataset_name", str(tmp_path / "saved"), *TINY_TRAINING]
    assert finetune_segmentation.main([*flags, "--num_labels", "2"]) == 1
    assert "`image` of train[1]" in error_line(capsys)
    for wrong, fragment in {"--label_column_name": "image, label", "--train_split": "train, validation"}.items():
        assert finetune_segmentation.main([*flags, "--num_labels", "2", "--overwrite_output_dir", wrong, "cat"]) == 1
        assert fragment in error_line(capsys)


@pytest.mark.parametrize("command", [evaluate_segmentation, segment_image])
@pytest.mark.parametrize("kind", ["bert", "classifier", "nothing"])
def test_folder_of_another_model(command, kind, tmp_path, capsys):
    folder = tmp_path / kind
    if kind == "bert":
        BertConfig(architectures=["BertModel"]).save_pretrained(folder)
    if kind == "classifier":
        CrossFormerForImageClassification(preset_config("crossformer-64px", **TINY)).save_pretrained(folder)
    if kind == "nothing":
        folder.mkdir()
    assert command.main(["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]) == 1
    assert str(folder) in error_line(capsys)


# Evaluation


def test_evaluation_goes_on_to_the_same_scores(trained, shapes, tmp_path, capsys, monkeypatch):
    assert evaluate(trained, tmp_path / "whole", shapes) == 0
    calls = []
    segment_whole = WholeImageSegmentation.__call__

    def interrupted(self, image):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return segment_whole(self, image)

    monkeypatch.setattr(WholeImageSegmentation, "__call__", interrupted)
    capsys.readouterr()
    assert evaluate(trained, tmp_path / "parts", shapes) == 2
    assert "interrupted" in error_line(capsys)
    assert not (tmp_path / "parts" / "results.json").exists()
    assert evaluate(trained, tmp_path / "parts", shapes, "--num_examples", "0") == 0
    assert len(calls) == 3 + 3
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")]
    assert results[0] == results[1] and results[0]["num_images"] == 5
    assert (tmp_path / "whole" / "per_class.txt").read_text().splitlines()[1].startswith("background")
    assert Image.open(tmp_path / "whole" / "examples.png").width > 500

    capsys.readouterr()
    assert evaluate(trained, tmp_path / "parts", shapes, "--flip") == 1
    assert "`flip` is True" in error_line(capsys)
    assert evaluate(trained, tmp_path / "parts", shapes, "--flip", "--overwrite") == 0


def test_interruption_between_counting_and_going_on(trained, shapes, tmp_path, monkeypatch):
    """The image that was being counted is counted once."""
    add = evaluate_segmentation.MeanIoU.add

    def interrupted(self, **arguments):
        """Count, and then be interrupted; `evaluate` wants a docstring."""
        add(self, **arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_segmentation.MeanIoU, "add", interrupted)
    assert evaluate(trained, tmp_path, shapes) == 2
    monkeypatch.undo()
    assert evaluate(trained, tmp_path, shapes, "--num_examples", "0") == 0
    with np.load(tmp_path / "evaluation_state.npz") as state:
        assert state["confusion"].sum() == 5 * SIZE * SIZE


def test_state_of_other_weights_is_refused(trained, shapes, tmp_path, capsys):
    assert evaluate(trained, tmp_path / "scores", shapes, "--num_examples", "0") == 0
    checkpoint = trained / "checkpoint-2"
    assert evaluate(checkpoint, tmp_path / "scores", shapes) == 1
    assert "digest of the weights" in error_line(capsys)


@pytest.mark.parametrize("scale", ["0", "-1", "inf"])
def test_bad_scale(scale, trained, shapes, tmp_path, capsys):
    assert evaluate(trained, tmp_path, shapes, "--scales", "1", scale) == 1
    assert "--scales has" in error_line(capsys)


def test_score_agrees_with_the_trainers(trained, shapes, tmp_path):
    """Images of exactly the test size need no resizing, so both compute the same."""
    assert evaluate(trained, tmp_path, shapes, "--num_examples", "0") == 0
    scores = json.loads((trained / "eval_results.json").read_text())
    mean_iou = json.loads((tmp_path / "results.json").read_text())["mean_iou"]
    assert mean_iou == pytest.approx(scores["eval_mean_iou"], abs=2e-3)


def test_scales_and_flips_are_averaged(trained):
    model = load_segmentor(str(trained))
    image = make_shapes_image(seed=4, index=0, size=50).image
    segmentation = WholeImageSegmentation(model, load_image_processor(str(trained)), scales=(1.0, 2.5), flip=True)

    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    total = 0
    for fit, aligned in ((32, 32), (80, 96)):
        view = v2F.resize(v2F.resize(pixels, [fit, fit], antialias=False), [aligned, aligned], antialias=False)
        view = v2F.normalize(view.float() / 255, list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD))[None]
        for flip in (False, True):
            with torch.no_grad():
                logits = model(view.flip(-1) if flip else view).logits
            logits = F.interpolate(logits, size=(aligned, aligned), mode="bilinear")
            probabilities = F.interpolate(logits, size=(50, 50), mode="bilinear").softmax(1)[0]
            total = total + (probabilities.flip(-1) if flip else probabilities)
    torch.testing.assert_close(segmentation.probabilities(image), total / 4, rtol=1e-5, atol=1e-5)


# Pictures


def test_picture_has_the_colors_of_its_legend(trained, tmp_path):
    assert segment(trained, tmp_path, "--mask") == 0
    labels = np.asarray(Image.open(tmp_path / "masks" / "shapes.png"))
    image = Image.open(tmp_path / "sample" / "shapes.png")
    assert labels.shape == (image.height, image.width)
    picture = np.asarray(Image.open(tmp_path / "shapes.png").convert("RGB"))
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert all(tuple(round(255 * x) for x in class_color(label)) in colors for label in np.unique(labels).tolist())
    expected = (255 * overlay(image, labels, len(CLASS_NAMES))).round().astype(int)
    assert tuple(expected[40, 40]) in {tuple(c) for c in (picture.reshape(-1, 3).astype(int)).tolist()}


def test_folder_of_images_is_drawn_once(trained, tmp_path, capsys):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.new("RGB", (1, 1), "red").save(tmp_path / "in" / "one.png")
    Image.new("RGB", (300, 40), "blue").save(tmp_path / "in" / "deep" / "wide.jpg")
    assert segment(trained, tmp_path / "out", tmp_path / "in") == 0
    first = tmp_path / "out" / "one.png"
    written = first.stat().st_mtime_ns
    (tmp_path / "out" / "deep" / "wide.png").unlink()
    assert segment(trained, tmp_path / "out", tmp_path / "in") == 0
    assert (tmp_path / "out" / "deep" / "wide.png").exists() and first.stat().st_mtime_ns == written
    assert segment(trained, tmp_path / "out", tmp_path / "in", "--overwrite") == 0
    assert first.stat().st_mtime_ns > written


def test_unusable_images_are_named(trained, tmp_path, capsys):
    Image.new("L", (20, 20)).save(tmp_path / "grey.png")
    (tmp_path / "text.jpg").write_text("hello")
    assert segment(trained, tmp_path / "out", tmp_path / "grey.png") == 1
    assert "grey.png is of mode L" in error_line(capsys)
    assert segment(trained, tmp_path / "out", tmp_path / "grey.png", "--convert_rgb") == 0
    assert segment(trained, tmp_path / "out", tmp_path / "text.jpg") == 1
    assert "text.jpg cannot be read" in error_line(capsys)
    assert segment(trained, tmp_path / "more", tmp_path / "text.jpg", tmp_path / "grey.png", "--skip_broken") == 0
    assert segment(trained, tmp_path / "out", tmp_path / "nowhere.png") == 1
    Image.new("RGB", (20, 20)).save(tmp_path / "text.png")
    capsys.readouterr()
    assert segment(trained, tmp_path / "out", tmp_path / "text.png", tmp_path / "text.jpg") == 1
    assert "would both be drawn" in error_line(capsys)


# The commands


@pytest.mark.parametrize("command", [finetune_segmentation, evaluate_segmentation, segment_image])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        command.main(["--help"])
    assert leaving.value.code == 0
    assert "--model_name_or_path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "package"),
    [("finetune_segmentation", "accelerate"), ("evaluate_segmentation", "numpy"), ("segment_image", "numpy")],
)
def test_missing_package_is_one_line(script, package):
    code = f"import runpy, sys; sys.modules['{package}'] = None; runpy.run_path('examples/{script}.py')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and f"`{package}`" in result.stderr


@pytest.mark.slow
def test_mean_iou_on_shapes(tmp_path):
    """The commands as `examples/README.md` has them, with the data that they draw."""
    assert finetune_segmentation.main(["--output_dir", str(tmp_path / "shapes")]) == 0
    held_out = tmp_path / "shapes" / "shapes"
    assert evaluate(tmp_path / "shapes", tmp_path / "scores", held_out) == 0
    assert json.loads((tmp_path / "scores" / "results.json").read_text())["mean_iou"] >= 0.9
    assert segment(tmp_path / "shapes", tmp_path / "pictures", held_out / "validation" / "images" / "00000.png") == 0
