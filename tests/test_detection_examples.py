"""The detection examples do what they say: train, go on, evaluate, draw, and explain bad input in one line."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import datasets
import detect_objects
import evaluate_detection
import finetune_detection
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks
from safetensors.torch import load_file
from support import detection_training
from support.coco_annotations import Category, check_annotation, clip_box, masks_of
from support.coco_scores import SCORES, coco_results, coco_scores, ground_truth
from support.coco_shapes import coco_annotations, encode_mask, write_coco_folder
from support.detection_data import DetectionDataArguments, usable_samples, validation_source
from support.detection_drawing import color_of
from support.detection_inference import Detection, ObjectFinder
from support.detection_recipes import RECIPES
from support.detection_training import DetectionTrainer, learning_rate_factor
from support.detection_transforms import DetectionExamples, collate
from support.errors import InputError
from support.shapes import make_shapes_image
from transformers import BertConfig, pipeline

from crossformer_hf import CrossFormerForImageClassification, CrossFormerImageProcessor, preset_config


ROOT = Path(__file__).parents[1]
SIZE = 32
NAMES = ["circle", "square", "triangle", "star"]
TINY = {"patch_sizes": [4, 8], "embed_dim": 16, "num_heads": [1, 1, 2], "depths": [1, 1, 1]}
TINY_DETR = {"d_model": 64, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
TINY_DETR |= {f"{part}_{field}": 2 for part in ("encoder", "decoder") for field in ("attention_heads", "ffn_dim")}
TINY_TRAINING = [
    *f"--recipe shapes_mask_rcnn --shortest_edge {SIZE} --longest_edge {4 * SIZE}".split(),
    *"--max_steps 4 --save_steps 2 --eval_steps 2 --logging_steps 1 --warmup_steps 0".split(),
    *"--per_device_train_batch_size 2 --architecture crossformer-64px --config_overrides".split(),
    json.dumps({**TINY, "fpn_hidden_size": 8}),
]
SHOWN_SCORES = ["box_ap", "box_ap50"]
TWO_STEPS = "--max_steps 2 --eval_strategy no --save_strategy no".split()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Folder with the folders `train` and `validation` of small images."""
    folder = tmp_path_factory.mktemp("data")
    write_coco_folder(folder / "train", num_images=7, seed=0, size=SIZE)
    write_coco_folder(folder / "validation", num_images=5, seed=1, size=SIZE)
    return folder


def finetune(output, data, *arguments):
    """Run the command on folders of images; return its exit status."""
    folders = ["--train_dir", str(data / "train"), "--validation_dir", str(data / "validation")]
    return finetune_detection.main(["--output_dir", str(output), *folders, *TINY_TRAINING, *arguments])


def evaluate(model, output, data, *arguments):
    """Run the command on a folder of images; return its exit status."""
    flags = ["--model_name_or_path", str(model), "--output_dir", str(output), "--device", "cpu"]
    return evaluate_detection.main([*flags, "--validation_dir", str(data / "validation"), *arguments])


def detect(model, output, *arguments):
    """Run the command; return its exit status."""
    flags = ["--model_name_or_path", str(model), "--output_dir", str(output), "--device", "cpu"]
    return detect_objects.main([*flags, *map(str, arguments)])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, shapes):
    """Folder of a Mask R-CNN after four steps."""
    output = tmp_path_factory.mktemp("runs") / "mask_rcnn"
    assert finetune(output, shapes) == 0
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def assert_same_weights(folder, other):
    """To the last bit."""
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def flags_of(head):
    """Flags for a small model with this head."""
    overrides = {"head_overrides": TINY_DETR, "config_overrides": TINY} if "detr" in head else {}
    return ["--head", head, *(part for name in overrides for part in (f"--{name}", json.dumps(overrides[name])))]


def error_line(capsys):
    """The one line that says what is wrong."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in re.split(r"[\r\n]", text) if "error:" in line]
    assert len(lines) == 1, text
    return lines[0]


def edit_json(path, change):
    """Change what a JSON file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# Training


