"""Fine-tuning and evaluating a classifier do what they say, go on where they stopped, and explain errors in a line."""

import io
import json
import re

import evaluate_classification
import finetune_classification
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.classification_finetuning import ClassificationTrainer
from support.classification_models import LAYERS, load_classifier, parameter_groups
from support.classification_transforms import EvaluationTransform, build_image_processor
from support.confusion import MAX_CLASSES, classes_to_draw, draw_confusion, most_confused
from test_classification_data import NAMES, own_cache, write_folders, write_parquet  # noqa: F401  (a fixture)
from timm.models import group_parameters
from transformers import pipeline

from crossformer_hf import CrossFormerForImageClassification, CrossFormerModel, preset_config


SIZE, NUM_TRAIN, NUM_HELD_OUT = 32, 22, 11
TINY = {"embed_dim": 16, "num_heads": [1, 1, 2], "depths": [1, 1, 2]}
TRAINING = "--num_train_epochs 2 --per_device_train_batch_size 4 --logging_steps 1 --save_strategy steps".split()
TRAINING += "--save_steps 2 --save_total_limit 9 --learning_rate 1e-3 --augmentation imagenet --use_cpu true".split()
TWO_STEPS = ["--max_steps", "2"]


def noise(index: int) -> Image.Image:
    """Dark for the first class, bright for the second."""
    pixels = np.random.default_rng(index).integers(0, 128, (40, 44, 3), dtype=np.uint8)
    return Image.fromarray(pixels + np.uint8(index % 2 * 120))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folder with the folders `train` and `validation` of classes, and the same as parquet files."""
    root = tmp_path_factory.mktemp("data")
    for split, images in (("train", range(NUM_TRAIN)), ("validation", range(100, 100 + NUM_HELD_OUT))):
        write_folders(root / split, [noise(index) for index in images])
        write_parquet(root / "parquet" / split, [noise(index) for index in images])
    return root


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folder of a tiny classifier with seven classes."""
    folder = tmp_path_factory.mktemp("models") / "pretrained"
    torch.manual_seed(0)
    config = preset_config("crossformer-pp-32px", num_labels=7, drop_path_rate=0.2, **TINY)
    CrossFormerForImageClassification(config).save_pretrained(folder)
    build_image_processor(SIZE).save_pretrained(folder)
    return folder


def finetune(pretrained, output, data, *arguments):
    """Run the command on folders of images; return its exit status."""
    folders = ["--train_dir", str(data / "train"), "--validation_dir", str(data / "validation")]
    flags = ["--model_name_or_path", str(pretrained), "--output_dir", str(output)]
    return finetune_classification.main([*flags, *folders, *TRAINING, *arguments])


def evaluate(model, output, data, *arguments):
    """Run the command on a folder of images; return its exit status."""
    flags = ["--model_name_or_path", str(model), "--output_dir", str(output), "--device", "cpu"]
    flags += ["--per_device_eval_batch_size", "4", "--validation_dir", str(data / "validation")]
    return evaluate_classification.main([*flags, *arguments])


@pytest.fixture(scope="module")
def trained(pretrained, data, tmp_path_factory):
    """Folder of a classifier of two classes after two epochs."""
    output = tmp_path_factory.mktemp("runs") / "trained"
    assert finetune(pretrained, output, data) == 0
    return output


def weights(folder):
    return load_file(folder / "model.safetensors")


def losses(folder):
    """Of each step, as the last checkpoint knows them."""
    newest = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    records = json.loads((newest / "trainer_state.json").read_text())["log_history"]
    return [record["loss"] for record in records if "loss" in record]


def scores_of(folder):
    return json.loads((folder / "results.json").read_text())


def error_line(capsys):
    """The one line that says what is wrong."""
    text = capsys.readouterr().err
    assert "Traceback" not in text
    lines = [line for line in re.split(r"[\r\n]", text) if "error:" in line]
    assert len(lines) == 1, text
    return lines[0]


def assert_same_run(folder, other):
    assert losses(folder) == losses(other)
    for name, weight in weights(folder).items():
        assert torch.equal(weight, weights(other)[name]), name


def interrupt_at(monkeypatch, step):
    """Make training stop in the middle, as with Ctrl-C."""
    training_step = ClassificationTrainer.training_step

    def interrupted(self, *arguments, **options):
        if self.state.global_step == step:
            raise KeyboardInterrupt
        return training_step(self, *arguments, **options)

    monkeypatch.setattr(ClassificationTrainer, "training_step", interrupted)


# Fine-tuning


def test_saves_a_model_that_a_pipeline_runs(trained, data):
    assert {"config.json", "model.safetensors", "preprocessor_config.json", "curves.png", "eval_results.json"} <= {
        path.name for path in trained.iterdir()
    }
    answers = pipeline("image-classification", str(trained))(noise(3))
    assert {answer["label"] for answer in answers} == set(NAMES)
    assert Image.open(trained / "curves.png").width > 1000


