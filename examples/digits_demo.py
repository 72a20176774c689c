"""Train a small CrossFormer on handwritten digits, save it, load it back, classify with it and draw what it says.

Everything runs offline: the digits are the 1,797 that come with scikit-learn.
"""

import argparse
import sys
import time
from pathlib import Path


try:
    import accelerate  # noqa: F401  (the Trainer needs it, and says so only much later)
    import datasets
    import numpy as np
    import torch
    from matplotlib.figure import Figure
    from PIL import Image
    from sklearn.datasets import load_digits
    from torchvision.transforms import v2
    from transformers import (
        AutoImageProcessor,
        AutoModelForImageClassification,
        BitImageProcessor,
        Trainer,
        TrainingArguments,
        logging,
        pipeline,
        set_seed,
    )
    from transformers.trainer_callback import ProgressCallback

    from crossformer_hf import CrossFormerForImageClassification, preset_config
except ImportError as error:
    sys.exit(f"This demo needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")

DIGITS = [str(digit) for digit in range(10)]
BLACK = -1.0  # Pixel values are normalised to [-1, 1].
GRID_ROWS, GRID_COLUMNS = 4, 10
RIGHT, WRONG, MUTED = "#1a7f4b", "#c8102e", "#6b7280"


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"), help="folder to write (%(default)s)")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split, weights and batches (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1:
        parser.error(f"--epochs is {arguments.epochs}, but it must be at least 1")
    return arguments


def load_splits(seed: int) -> datasets.DatasetDict:
    """Digits as `image` (8 x 8 pixels, grey) and `label`: four fifths in `train`, the rest, stratified, in `test`.

    Images of your own come the same way: `datasets.load_dataset("imagefolder", data_dir=...)`.
    """
    images, labels = load_digits(return_X_y=True)
    # The originals count ink from 0 to 16.
    images = [Image.fromarray(image) for image in (images.reshape(-1, 8, 8) * 255 / 16).round().astype(np.uint8)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=DIGITS)})
    dataset = datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)
    return dataset.train_test_split(test_size=0.2, stratify_by_column="label", seed=seed)


def build_image_processor() -> BitImageProcessor:
    """Image processor that makes any image three channels of 32 x 32 pixels in [-1, 1]."""
    return BitImageProcessor(
        do_convert_rgb=True,
        size={"height": 32, "width": 32},
        do_center_crop=False,
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )


def build_model() -> CrossFormerForImageClassification:
    """Small CrossFormer with random weights.

    To fine-tune pretrained ones instead, return `AutoModelForImageClassification.from_pretrained(folder,
    num_labels=10, ignore_mismatched_sizes=True)` here; nothing else changes.
    """
    config = preset_config(
        "crossformer-32px",
        embed_dim=32,
        num_heads=[1, 2, 4],
        depths=[2, 2, 2],
        drop_path_rate=0.1,
        id2label=dict(enumerate(DIGITS)),
        label2id={digit: index for index, digit in enumerate(DIGITS)},
    )
    return CrossFormerForImageClassification(config)