def test_saves_a_model_and_scores(trained):
    assert {"config.json", "model.safetensors", "preprocessor_config.json"} <= {
        path.name for path in trained.iterdir()
    }
    config = json.loads((trained / "config.json").read_text())
    assert config["architectures"] == ["CrossFormerForInstanceSegmentation"]
    assert list(config["id2label"].values()) == NAMES
    scores = json.loads((trained / "eval_results.json").read_text())
    assert 0 <= scores["eval_mask_ap50"] <= 1 and 0 <= scores["eval_box_ap_circle"] <= 1


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "deformable_detr", "detr"])
def test_interrupted_run_goes_on_to_the_same_weights(head, shapes, tmp_path, capsys, monkeypatch):
    flags = [*flags_of(head), "--eval_strategy", "no"]
    assert finetune(tmp_path / "whole", shapes, *flags) == 0
    step = DetectionTrainer.training_step

    def interrupted_step(self, *arguments, **options):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    monkeypatch.setattr(DetectionTrainer, "training_step", interrupted_step)
    assert finetune(tmp_path / "run", shapes, *flags) == 2
    assert "interrupted" in error_line(capsys)
    monkeypatch.undo()
    (tmp_path / "run" / "checkpoint-9").mkdir()  # As if it had been killed while saving.
    assert finetune(tmp_path / "run", shapes, *flags) == 0
    assert "Going on from" in capsys.readouterr().out
    assert_same_weights(tmp_path / "run", tmp_path / "whole")


def test_best_model_is_kept(shapes, tmp_path, monkeypatch):
    scores = iter([0.5, 0.4, 0.3])
    monkeypatch.setattr(detection_training, "scores_of_kind", lambda *_: dict.fromkeys(SHOWN_SCORES, next(scores)))
    best = "--load_best_model_at_end true --metric_for_best_model eval_box_ap".split()
    assert finetune(tmp_path, shapes, *flags_of("deformable_detr"), *best) == 0
    assert_same_weights(tmp_path, tmp_path / "checkpoint-2")


def test_does_not_go_on_with_another_run(trained, shapes, capsys):
    assert finetune(trained, shapes, "--learning_rate", "0.5") == 1
    line = error_line(capsys)
    assert "`learning_rate` is 0.5" in line and "--overwrite_output_dir" in line


@pytest.fixture(scope="module")
def classifier():
    """A small classifier with random weights."""
    return CrossFormerForImageClassification(preset_config("crossformer-64px", **TINY))


@pytest.mark.parametrize("head", ["retinanet", "mask_rcnn", "deformable_detr", "detr"])
def test_head_on_a_pretrained_classifier(head, classifier, shapes, tmp_path):
    """Training starts from the classifier's weights, scores boxes, and what it saves is evaluated and drawn."""
    classifier.save_pretrained(tmp_path / "classifier")
    path = ["--model_name_or_path", str(tmp_path / "classifier")]
    flags = ["--head", head, *path, *TWO_STEPS, "--learning_rate", "1e-12", "--config_overrides", "{}"]
    if "detr" in head:
        flags += ["--head_overrides", json.dumps(TINY_DETR)]
    else:
        flags += ["--config_overrides", json.dumps({"fpn_hidden_size": 8})]
    run = tmp_path / "run"
    assert finetune(run, shapes, *flags) == 0
    kernel = "embeddings.patch_embeddings.projections.0.weight"
    found = next(weight for name, weight in weights(run).items() if name.endswith(kernel))
    torch.testing.assert_close(found, classifier.crossformer.get_parameter(kernel).detach())

    assert evaluate(run, tmp_path / "scores", shapes, "--num_examples", "1") == 0
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert ("mask" in results) == (head == "mask_rcnn") and 0 <= results["box"]["ap50"] <= 1
    assert detect(run, tmp_path / "pictures") == 0
    assert Image.open(tmp_path / "pictures" / "shapes.png").width > 500
    if head in ("retinanet", "deformable_detr"):
        found = pipeline("object-detection", str(run), threshold=0.0)(Image.new("RGB", (50, 41)))
        assert all(one["label"] in NAMES for one in found)


def test_goes_on_from_a_detector(shapes, trained, tmp_path):
    flags = ["--model_name_or_path", str(trained), "--config_overrides", "{}", "--learning_rate", "1e-12"]
    assert finetune(tmp_path / "run", shapes, *TWO_STEPS, *flags) == 0
    name = "mask_head.classifier.weight"
    torch.testing.assert_close(weights(tmp_path / "run")[name], weights(trained)[name])


