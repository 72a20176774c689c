"""Fine-tune a CrossFormer segmentor, Semantic FPN or UPerNet, with the original recipe or your own settings.

Without data it draws coloured shapes and trains a small model on them offline, in minutes on two cores:

    python finetune_segmentation.py --output_dir outputs/shapes

With images in `my/train/images` and masks of the same names in `my/train/masks`, the same in `my/validation`:

    python finetune_segmentation.py --recipe fpn --model_name_or_path crossformer-s --train_dir my/train
        --validation_dir my/validation --class_names names.txt --output_dir outputs/mine

ADE20K's own folders:

    ... --train_dir ADE/images/training --train_masks_dir ADE/annotations/training --validation_dir
        ADE/images/validation --validation_masks_dir ADE/annotations/validation --num_labels 150 --reduce_labels

A killed run goes on from its last checkpoint when the same command is given again. Flags go before what the recipe
says; those that the recipe does not set are the Trainer's.
"""

import argparse
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path


try:
    import accelerate  # noqa: F401  (the Trainer needs it, and says so only much later)
    import torch
    from support.errors import CommandParser, InputError, run_command
    from support.resuming import find_checkpoint
    from support.segmentation_data import (
        SegmentationDataArguments,
        SegmentationTrainingDataArguments,
        read_class_names,
        training_samples,
        validation_samples,
    )
    from support.segmentation_models import HEADS, build_segmentor, pretrained_segmentor
    from support.segmentation_recipes import RECIPES
    from support.segmentation_training import SegmentationMetrics, SegmentationTrainer, most_likely_classes
    from support.segmentation_transforms import (
        AugmentationArguments,
        TransformedSamples,
        build_image_processor,
        collate,
        evaluation_transform,
        training_transform,
    )
    from support.shapes import write_image_folder
    from transformers import PreTrainedModel, TrainingArguments, logging, set_seed
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


DEFAULTS = SegmentationDataArguments()
NUM_SHAPES_IMAGES = {"train": 400, "validation": 100}
SETTINGS = ("learning_rate", "weight_decay", "warmup_steps", "max_steps", "num_train_epochs", "seed")
SETTINGS += ("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type")


@dataclass
class ModelArguments:
    """What to train."""

    recipe: str = field(
        default="shapes",
        metadata={"help": "Defaults of the other flags: the original recipe for a head, or one for the drawn shapes. "
                          "Unless given, `shapes` without data and `fpn` with it.",
                  "choices": list(RECIPES)},
    )  # fmt: skip
    head: str = field(default="fpn", metadata={"help": "Semantic FPN or UPerNet.", "choices": list(HEADS)})
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of a pretrained CrossFormer, or of a segmentor to go on from. Unless "
                          "given, training starts from random weights."},
    )  # fmt: skip
    architecture: str = field(default="crossformer-s", metadata={"help": "Preset for random weights."})
    config_overrides: str = field(
        default="{}", metadata={"help": "Fields of the configuration for random weights, as JSON."}
    )
    decay_norms: bool = field(default=False, metadata={"help": "Whether weights of normalisation layers decay too."})
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew instead of going on from the checkpoints in --output_dir."}
    )


def build_parser(argv: list[str] | None) -> CommandParser:
    """Parser whose defaults are those of the recipe that `argv` names."""
    parser = CommandParser(
        [ModelArguments, SegmentationTrainingDataArguments, AugmentationArguments, TrainingArguments],
        description=__doc__,
    )
    parser.set_defaults(
        output_dir="outputs/segmentation",
        eval_strategy="steps",
        disable_tqdm=False,
        save_total_limit=2,
        remove_unused_columns=False,
        batch_eval_metrics=True,
        dataloader_pin_memory=torch.accelerator.is_available(),
        **recipe_defaults(argv),
    )
    return parser