def add_pixels(
    splits: datasets.DatasetDict, processor: BitImageProcessor
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Training and held-out images as the model takes them; each training image slightly moved, anew every time."""
    augment = v2.RandomAffine(
        degrees=10, translate=(0.08, 0.08), scale=(0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR, fill=BLACK
    )

    def prepare(batch: dict) -> dict:
        return {**processor(batch["image"], return_tensors="pt"), "labels": batch["label"]}

    def prepare_and_augment(batch: dict) -> dict:
        batch = prepare(batch)
        return {**batch, "pixel_values": torch.stack([augment(image) for image in batch["pixel_values"]])}

    return splits["train"].with_transform(prepare_and_augment), splits["test"].with_transform(prepare)


def compute_metrics(prediction) -> dict[str, float]:
    """Accuracy, in numpy: `evaluate.load("accuracy")` would have to be downloaded."""
    return {"accuracy": float((prediction.predictions.argmax(axis=-1) == prediction.label_ids).mean())}


class AccuracyBar(ProgressCallback):
    """Progress bar with the latest held-out accuracy at its end, instead of lines of logs."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the accuracy after each evaluation."""
        if self.training_bar is not None and "eval_accuracy" in logs:
            self.training_bar.set_postfix_str(f"held-out accuracy {logs['eval_accuracy']:.1%}")

    def on_prediction_step(self, args, state, control, **kwargs):
        """Show no second bar."""


def build_trainer(model, train_set, test_set, arguments: argparse.Namespace) -> Trainer:
    """Trainer that runs on an accelerator where there is one, and saves nothing by itself."""
    training_arguments = TrainingArguments(
        output_dir=str(arguments.output),
        num_train_epochs=arguments.epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=128,
        learning_rate=2e-3,
        weight_decay=0.05,
        warmup_steps=0.1,
        lr_scheduler_type="cosine",
        label_smoothing_factor=0.05,
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        disable_tqdm=False,
        seed=arguments.seed,
    )
    trainer = Trainer(
        model, training_arguments, train_dataset=train_set, eval_dataset=test_set, compute_metrics=compute_metrics
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(AccuracyBar)
    return trainer


def train_and_save(splits: datasets.DatasetDict, folder: Path, arguments: argparse.Namespace) -> None:
    """Train a model and leave it in `folder` with its image processor."""
    processor, model = build_image_processor(), build_model()
    print(
        f"Training a CrossFormer with {model.num_parameters():,} parameters on {len(splits['train']):,} handwritten "
        f"digits for {arguments.epochs} epochs,\nfrom random weights: no pretrained ones are downloaded."
    )
    trainer = build_trainer(model, *add_pixels(splits, processor), arguments)
    trainer.train()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def classify(folder: Path, images: list[Image.Image]) -> list[dict]:
    """Most likely label of each image and its score, by a model loaded from `folder`."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    classifier = pipeline("image-classification", model=model, image_processor=processor)
    return [labels[0] for labels in classifier(images, top_k=1, batch_size=64)]


def draw_tile(axes, image: Image.Image, answer: dict, truth: str) -> None:
    """Draw one image with its answer below, in red and with the true label where that differs."""
    is_right = answer["label"] == truth
    color = RIGHT if is_right else WRONG
    axes.imshow(image, cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=color, linewidth=1 if is_right else 4)
    axes.set_title(f"{answer['label']}   {answer['score']:.0%}", color=color, fontsize=12, fontweight="bold", pad=5)
    axes.set_xlabel(f"true: {truth}", color=MUTED if is_right else WRONG, fontsize=10, labelpad=4)


def draw_grid(path: Path, images: list[Image.Image], answers: list[dict], truths: list[str]) -> None:
    """Draw the images with wrong answers first, then those with the least certain right ones."""
    is_right = [answer["label"] == truth for answer, truth in zip(answers, truths, strict=True)]
    hardest = sorted(range(len(images)), key=lambda index: (is_right[index], answers[index]["score"]))
    figure = Figure(figsize=(1.25 * GRID_COLUMNS, 1.75 * GRID_ROWS + 0.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08, w_pad=0.04)
    figure.suptitle(
        f"{sum(is_right)} of {len(images)} held-out digits are right. The {GRID_ROWS * GRID_COLUMNS} hardest: "
        "mistakes first, in red, then the least certain.",
        fontsize=14,
    )
    tiles = figure.subplots(GRID_ROWS, GRID_COLUMNS).flat
    for axes, index in zip(tiles, hardest, strict=False):
        draw_tile(axes, images[index], answers[index], truths[index])
    figure.savefig(path, dpi=120)


def report(output: Path, accuracy: float, seconds: float) -> None:
    """Say what there is now and what to do with it."""
    print(f"""
Done in {seconds:.0f} seconds: {accuracy:.1%} of the held-out images are classified right, by the saved model.

  model and image processor   {output / "model"}
  hardest held-out images     {output / "predictions.png"}
  one of them to try          {output / "example.png"}

Try next:

  import crossformer_hf  # lets Transformers know the model
  from transformers import pipeline

  classifier = pipeline("image-classification", model="{output / "model"}")
  print(classifier("{output / "example.png"}"))

For images of your own, a folder per class, put `datasets.load_dataset("imagefolder", data_dir=...)` in `load_splits`;
to start from pretrained weights, see `build_model`. Both are in {Path(__file__).name}.""")


def main(argv: list[str] | None = None) -> float:
    """Run the demo and return the saved model's accuracy on the held-out images."""
    arguments = parse_arguments(argv)
    start = time.perf_counter()
    logging.disable_progress_bar()
    set_seed(arguments.seed)
    output = arguments.output
    splits = load_splits(arguments.seed)
    train_and_save(splits, output / "model", arguments)

    images, truths = list(splits["test"]["image"]), [DIGITS[label] for label in splits["test"]["label"]]
    answers = classify(output / "model", images)
    draw_grid(output / "predictions.png", images, answers, truths)
    images[0].save(output / "example.png")
    accuracy = sum(answer["label"] == truth for answer, truth in zip(answers, truths, strict=True)) / len(truths)
    report(output, accuracy, time.perf_counter() - start)
    return accuracy


if __name__ == "__main__":
    main()