def rows_of_shapes(num_images, as_lists):
    """Images and objects as a data set of `datasets`, whose objects are lists of fields or a list of objects."""
    category = datasets.ClassLabel(names=NAMES)
    fields = {"bbox": datasets.List(datasets.Value("float32")), "category": category}
    objects = datasets.List(fields) if as_lists else {name: datasets.List(kind) for name, kind in fields.items()}
    rows = {"photo": [], "things": []}
    for index in range(num_images):
        sample = make_shapes_image(seed=0, index=index, size=SIZE)
        found = [
            {"bbox": annotation["bbox"], "category": annotation["category_id"] - 1}
            for annotation in coco_annotations(sample, 1, 1)
        ]
        columns = {name: [one[name] for one in found] for name in fields}
        rows["photo"].append(sample.image)
        rows["things"].append(found if as_lists else columns)
    features = datasets.Features({"photo": datasets.Image(), "things": objects})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.mark.parametrize("as_lists", [True, False])
def test_dataset(as_lists, tmp_path):
    rows = rows_of_shapes(5, as_lists)
    datasets.DatasetDict({"train": rows, "test": rows.select([0, 1])}).save_to_disk(tmp_path / "saved")
    flags = f"--dataset_name {tmp_path / 'saved'} --validation_split test --image_column_name photo".split()
    flags += [*"--objects_column_name things --head retinanet --output_dir".split(), str(tmp_path / "run")]
    assert finetune_detection.main([*TINY_TRAINING, *TWO_STEPS, *flags]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["id2label"]["3"] == "star"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_is_the_default_and_flags_go_first(recipe, tmp_path):
    flags = ["--recipe", recipe, "--output_dir", str(tmp_path)]
    parts = finetune_detection.build_parser(flags).parse(flags)
    for name, value in RECIPES[recipe].items():
        holder = next(part for part in parts if hasattr(part, name))
        value = json.loads(value) if name == "lr_scheduler_kwargs" else value
        assert getattr(holder, name) == value, name
    flags += ["--learning_rate", "0.125", "--num_train_epochs", "7"]
    training = finetune_detection.build_parser(flags).parse(flags)[-1]
    assert (training.learning_rate, training.max_steps, training.num_train_epochs) == (0.125, -1, 7)


@pytest.mark.parametrize(
    ("flags", "recipe"),
    [
        ("", "shapes_mask_rcnn"),
        ("--head retinanet", "shapes_retinanet"),
        ("--head detr", "shapes_mask_rcnn"),
        ("--train_dir x", "mask_rcnn"),
        ("--dataset_name x --head retinanet", "retinanet"),
    ],
)
def test_recipe_follows_from_the_data(flags, recipe, tmp_path):
    assert finetune_detection.recipe_defaults(flags.split())["recipe"] == recipe


def test_learning_rate_of_the_original_recipe():
    """Of 12 epochs of 1000 steps, as mmcv computes it."""
    factors = [learning_rate_factor(step, 500, [8000, 11000]) for step in (0, 250, 500, 7999, 8000, 11000)]
    assert factors == pytest.approx([0.001, 0.5005, 1, 1, 0.1, 0.01])


# What is learnt


def test_example_is_mirrored_with_its_boxes_and_masks(shapes):
    samples = samples_of(shapes / "validation")
    processor = CrossFormerImageProcessor(size={"shortest_edge": 3 * SIZE, "longest_edge": 9 * SIZE})
    plain, mirrored = (DetectionExamples(samples, processor, flip, True, seed=0)[0] for flip in (0.0, 1.0))
    torch.testing.assert_close(mirrored["pixel_values"], plain["pixel_values"].flip(-1))
    torch.testing.assert_close(mirrored["labels"]["masks"], plain["labels"]["masks"].flip(-1))
    boxes = plain["labels"]["boxes"].clone()
    boxes[:, 0] = 1 - boxes[:, 0]
    torch.testing.assert_close(mirrored["labels"]["boxes"], boxes)


def test_example_is_what_the_image_processor_makes(shapes):
    samples = samples_of(shapes / "validation")
    processor = CrossFormerImageProcessor(size={"shortest_edge": 3 * SIZE, "longest_edge": 9 * SIZE})
    example = DetectionExamples(samples, processor, 0.0, True, seed=0)[0]
    content = json.loads((shapes / "validation" / "annotations.json").read_text())
    annotations = [row for row in content["annotations"] if row["image_id"] == 1]
    for row in annotations:  # What the processor takes.
        counts = dict(row["segmentation"], counts=row["segmentation"]["counts"].encode())
        row["segmentation"] = counts_of(coco_masks.decode(counts))
        row["category_id"] -= 1
    inputs = processor(
        samples[0][0],
        {"image_id": 1, "annotations": annotations},
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    torch.testing.assert_close(example["pixel_values"], inputs["pixel_values"][0])
    for name in ("class_labels", "boxes", "masks"):
        torch.testing.assert_close(example["labels"][name], inputs["labels"][0][name])


def counts_of(mask):
    """Booleans as run lengths down the columns, not compressed."""
    flat = np.concatenate([[0], mask.flatten(order="F"), [2]])
    starts = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(np.concatenate([[0], starts])).tolist()}


def test_batch_is_padded_at_the_right_and_bottom():
    examples = [{"pixel_values": torch.ones(3, *size), "labels": {}} for size in ((4, 6), (5, 3))]
    batch = collate(examples)
    assert batch["pixel_values"].shape == (2, 3, 5, 6)
    assert batch["pixel_mask"].sum((1, 2)).tolist() == [24, 15]
    assert batch["pixel_mask"][1, :, :3].all() and not batch["pixel_mask"][1, :, 3:].any()


def samples_of(folder, with_masks=True, **arguments):
    """Checked images of a folder."""
    arguments = DetectionDataArguments(validation_dir=str(folder), **arguments)
    return usable_samples(validation_source(arguments), arguments, with_masks, lambda name, size: None, "validation")


# Bad input


@pytest.fixture
def copy(tmp_path):
    """A copy of the shapes that a test may damage."""
    write_coco_folder(tmp_path / "data" / "train", num_images=4, seed=0, size=SIZE)
    write_coco_folder(tmp_path / "data" / "validation", num_images=2, seed=1, size=SIZE)
    return tmp_path / "data"


def setting(**fields):
    """What gives the fields to an annotation."""
    return lambda annotation, content: annotation.update(fields)


def without(field):
    """What takes a field from an annotation."""
    return lambda annotation, content: annotation.pop(field)


ZEROS = {"size": [SIZE, SIZE], "counts": [SIZE * SIZE]}
BROKEN = {
    "empty": (lambda annotation, content: [annotation.pop(x) for x in ("bbox", "segmentation")], "`bbox` is None"),
    "no width": (setting(bbox=[3, 4, 0, 5]), "must be positive"),
    "negative": (setting(bbox=[3, 4, 5, -1]), "must be positive"),
    "outside": (setting(bbox=[40, 4, 5, 5]), "outside the image of 32 x 32"),
    "left of it": (setting(bbox=[-9, 4, 9, 5]), "outside the image"),
    "three numbers": (setting(bbox=[3, 4, 5]), "four numbers"),
    "no number": (setting(bbox=[3, 4, 5, math.nan]), "four numbers"),
    "text": (setting(bbox=[3, 4, 5, "6"]), "four numbers"),
    "category": (setting(category_id=5), "`category_id` is 5, but it must be one of the ids of the 4 categories"),
    "no category": (without("category_id"), "`category_id` is None"),
    "no mask": (without("segmentation"), "no `segmentation`"),
    "mask size": (setting(segmentation={"size": [7, 9], "counts": [63]}), "[7, 9], but the image's is [32, 32]"),
    "mask counts": (setting(segmentation={"size": [32, 32], "counts": [3, 4]}), "add up to 1024"),
    "mask text": (setting(segmentation={"size": [32, 32], "counts": "oooooo"}), "run lengths that cannot be read"),
    "empty mask": (setting(segmentation=ZEROS), "no pixel"),
    "line": (setting(segmentation=[[1, 2, 3, 4]]), "at least three corners"),
    "polygon outside": (setting(segmentation=[[50, 50, 60, 50, 60, 60]]), "no pixel"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_annotation_is_named(case, copy, tmp_path, capsys):
    damage, fragment = BROKEN[case]
    edit_json(copy / "train" / "annotations.json", lambda content: damage(content["annotations"][3], content))
    assert finetune(tmp_path / "run", copy) == 1
    line = error_line(capsys)
    assert re.search(r"train/images/0000\d.png, annotation 4: ", line) and fragment in line, line
    assert "--skip_broken" in line


BROKEN_FILES = {
    "no JSON": (lambda path: path.write_text("hello"), "cannot be read as a COCO annotation file"),
    "list": (lambda path: path.write_text("[]"), "`images` must be a list"),
    "no objects": (lambda path: edit_json(path, lambda content: content["annotations"].clear()), "has no objects"),
    "no key": (lambda path: edit_json(path, lambda content: content.pop("categories")), "`categories` must be"),
    "no categories": (lambda path: edit_json(path, lambda content: content["categories"].clear()), "no categories"),
    "twice": (
        lambda path: edit_json(path, lambda content: content["categories"].append(content["categories"][0])),
        "two categories with the id 1",
    ),
    "image twice": (
        lambda path: edit_json(path, lambda content: content["images"].append(content["images"][0])),
        "images[4]: the `id` 1 is that of",
    ),
    "no such image": (
        lambda path: edit_json(path, lambda content: content["annotations"][3].update(image_id=99)),
        "annotation 4: `image_id` is 99",
    ),
    "no name": (
        lambda path: edit_json(path, lambda content: content["images"][2].pop("file_name")),
        "images[2]: `file_name` is None",
    ),
    "size": (
        lambda path: edit_json(path, lambda content: content["images"][2].update(width=50)),
        "00002.png is 32 x 32 pixels, but its annotations are for 50 x 32",
    ),
    "cut off": (
        lambda path: (path.parent / "images" / "00002.png").write_bytes(b"\x89PNG"),
        "00002.png cannot be read",
    ),
    "missing": (lambda path: (path.parent / "images" / "00002.png").unlink(), "00002.png cannot be read"),
    "grey": (
        lambda path: Image.new("L", (32, 32)).save(path.parent / "images" / "00002.png"),
        "00002.png is of mode L",
    ),
    "narrow": (
        lambda path: [
            Image.new("RGB", (200, 2)).save(path.parent / "images" / "00002.png"),
            edit_json(path, lambda content: content["images"][2].update(width=200, height=2)),
        ],
        "00002.png is 200 x 2 pixels, which resizing makes 128 x 1, but the model takes sides of at least 4",
    ),
    "no file": (lambda path: path.unlink(), "annotations.json cannot be read"),
    "other names": (
        lambda path: edit_json(path, lambda content: content["categories"][1].update(name="cube")),
        "other categories than",
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_file_is_named(case, copy, tmp_path, capsys):
    damage, fragment = BROKEN_FILES[case]
    damage(copy / "train" / "annotations.json")
    assert finetune(tmp_path / "run", copy) == 1
    assert fragment in error_line(capsys)


def test_training_goes_on_without_what_is_broken(copy, tmp_path, capsys):
    def damage(content):
        content["annotations"][3]["bbox"][2] = 0
        content["annotations"][0]["category_id"] = 9

    edit_json(copy / "train" / "annotations.json", damage)
    (copy / "train" / "images" / "00003.png").unlink()
    assert finetune(tmp_path / "run", copy, *TWO_STEPS) == 1
    line = error_line(capsys)
    assert "annotation 1: `category_id`" in line and "2 more are broken" in line and "00003.png" in line
    assert finetune(tmp_path / "run", copy, "--skip_broken", "--overwrite_output_dir", *TWO_STEPS) == 0
    said = "".join(capsys.readouterr())
    assert "3 training images or annotations are left out" in said
    assert re.search("skipped: .*annotation 4: `bbox`", said) and "3 images of 4 classes" in said


def test_odd_but_legal_annotations_train(copy, tmp_path):
    """An image without objects, a crowd, a box partly outside, a polygon, a tiny image."""

    def change(content):
        image = {"id": 77, "file_name": "empty.png", "width": 3, "height": 2}
        Image.new("RGB", (3, 2)).save(copy / "train" / "images" / "empty.png")
        content["images"].append(image)
        content["annotations"][0].update(iscrowd=1, bbox=[-5, -5, 100, 100])
        content["annotations"][1].update(bbox=[-3, 20, 10, 30], segmentation=[[0, 20, 7, 20, 7, 31]])
        content["annotations"].append({"image_id": 77, "category_id": 2, "bbox": [1, 0, 1, 1], "id": 500})
        content["annotations"][-1]["segmentation"] = {"size": [2, 3], "counts": [2, 1, 3]}
        content["images"].append({"id": 78, "file_name": "00000.png"})  # the same file, nothing in it

    edit_json(copy / "train" / "annotations.json", change)
    assert finetune(tmp_path / "run", copy, *TWO_STEPS) == 0
    samples = samples_of(copy / "train")
    assert samples[0][1][0]["iscrowd"] == 1 and samples[0][1][1]["bbox"] == [0, 20, 7, 12]
    assert [len(samples[index][1]) for index in (4, 5)] == [1, 0]
    processor = CrossFormerImageProcessor(size={"shortest_edge": SIZE, "longest_edge": 4 * SIZE})
    examples = DetectionExamples(samples, processor, 1.0, True, seed=0)
    assert len(examples[0]["labels"]["boxes"]) == len(samples[0][1]) - 1
    assert examples[5]["labels"]["masks"].shape == (0, SIZE, SIZE)


def test_box_inside_is_not_touched():
    assert clip_box([0.1, 0.2, 0.3, 0.7], (1, 1)) == [0.1, 0.2, 0.3, 0.7]
    assert clip_box([-1, 3, 2, 3], (5, 9)) == [0, 3, 1, 2]


def test_masks_of_all_kinds_are_read():
    mask = np.zeros((6, 5), dtype=bool)
    mask[1:4, 1:4] = True
    polygon, runs = [[1, 1, 4, 1, 4, 4, 1, 4]], counts_of(mask)
    for segmentation in (polygon, runs, encode_mask(mask)):
        annotation = {"bbox": [1, 1, 3, 3], "category_id": 7, "segmentation": segmentation}
        checked = check_annotation(annotation, (6, 5), [Category(7, "square")], with_masks=True)
        assert checked["area"] == 9 and checked["label"] == 0
        np.testing.assert_array_equal(masks_of([checked], (6, 5))[0], mask)
    with pytest.raises(InputError, match="no `segmentation`"):
        check_annotation({"bbox": [1, 1, 3, 3], "category_id": 7}, (6, 5), [Category(7, "square")], with_masks=True)


BAD_ARGUMENTS = [
    (["--train_dir", "nowhere"], "nowhere"),
    (["--architecture", "resnet"], "--architecture resnet"),
    (["--config_overrides", '{"depths": 3}'], "--config_overrides"),
    (["--config_overrides", "depths"], "--config_overrides is depths, which is no JSON"),
    (["--head_overrides", '{"d_model": 3}'], "--head_overrides is for DETR heads"),
    (["--model_name_or_path", "BERT"], "type bert"),
    (["--model_name_or_path", "./nowhere/at/all"], "./nowhere/at/all cannot be loaded"),
    (["--learning_rate", "0"], "--learning_rate is 0"),
    (["--warmup_steps", "4"], "--warmup_steps is 4"),
    (["--lr_drops", "8", "11"], "--lr_drops has 8"),
    (["--resume_from_checkpoint", "nowhere"], "is nowhere"),
    (["--dataset_name", "nowhere/at/all"], "nowhere/at/all"),
    (["--shortest_edge", "999"], "--shortest_edge is 999"),
    (["--flip_probability", "2"], "--flip_probability is 2"),
    (["--recipe", "3x"], "3x"),
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


@pytest.mark.parametrize("command", [evaluate_detection, detect_objects])
@pytest.mark.parametrize("kind", ["bert", "classifier", "nothing"])
def test_folder_of_another_model(command, kind, classifier, tmp_path, capsys):
    folder = tmp_path / kind
    if kind == "bert":
        BertConfig(architectures=["BertModel"]).save_pretrained(folder)
    if kind == "classifier":
        classifier.save_pretrained(folder)
    if kind == "nothing":
        folder.mkdir()
    assert command.main(["--model_name_or_path", str(folder), "--output_dir", str(tmp_path / "out")]) == 1
    assert str(folder) in error_line(capsys)


# Evaluation


def test_evaluation_goes_on_to_the_same_scores(trained, shapes, tmp_path, capsys, monkeypatch):
    assert evaluate(trained, tmp_path / "whole", shapes) == 0
    calls, find = [], ObjectFinder.__call__

    def interrupted(self, images):
        calls.append(images)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return find(self, images)

    monkeypatch.setattr(ObjectFinder, "__call__", interrupted)
    capsys.readouterr()
    assert evaluate(trained, tmp_path / "parts", shapes) == 2
    assert "interrupted" in error_line(capsys)
    assert not (tmp_path / "parts" / "results.json").exists()
    with (tmp_path / "parts" / "detections.jsonl").open("a") as file:
        file.write('{"image_id": 3, "detec')  # As if it had been killed while writing.
    assert evaluate(trained, tmp_path / "parts", shapes, "--num_examples", "0") == 0
    assert len(calls) == 3 + 3
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "parts")]
    assert results[0] == results[1] and results[0]["num_images"] == 5
    assert (tmp_path / "whole" / "per_class.txt").read_text().splitlines()[1].startswith("circle")
    assert Image.open(tmp_path / "whole" / "examples.png").width > 500

    capsys.readouterr()
    assert evaluate(trained / "checkpoint-2", tmp_path / "parts", shapes) == 1
    assert "digest of the weights" in error_line(capsys)
    assert evaluate(trained / "checkpoint-2", tmp_path / "parts", shapes, "--overwrite") == 0


def test_score_agrees_with_the_trainers(trained, shapes, tmp_path):
    assert evaluate(trained, tmp_path, shapes, "--num_examples", "0", "--batch_size", "3") == 0
    scores = json.loads((trained / "eval_results.json").read_text())
    results = json.loads((tmp_path / "results.json").read_text())
    for kind in ("box", "mask"):
        assert results[kind]["ap50"] == pytest.approx(scores[f"eval_{kind}_ap50"], abs=1e-6)


def test_truth_scores_one(shapes):
    """Found exactly what is there, with a crowd, whose objects neither count nor cost."""
    samples = samples_of(shapes / "validation")
    categories = [Category(index + 1, name) for index, name in enumerate(NAMES)]
    samples.images[1].annotations[0]["iscrowd"] = 1
    results = []
    for checked in samples.images:
        found = [
            Detection(
                one["label"], 0.9, [*one["bbox"][:2], *np.add(one["bbox"][:2], one["bbox"][2:])], one["segmentation"]
            )
            for one in checked.annotations
        ]
        results += coco_results(found, checked.image.id, [1, 2, 3, 4])
    truth = ground_truth(samples.images, categories)
    for kind in ("box", "mask"):
        scores = coco_scores(truth, results, kind)
        assert scores["ap"] == pytest.approx(1) and set(SCORES) <= set(scores)
        assert [row["name"] for row in scores["classes"]] == NAMES
        assert coco_scores(truth, [], kind)["ap"] == 0


@pytest.mark.parametrize("rename", [False, True])
def test_category_ids_with_gaps(rename, trained, shapes, tmp_path, capsys):
    """The ids of the file, with gaps and in any order, come back in the results; names decide, or else the order."""
    ids = {1: 90, 2: 5, 3: 7, 4: 1} if not rename else {1: 1, 2: 5, 3: 7, 4: 90}

    def renumber(content):
        for row in content["categories"]:
            row.update(id=ids[row["id"]], **({"name": f"my {row['name']}"} if rename else {}))
        for row in content["annotations"]:
            row["category_id"] = ids[row["category_id"]]

    write_coco_folder(tmp_path / "data" / "validation", num_images=5, seed=1, size=SIZE)
    edit_json(tmp_path / "data" / "validation" / "annotations.json", renumber)
    for name, data in {"plain": shapes, "gaps": tmp_path / "data"}.items():
        assert evaluate(trained, tmp_path / name, data, "--num_examples", "1") == 0
    assert ("taken in order" in capsys.readouterr().out) == rename
    plain, gaps = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "gaps"))
    assert gaps["box"]["ap"] == pytest.approx(plain["box"]["ap"])
    plain, gaps = (
        [row for line in (tmp_path / name / "detections.jsonl").open() for row in json.loads(line)["detections"]]
        for name in ("plain", "gaps")
    )
    assert [row["category_id"] for row in gaps] == [ids[row["category_id"]] for row in plain]


def test_training_with_gaps(copy, tmp_path):
    def renumber(content):
        for row in content["categories"]:
            row["id"] *= 10
        for row in content["annotations"]:
            row["category_id"] *= 10

    edit_json(copy / "train" / "annotations.json", renumber)
    assert finetune(tmp_path / "run", copy, *TWO_STEPS, "--head", "retinanet") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["id2label"]["0"] == "circle"


def test_other_number_of_categories(trained, copy, tmp_path, capsys):
    edit_json(
        copy / "validation" / "annotations.json",
        lambda content: content["categories"].append({"id": 9, "name": "heart"}),
    )
    assert evaluate(trained, tmp_path / "scores", copy) == 1
    assert "has 5 categories" in error_line(capsys)


# Pictures


def test_picture_shows_boxes_of_what_was_found(trained, tmp_path):
    assert detect(trained, tmp_path, "--json", "--threshold", "0") == 0
    objects = json.loads((tmp_path / "shapes.json").read_text())["objects"]
    picture = np.asarray(Image.open(tmp_path / "shapes.png").convert("RGB"))
    colors = {tuple(color) for color in picture.reshape(-1, 3).tolist()}
    assert objects and {"label", "score", "box", "segmentation"} <= set(objects[0])
    for name in {one["label"] for one in objects}:
        assert tuple(round(255 * x) for x in color_of(NAMES.index(name))) in colors
    assert coco_masks.decode(objects[0]["segmentation"]).shape == (96, 96)


def test_folder_of_images_is_drawn_once(trained, tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (1, 1), "red").save(tmp_path / "in" / "one.png")
    Image.new("RGB", (100, 40), "blue").save(tmp_path / "in" / "wide.jpg")
    assert detect(trained, tmp_path / "out", tmp_path / "in") == 0
    first = tmp_path / "out" / "one.png"
    written = first.stat().st_mtime_ns
    (tmp_path / "out" / "wide.png").unlink()
    assert detect(trained, tmp_path / "out", tmp_path / "in") == 0
    assert (tmp_path / "out" / "wide.png").exists() and first.stat().st_mtime_ns == written
    assert detect(trained, tmp_path / "out", tmp_path / "in", "--overwrite") == 0
    assert first.stat().st_mtime_ns > written


def test_unusable_images_are_named(trained, tmp_path, capsys):
    (tmp_path / "text.jpg").write_text("hello")
    Image.new("RGB", (300, 1)).save(tmp_path / "narrow.png")
    for name, fragment in {"text.jpg": "text.jpg cannot be read", "narrow.png": "narrow.png is 300 x 1"}.items():
        assert detect(trained, tmp_path / "out", tmp_path / name) == 1
        assert fragment in error_line(capsys)
        assert detect(trained, tmp_path / "out", tmp_path / name, "--skip_broken") == 0
        assert "skipped" in "".join(capsys.readouterr())
    assert detect(trained, tmp_path / "out", tmp_path / "nowhere.png") == 1
    assert "nowhere.png" in error_line(capsys)


# The commands


@pytest.mark.parametrize("command", [finetune_detection, evaluate_detection, detect_objects])
def test_help(command, capsys):
    with pytest.raises(SystemExit) as leaving:
        command.main(["--help"])
    assert leaving.value.code == 0
    assert "--model_name_or_path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("script", "package"),
    [("finetune_detection", "accelerate"), ("evaluate_detection", "numpy"), ("detect_objects", "numpy")],
)
def test_missing_package_is_one_line(script, package):
    code = f"import sys; sys.path[:0] = ['examples', 'src']; sys.modules['{package}'] = None; import {script}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1 and f"`{package}" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("head", ["mask_rcnn", "retinanet"])
def test_average_precision_on_shapes(head, tmp_path):
    """The commands as `examples/README.md` has them, with the data that they draw."""
    output = tmp_path / "detector"
    assert finetune_detection.main(["--output_dir", str(output), "--head", head]) == 0
    held_out = output / "shapes"
    assert evaluate(output, tmp_path / "scores", held_out) == 0
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    assert results["box"]["ap50"] >= 0.8
    assert head == "retinanet" or results["mask"]["ap50"] >= 0.8
    assert detect(output, tmp_path / "pictures", held_out / "validation" / "images" / "00000.png") == 0