@pytest.mark.parametrize("workers", ["0", "2"])
def test_interrupted_run_goes_on_to_the_same_weights(
    trained, pretrained, data, tmp_path, capsys, monkeypatch, workers
):
    """In the middle of the second epoch, with augmentation, drop path, and any number of workers."""
    flags = ["--dataloader_num_workers", workers]
    interrupt_at(monkeypatch, step=9)
    assert finetune(pretrained, tmp_path, data, *flags) == 2
    assert "interrupted" in error_line(capsys)
    monkeypatch.undo()
    assert finetune(pretrained, tmp_path, data, *flags) == 0
    assert "Going on from" in capsys.readouterr().out
    assert_same_run(tmp_path, trained)


def test_stream_goes_on_to_the_same_weights(pretrained, data, tmp_path, monkeypatch):
    folders = [
        "--train_dir",
        str(data / "parquet" / "train"),
        "--validation_dir",
        str(data / "parquet" / "validation"),
    ]
    flags = [*folders, "--streaming", "--shuffle_buffer_size", "4", "--max_steps", "9"]
    assert finetune(pretrained, tmp_path / "whole", data, *flags) == 0
    interrupt_at(monkeypatch, step=7)
    assert finetune(pretrained, tmp_path / "resumed", data, *flags) == 2
    monkeypatch.undo()
    assert finetune(pretrained, tmp_path / "resumed", data, *flags) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def test_does_not_go_on_with_another_run(trained, pretrained, data, capsys):
    assert finetune(pretrained, trained, data, "--layer_decay", "0.5") == 1
    line = error_line(capsys)
    assert "`layer_decay` is 0.5" in line and "started with 1.0" in line and "--overwrite_output_dir" in line


def test_frozen_stages_stay_and_the_others_do_not(pretrained, data, tmp_path):
    assert finetune(pretrained, tmp_path, data, "--freeze_stages", "2", *TWO_STEPS) == 0
    before, after = weights(pretrained), weights(tmp_path)
    frozen = re.compile(r"crossformer\.(embeddings|encoder\.stages\.[01])\.")
    for name, weight in after.items():
        if not name.startswith("classifier"):
            assert torch.equal(weight, before[name]) == bool(frozen.match(name)), name


def test_learning_rate_falls_from_layer_to_layer():
    model = CrossFormerForImageClassification(preset_config("crossformer-pp-32px", **{**TINY, "depths": [2, 1, 4]}))
    rates = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in parameter_groups(model, learning_rate=1.0, weight_decay=0.05, layer_decay=0.5):
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
            assert group["weight_decay"] == (0.05 if parameter.ndim > 1 else 0)
    assert set(rates) == set(names.values())
    stages = "crossformer.encoder.stages"
    expected = {
        "classifier.weight": 1,
        "crossformer.layernorm.weight": 1,
        f"{stages}.2.layers.3.mlp.fc1.weight": 1 / 2,
        f"{stages}.2.layers.2.cooling.convolution.weight": 1 / 4,
        f"{stages}.2.layers.0.mlp.fc1.weight": 1 / 16,
        f"{stages}.2.downsampling.embedding.projections.0.weight": 1 / 16,
        f"{stages}.1.layers.0.attention.qkv.weight": 1 / 32,
        f"{stages}.0.layers.1.attention.qkv.weight": 1 / 64,
        f"{stages}.0.layers.0.attention.qkv.weight": 1 / 128,
        "crossformer.embeddings.layernorm.weight": 1 / 256,
    }
    assert {name: rates[name] for name in expected} == expected
    assert not hasattr(model, "group_matcher")
    assert len(set(group_parameters(model, LAYERS, reverse=True).values())) == 9


@pytest.fixture(scope="module")
def adapted(trained, data, tmp_path_factory):
    """Folder of low-rank adapters, after two steps from the trained classifier."""
    output = tmp_path_factory.mktemp("runs") / "adapted"
    assert finetune(trained, output, data, "--lora_rank", "2", *TWO_STEPS) == 0
    return output


def test_adapters_are_saved_and_loaded(adapted, trained, data, tmp_path):
    names = set(load_file(adapted / "adapter_model.safetensors"))
    assert not (adapted / "model.safetensors").exists()
    for layer in ("qkv", "attention.projection", "mlp.fc1", "mlp.fc2"):
        assert any(f"{layer}.lora_A" in name for name in names)
    assert any(name.endswith("classifier.weight") for name in names)
    assert not any("position_bias" in name for name in names)

    loaded, before = load_classifier(str(adapted)), load_classifier(str(trained))
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (loaded(pixels).logits - before(pixels).logits).abs().max() > 1e-6
    assert evaluate(adapted, tmp_path, data) == 0
    accuracy = json.loads((adapted / "eval_results.json").read_text())["eval_accuracy"]
    assert scores_of(tmp_path)["image_sizes"][str(SIZE)]["top1"] == pytest.approx(accuracy)


