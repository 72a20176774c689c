"""Fine-tune a CrossFormer detector, RetinaNet, Mask R-CNN or a DETR, with the original recipe or your own settings.

Without data it draws coloured shapes and trains a small Mask R-CNN on them offline, in minutes on two cores:

    python finetune_detection.py --output_dir outputs/detector

With images in `my/train/images` and COCO annotations in `my/train/annotations.json`, the same in `my/validation`:

    python finetune_detection.py --recipe mask_rcnn --model_name_or_path crossformer-s --train_dir my/train
        --validation_dir my/validation --output_dir outputs/mine

COCO's own folders:

    ... --train_dir coco/train2017 --train_annotations coco/annotations/instances_train2017.json --validation_dir
        coco/val2017 --validation_annotations coco/annotations/instances_val2017.json --skip_broken

A killed run goes on from its last checkpoint when the same command is given again. Flags go before what the recipe
says; those that the recipe does not set are the Trainer's.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path


try:
    import accelerate  # noqa: F401  (the Trainer needs it, and says so only much later)
    import torch
    from support.coco_annotations import Category
    from support.coco_shapes import write_coco_folder
    from support.detection_data import (
        DetectionSamples,
        DetectionTrainingDataArguments,
        Source,
        training_source,
        usable_samples,
        validation_source,
    )
    from support.detection_models import HEADS, build_detector, build_image_processor, size_check
    from support.detection_recipes import RECIPES
    from support.detection_training import DetectionTrainer, ScheduleArguments
    from support.detection_transforms import DetectionExamples, ResizingArguments, collate
    from support.errors import CommandParser, InputError, first_few, run_command
    from support.resuming import find_checkpoint
    from transformers import PreTrainedModel, TrainingArguments, logging, set_seed
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


NUM_SHAPES_IMAGES = {"train": 400, "validation": 100}
SETTINGS = ("learning_rate", "weight_decay", "warmup_steps", "max_steps", "num_train_epochs", "seed", "max_grad_norm")
SETTINGS += ("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type")
# Flags that replace what a recipe says with another.
REPLACED = {
    "num_train_epochs": "max_steps",
    "architecture": "config_overrides",
    "model_name_or_path": "config_overrides",
}


@dataclass
class ModelArguments:
    """What to train."""

    recipe: str = field(
        default="shapes_mask_rcnn",
        metadata={"help": "Defaults of the other flags: the original 1x recipe for a head, or one for the drawn "
                          "shapes. Unless given, that of the head, for shapes where there is no data.",
                  "choices": list(RECIPES)},
    )  # fmt: skip
    head: str = field(
        default="mask_rcnn",
        metadata={"help": "What finds the objects; mask_rcnn alone finds masks too.", "choices": list(HEADS)},
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Folder or Hub name of a pretrained CrossFormer, or of a detector to go on from. Unless "
                          "given, training starts from random weights."},
    )  # fmt: skip
    architecture: str = field(default="crossformer-s", metadata={"help": "Preset for random weights."})
    config_overrides: str = field(
        default="{}", metadata={"help": "Fields of the CrossFormer's configuration that differ, as JSON."}
    )
    head_overrides: str = field(
        default="{}", metadata={"help": "Fields of the configuration of a DETR that differ, as JSON."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew instead of going on from the checkpoints in --output_dir."}
    )


def build_parser(argv: list[str] | None) -> CommandParser:
    """Parser whose defaults are those of the recipe that `argv` names."""
    parser = CommandParser(
        [ModelArguments, DetectionTrainingDataArguments, ResizingArguments, ScheduleArguments, TrainingArguments],
        description=__doc__,
    )
    parser.set_defaults(
        output_dir="outputs/detection",
        disable_tqdm=False,
        save_total_limit=2,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.accelerator.is_available(),
        **recipe_defaults(argv),
    )
    return parser


def recipe_defaults(argv: list[str] | None) -> dict:
    """Defaults of the recipe that `argv` names, but for those that go with a flag which is given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names = ("recipe", "head", "train_dir", "dataset_name", *REPLACED)
    for name in names:
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    given = parser.parse_known_args(argv)[0]
    for_head = given.head if given.head in RECIPES else "mask_rcnn"
    recipe = given.recipe or (for_head if given.train_dir or given.dataset_name else f"shapes_{for_head}")
    defaults = {"recipe": recipe, **RECIPES.get(recipe, {})}
    for flag, default in REPLACED.items():
        if getattr(given, flag) is not None:
            defaults.pop(default, None)
    return defaults


def use_shapes(data: DetectionTrainingDataArguments, training: TrainingArguments, size: int) -> None:
    """Draw shapes of `size` x `size` pixels into the output folder, and let `data` name them."""
    for split, num_images in NUM_SHAPES_IMAGES.items():
        folder = Path(training.output_dir) / "shapes" / split
        with training.main_process_first():
            write_coco_folder(folder, num_images, seed=training.seed + (split == "validation"), size=size)
        setattr(data, f"{split}_dir", str(folder))


def check_sources(training: Source, validation: Source) -> None:
    """Raise an `InputError` unless both have the same categories; their ids may differ."""
    names = [[category.name for category in source.categories] for source in (training, validation)]
    if names[0] != names[1]:
        difference = sorted({*names[0]} ^ {*names[1]}) or names[1]
        raise InputError(
            f"{validation.name} has other categories than {training.name} ({first_few(difference)}), but they "
            "must have the same names in the order of their ids: give both all categories"
        )