def recipe_defaults(argv: list[str] | None) -> dict:
    """Defaults of the recipe that `argv` names, but for those that go with a flag which is given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "train_dir", "dataset_name", "num_train_epochs", "architecture"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    given = parser.parse_known_args(argv)[0]
    recipe = given.recipe or ("fpn" if given.train_dir or given.dataset_name else "shapes")
    defaults = {"recipe": recipe, **RECIPES.get(recipe, {})}
    for flag, default in {"num_train_epochs": "max_steps", "architecture": "config_overrides"}.items():
        if getattr(given, flag) is not None:
            defaults.pop(default, None)
    return defaults


def use_shapes(data: SegmentationTrainingDataArguments, training: TrainingArguments, size: int) -> None:
    """Draw shapes of `size` x `size` pixels into the output folder, and let `data` name them."""
    for split, num_images in NUM_SHAPES_IMAGES.items():
        folder = Path(training.output_dir) / "shapes" / split
        with training.main_process_first():
            write_image_folder(folder, num_images, seed=training.seed + (split == "validation"), size=size)
        setattr(data, f"{split}_dir", str(folder))


def build_model(model: ModelArguments, names: list[str], image_size: int) -> PreTrainedModel:
    """The segmentor to train."""
    if model.model_name_or_path:
        return pretrained_segmentor(model.head, model.model_name_or_path, names)
    return build_segmentor(model.head, model.architecture, model.config_overrides, names, image_size)


def check_training(head: str, num_images: int, training: TrainingArguments) -> None:
    """Check that batches and steps suffice; an incomplete last batch is dropped where there are others."""
    batch_size = training.per_device_train_batch_size
    if head == "upernet" and min(batch_size, num_images) < 2:
        raise InputError(
            f"--per_device_train_batch_size is {batch_size} and there are {num_images} training images, but UPerNet's "
            "batch norms need at least 2 in a batch: give more"
        )
    if training.learning_rate <= 0:
        raise InputError(f"--learning_rate is {training.learning_rate}, but it must be positive: give more")
    if 0 < training.max_steps <= training.warmup_steps:
        raise InputError(
            f"--warmup_steps is {training.warmup_steps:g}, but it must be less than --max_steps, which is "
            f"{training.max_steps}: give less, such as 0"
        )
    training.dataloader_drop_last = num_images >= training.train_batch_size


def settings_of(model: ModelArguments, data, augmentation, training: TrainingArguments) -> dict:
    """What a run must have in common with the one that it goes on with."""
    settings = {**asdict(model), **asdict(data), **asdict(augmentation)}
    settings.pop("overwrite_output_dir")
    return {**settings, **{name: getattr(training, name) for name in SETTINGS}}


def build_trainer(
    model, names, splits, augmentation: AugmentationArguments, training, decay_norms
) -> SegmentationTrainer:
    """Trainer on the training and held-out samples."""
    return SegmentationTrainer(
        model,
        training,
        decay_norms=decay_norms,
        data_collator=collate,
        train_dataset=TransformedSamples(splits[0], training_transform(augmentation), training.seed),
        eval_dataset=TransformedSamples(
            splits[1], evaluation_transform(augmentation.longest_edge, augmentation.shortest_edge), training.seed
        ),
        processing_class=build_image_processor(augmentation),
        compute_metrics=SegmentationMetrics(names),
        preprocess_logits_for_metrics=most_likely_classes,
    )


def finetune(
    model_arguments: ModelArguments,
    data: SegmentationTrainingDataArguments,
    augmentation: AugmentationArguments,
    training: TrainingArguments,
) -> None:
    """Train, evaluate and save."""
    set_seed(training.seed)
    settings = settings_of(model_arguments, data, augmentation, training)
    checkpoint = find_checkpoint(model_arguments.overwrite_output_dir, settings, training)
    if not (data.train_dir or data.validation_dir or data.dataset_name):
        use_shapes(data, training, augmentation.crop_size)
    names = read_class_names(data)
    model = build_model(model_arguments, names, augmentation.crop_size)
    splits = training_samples(data, names), validation_samples(data, names)
    check_training(model_arguments.head, len(splits[0]), training)
    trainer = build_trainer(model, names, splits, augmentation, training, model_arguments.decay_norms)
    announce(model, splits, names, training, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    report(metrics, training, data)


def announce(model, splits, names: list[str], training: TrainingArguments, checkpoint: str | None) -> None:
    """Say what begins."""
    print(
        f"Training a {type(model).__name__} with {model.num_parameters():,} parameters on {len(splits[0]):,} images "
        f"of {len(names)} classes; {len(splits[1]):,} are held out."
        + (f" Going on from {checkpoint}." if checkpoint else "")
    )


def report(metrics: dict[str, float], training: TrainingArguments, data: SegmentationTrainingDataArguments) -> None:
    """Say what there is now and what to do with it."""
    output, here = training.output_dir, Path(__file__).parent
    chosen = {field.name: getattr(data, field.name) for field in fields(SegmentationDataArguments)}
    held_out = "".join(f" --{name} {value}" for name, value in chosen.items() if value != getattr(DEFAULTS, name))
    print(f"""
Mean IoU on the held-out images, at the size that the model sees: {metrics["eval_mean_iou"]:.1%}.

  model and image processor   {output}
  scores                      {Path(output) / "eval_results.json"}

Try next:

  python {here / "evaluate_segmentation.py"} --model_name_or_path {output}{held_out}
  python {here / "segment_image.py"} --model_name_or_path {output}""")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser(argv)
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: finetune(*arguments))


if __name__ == "__main__":
    sys.exit(main())