def test_merged_adapters_are_a_whole_model(adapted, trained, data, tmp_path):
    assert finetune(trained, tmp_path, data, "--lora_rank", "2", "--merge_adapters", "true", *TWO_STEPS) == 0
    pixels = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        merged, loaded = (load_classifier(str(folder))(pixels).logits for folder in (tmp_path, adapted))
    assert (tmp_path / "model.safetensors").exists() and not (tmp_path / "adapter_config.json").exists()
    torch.testing.assert_close(merged, loaded, rtol=1e-4, atol=1e-5)


def test_another_size_needs_no_other_weights(trained, data, tmp_path):
    assert finetune(trained, tmp_path, data, "--image_size", "56", "--learning_rate", "1e-12", *TWO_STEPS) == 0
    processor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert processor["crop_size"] == {"height": 56, "width": 56}
    assert json.loads((tmp_path / "config.json").read_text())["image_size"] == 56
    for name, weight in weights(tmp_path).items():
        torch.testing.assert_close(weight, weights(trained)[name], rtol=0, atol=1e-9, msg=name)


def test_label_smoothing_and_imagenet_names(trained, data, tmp_path):
    assert finetune(trained, tmp_path, data, "--label_smoothing_factor", "0.5", *TWO_STEPS) == 0
    assert losses(tmp_path)[0] > 0.5  # Half of every target is divided among both classes.


# Evaluation


def by_hand(model, folder, size):
    """Share of right answers and mean loss, an image at a time."""
    model, transform = load_classifier(str(model)), EvaluationTransform(build_image_processor(SIZE), size)
    right, loss, count = 0, 0.0, 0
    for label, name in enumerate(NAMES):
        for path in (folder / name).iterdir():
            with torch.no_grad():
                logits = model(transform(Image.open(path))[None]).logits[0]
            right += int(logits.argmax() == label)
            loss += float(logits.logsumexp(0) - logits[label])
            count += 1
    return right / count, loss / count, count


def test_scores_are_those_counted_by_hand(trained, data, tmp_path, capsys):
    assert evaluate(trained, tmp_path, data, "--image_sizes", "24", "32", "48") == 0
    results = scores_of(tmp_path)
    assert results["num_images"] == NUM_HELD_OUT
    for size, scores in results["image_sizes"].items():
        accuracy, loss, count = by_hand(trained, data / "validation", int(size))
        assert scores["top1"] == pytest.approx(accuracy) and scores["loss"] == pytest.approx(loss, rel=1e-5)
        assert sum(row["num_images"] for row in scores["classes"]) == count
        assert scores["top5"] == 1 and scores["images_per_second"] > 0
        mistakes = sum(row["count"] for row in scores["most_confused"])
        assert mistakes == round((1 - accuracy) * count)
    table = capsys.readouterr().out
    assert all(re.search(rf"^ +{size} ", table, re.MULTILINE) for size in (24, 32, 48))
    assert {"sizes.png", "confusion-24.png", "confusion-48.png", "table.txt"} <= {
        path.name for path in tmp_path.iterdir()
    }


def test_streams_and_workers_give_the_same_scores(trained, data, tmp_path):
    assert evaluate(trained, tmp_path / "folder", data) == 0
    flags = ["--validation_dir", str(data / "parquet" / "validation"), "--streaming", "--dataloader_num_workers", "2"]
    assert evaluate(trained, tmp_path / "stream", data, *flags) == 0
    folder, stream = (scores_of(tmp_path / name)["image_sizes"][str(SIZE)] for name in ("folder", "stream"))
    assert folder["classes"] == stream["classes"]
    assert folder["loss"] == pytest.approx(stream["loss"], rel=1e-5)


def test_interrupted_evaluation_goes_on(trained, data, tmp_path, capsys, monkeypatch):
    classify, calls = evaluate_classification.classify, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return classify(*arguments)

    monkeypatch.setattr(evaluate_classification, "classify", interrupted)
    flags = ["--save_seconds", "0"]
    assert evaluate(trained, tmp_path / "resumed", data, *flags) == 2
    assert evaluate(trained, tmp_path / "resumed", data, *flags) == 0
    assert len(calls) == 2 + 2  # Of three batches of 11 images, one was counted before.
    monkeypatch.undo()
    assert evaluate(trained, tmp_path / "whole", data, *flags) == 0
    resumed, whole = (scores_of(tmp_path / name)["image_sizes"][str(SIZE)] for name in ("resumed", "whole"))
    assert resumed["classes"] == whole["classes"] and resumed["loss"] == pytest.approx(whole["loss"], rel=1e-6)