def check_training(training: TrainingArguments, num_images: int) -> None:
    """Check that the steps suffice; an incomplete last batch is dropped where there are others."""
    if training.learning_rate <= 0:
        raise InputError(f"--learning_rate is {training.learning_rate}, but it must be positive: give more")
    if 0 < training.max_steps <= training.warmup_steps:
        raise InputError(
            f"--warmup_steps is {training.warmup_steps:g}, but it must be less than --max_steps, which is "
            f"{training.max_steps}: give less, such as 0"
        )
    training.dataloader_drop_last = num_images >= training.train_batch_size


def settings_of(model: ModelArguments, data, resizing, schedule, training: TrainingArguments) -> dict:
    """What a run must have in common with the one that it goes on with."""
    settings = {**asdict(model), **asdict(data), **asdict(resizing), **asdict(schedule)}
    settings.pop("overwrite_output_dir")
    return {**settings, **{name: getattr(training, name) for name in SETTINGS}}


def build_model(chosen: ModelArguments, names: list[str]) -> PreTrainedModel:
    """The detector to train, whose classes have these names."""
    overrides = chosen.config_overrides, chosen.head_overrides
    return build_detector(chosen.head, chosen.model_name_or_path, chosen.architecture, *overrides, names)


def read_splits(
    data: DetectionTrainingDataArguments, sources: Sequence[Source], with_masks: bool, check_size
) -> list[DetectionSamples]:
    """Training and held-out samples that can be used."""
    return [
        usable_samples(source, data, with_masks, check_size, purpose)
        for source, purpose in zip(sources, ("training", "validation"), strict=True)
    ]


def build_trainer(
    model, processor, splits: Sequence[DetectionSamples], categories: list[Category], resizing, schedule, training
) -> DetectionTrainer:
    """Trainer on the training and held-out samples."""
    with_masks = learns_masks(model)
    return DetectionTrainer(
        model,
        training,
        held_out=splits[1],
        categories=categories,
        kinds=("box", "mask") if with_masks else ("box",),
        lr_drops=schedule.lr_drops,
        data_collator=collate,
        train_dataset=DetectionExamples(splits[0], processor, resizing.flip_probability, with_masks, training.seed),
        processing_class=processor,
    )


def learns_masks(model: PreTrainedModel) -> bool:
    """Whether the model learns masks."""
    return isinstance(model, HEADS["mask_rcnn"])


def finetune(
    chosen: ModelArguments,
    data: DetectionTrainingDataArguments,
    resizing: ResizingArguments,
    schedule: ScheduleArguments,
    training: TrainingArguments,
) -> None:
    """Train, evaluate and save."""
    set_seed(training.seed)
    settings = settings_of(chosen, data, resizing, schedule, training)
    checkpoint = find_checkpoint(chosen.overwrite_output_dir, settings, training)
    if not (data.train_dir or data.validation_dir or data.dataset_name):
        use_shapes(data, training, resizing.shortest_edge)
    sources = training_source(data), validation_source(data)
    check_sources(*sources)
    categories = sources[1].categories  # The held-out annotations carry the ids of their own file.
    model = build_model(chosen, [category.name for category in categories])
    processor = build_image_processor(chosen.head, resizing.shortest_edge, resizing.longest_edge)
    splits = read_splits(data, sources, learns_masks(model), size_check(model, processor))
    del sources  # All that the files say is large.
    check_training(training, len(splits[0]))
    trainer = build_trainer(model, processor, splits, categories, resizing, schedule, training)
    announce(model, splits, training, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    report(metrics, training, data)


def announce(model: PreTrainedModel, splits, training: TrainingArguments, checkpoint: str | None) -> None:
    """Say what begins."""
    print(
        f"Training a {type(model).__name__} with {model.num_parameters():,} parameters on {len(splits[0]):,} images "
        f"of {model.config.num_labels} classes; {len(splits[1]):,} are held out."
        + (f" Going on from {checkpoint}." if checkpoint else "")
    )


def report(metrics: dict[str, float], training: TrainingArguments, data: DetectionTrainingDataArguments) -> None:
    """Say what there is now and what to do with it."""
    output, here = training.output_dir, Path(__file__).parent
    held_out = f" --validation_dir {data.validation_dir}" if data.validation_dir else ""
    held_out += f" --validation_annotations {data.validation_annotations}" if data.validation_annotations else ""
    scores = "; ".join(
        f"{kind} AP {metrics[f'eval_{kind}_ap']:.1%}, AP50 {metrics[f'eval_{kind}_ap50']:.1%}"
        for kind in ("box", "mask")
        if f"eval_{kind}_ap" in metrics
    )
    print(f"""
On the held-out images: {scores}.

  model and image processor   {output}
  scores                      {Path(output) / "eval_results.json"}

Try next:

  python {here / "evaluate_detection.py"} --model_name_or_path {output}{held_out}
  python {here / "detect_objects.py"} --model_name_or_path {output}""")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser(argv)
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: finetune(*arguments))


if __name__ == "__main__":
    sys.exit(main())