def test_evaluation_does_not_go_on_with_another_model(trained, pretrained, data, tmp_path, capsys):
    assert evaluate(trained, tmp_path, data) == 0
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    assert evaluate(trained, tmp_path, data, "--class_names", str(tmp_path / "names.txt")) == 1
    assert "`class_names` is" in error_line(capsys)
    assert evaluate(trained, tmp_path, data, "--class_names", str(tmp_path / "names.txt"), "--overwrite") == 0


def test_classes_of_model_and_data_are_matched_by_name(trained, data, tmp_path):
    """A data set with one of the classes alone, the second."""
    (tmp_path / "images" / "DOG").mkdir(parents=True)
    noise(1).save(tmp_path / "images" / "DOG" / "1.png")
    assert evaluate(trained, tmp_path, data, "--validation_dir", str(tmp_path / "images")) == 0
    classes = scores_of(tmp_path)["image_sizes"][str(SIZE)]["classes"]
    assert [(row["name"], row["num_images"]) for row in classes] == [("dog", 1)]


def test_pictures_of_many_classes_show_those_with_most_mistakes():
    confusion = np.diag(np.full(100, 50))
    for index in range(40):
        confusion[index + 10, index + 50] = index + 1
    chosen = classes_to_draw(confusion)
    assert chosen.tolist() == list(range(20, 50))[-MAX_CLASSES:]
    names = [f"class {index}" for index in range(100)]
    assert most_confused(confusion, names)[0] == {"true": "class 49", "predicted": "class 89", "count": 40}
    file = io.BytesIO()
    draw_confusion(file, confusion, names, "title")
    assert Image.open(file).width > 1000


# What a user can mend


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning_rate", "0"], "--learning_rate is 0.0"),
        (["--freeze_stages", "4"], "--freeze_stages is 4, but there are 3 stages"),
        (["--streaming"], "--max_steps is not given"),
        (["--train_dir", "/nowhere"], "--train_dir is /nowhere"),
        (["--model_name_or_path", "/nowhere"], "/nowhere cannot be loaded"),
    ],
)
def test_errors_of_fine_tuning(pretrained, data, tmp_path, capsys, flags, message):
    assert finetune(pretrained, tmp_path, data, *flags) == 1
    assert message in error_line(capsys)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--layer_decay", "1.5"], "--layer_decay is 1.5"),
        (["--image_size", "0"], "--image_size is 0"),
        (["--lora_rank", "-1"], "--lora_rank is -1"),
        (["--lora_rank", "2", "--freeze_stages", "1"], "leave one of the two out"),
        (["--merge_adapters", "true"], "no adapters without --lora_rank"),
        (["--augmentation", "heavy"], "invalid choice: 'heavy'"),
        (["--unknown", "1"], "unrecognized arguments: --unknown 1"),
    ],
)
def test_illegal_flags(pretrained, data, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit):
        finetune(pretrained, tmp_path, data, *flags)
    assert message in error_line(capsys)


def test_one_class_is_not_enough(pretrained, tmp_path, capsys, data):
    write_folders(tmp_path / "train", [noise(0)])
    flags = ["--train_dir", str(tmp_path / "train"), "--validation_dir", str(tmp_path / "train")]
    assert finetune(pretrained, tmp_path / "output", data, *flags) == 1
    assert "there is 1 class (cat)" in error_line(capsys)


@pytest.mark.parametrize("workers", ["0", "1"])
def test_broken_image_in_training_is_one_line(pretrained, data, tmp_path, capsys, workers):
    write_folders(tmp_path / "train", [noise(index) for index in range(4)])
    (tmp_path / "train" / "dog" / "3.png").write_text("no image")
    flags = ["--train_dir", str(tmp_path / "train"), "--dataloader_num_workers", workers]
    assert finetune(pretrained, tmp_path / "output", data, *flags) == 1
    line = error_line(capsys)
    assert "3.png) cannot be read as an image" in line and "--skip_broken_images" in line
    assert (
        finetune(pretrained, tmp_path / "output", data, *flags, "--skip_broken_images", "--overwrite_output_dir") == 0
    )


def test_errors_of_evaluation(pretrained, trained, data, tmp_path, capsys):
    backbone = tmp_path / "backbone"
    CrossFormerModel(preset_config("crossformer-32px", **TINY)).save_pretrained(backbone)
    assert evaluate(backbone, tmp_path, data) == 1
    assert "holds a CrossFormerModel, but a model for image classification is needed" in error_line(capsys)
    assert evaluate(pretrained, tmp_path, data) == 1
    assert "2 of the data set's 2 classes (cat, dog) are not among the model's 7" in error_line(capsys)
    with pytest.raises(SystemExit):
        evaluate(trained, tmp_path, data, "--image_sizes", "32", "0")
    assert "--image_sizes is 0" in error_line(capsys)
