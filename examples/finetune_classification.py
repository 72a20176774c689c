"""Fine-tune a pretrained classifier on your own classes with the Trainer.

With a folder of images for each class in `my/train`, the same in `my/validation`:

    python finetune_classification.py --model_name_or_path crossformer-s --train_dir my/train
        --validation_dir my/validation --output_dir outputs/mine

At another size, as no weight depends on it; with low-rank adapters; or with the first stages as they are:

    ... --image_size 384
    ... --lora_rank 8 --learning_rate 1e-3
    ... --freeze_stages 2 --layer_decay 0.8

A killed run goes on from its last checkpoint when the same command is given again. Flags that are not described here
are the Trainer's.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path


try:
    import accelerate  # noqa: F401  (the Trainer needs it, and says so only much later)
    import torch
    from support.classification_data import ClassificationDataArguments, LabelledSplits, load_images
    from support.classification_datasets import build_dataset, collate
    from support.classification_finetuning import ClassificationTrainer
    from support.classification_models import add_adapters, freeze_stages, load_processor, pretrained_classifier
    from support.classification_scores import TrainerScores
    from support.classification_transforms import (
        AUGMENTATIONS,
        EvaluationTransform,
        TrainingTransform,
        image_size_of,
        sizes_at,
    )
    from support.curves import draw_curves
    from support.errors import CommandParser, InputError, run_command
    from support.resuming import find_checkpoint, write_atomically
    from torch import nn
    from transformers import PreTrainedModel, TrainingArguments, logging, set_seed
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


SETTINGS = ("learning_rate", "weight_decay", "warmup_steps", "max_steps", "num_train_epochs", "seed")
SETTINGS += ("per_device_train_batch_size", "gradient_accumulation_steps", "lr_scheduler_type")
SETTINGS += ("label_smoothing_factor",)


@dataclass
class ModelArguments:
    """What to train, and which of its weights."""

    model_name_or_path: str = field(metadata={"help": "Folder or Hub name of a pretrained classifier."})
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width in pixels; unless given, that of the model's processor."}
    )
    augmentation: str = field(
        default="light",
        metadata={"help": "How training images are varied: `imagenet` is the original recipe's, with RandAugment and "
                          "random erasing, `light` crops and mirrors, `flip` mirrors.",
                  "choices": list(AUGMENTATIONS)},
    )  # fmt: skip
    drop_path_rate: float | None = field(
        default=None, metadata={"help": "Of the last layer; unless given, as in the model's configuration."}
    )
    layer_decay: float = field(
        default=1.0, metadata={"help": "Learning rate of a layer relative to that of the next, such as 0.8."}
    )
    freeze_stages: int = field(
        default=0, metadata={"help": "Number of stages, from the first, to keep as they are, the embeddings included."}
    )
    lora_rank: int = field(
        default=0,
        metadata={"help": "Train low-rank adapters (LoRA) of this rank and the head alone; 0 for all weights."},
    )
    lora_alpha: int = field(default=16, metadata={"help": "Weight of the adapters, times their rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the adapters."})
    merge_adapters: bool = field(
        default=False, metadata={"help": "Save a whole model with the adapters merged, instead of the adapters."}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew instead of going on from the checkpoints in --output_dir."}
    )

    def __post_init__(self):
        """Check every value."""
        if self.image_size is not None and self.image_size < 1:
            raise ValueError(f"--image_size is {self.image_size}, but it must be at least 1")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"--layer_decay is {self.layer_decay}, but it must be more than 0 and at most 1")
        for name in ("freeze_stages", "lora_rank"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} is {getattr(self, name)}, but it must be 0 or more")
        if self.lora_rank and self.freeze_stages:
            raise ValueError(
                f"--freeze_stages is {self.freeze_stages}, but with --lora_rank {self.lora_rank} all pretrained "
                "weights are kept as they are: leave one of the two out"
            )
        if self.merge_adapters and not self.lora_rank:
            raise ValueError("--merge_adapters is given, but there are no adapters without --lora_rank")


def build_parser() -> CommandParser:
    """Parser of all flags."""
    parser = CommandParser([ModelArguments, ClassificationDataArguments, TrainingArguments], description=__doc__)
    parser.set_defaults(
        output_dir="outputs/fine_tuned",
        learning_rate=1e-4,
        weight_decay=0.05,
        num_train_epochs=10.0,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        max_grad_norm=5.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        logging_steps=10,
        save_total_limit=2,
        disable_tqdm=False,
        remove_unused_columns=False,
        batch_eval_metrics=True,
        label_names=["labels"],
        report_to="none",
        dataloader_pin_memory=torch.accelerator.is_available(),
    )
    return parser


def check_training(images: LabelledSplits, training: TrainingArguments) -> None:
    """Check what the Trainer would not explain."""
    if images.train is None:
        raise InputError("no training images are given: give --train_dir or --dataset_name")
    if len(images.names) < 2:
        raise InputError(f"there is 1 class ({images.names[0]}), but a classifier tells at least 2 apart: add another")
    if training.learning_rate <= 0:
        raise InputError(f"--learning_rate is {training.learning_rate}, but it must be positive: give more")
    if training.max_steps <= 0 and not hasattr(images.train, "__len__"):
        raise InputError(
            "--max_steps is not given, but the length of a stream is not known: give the number of updates"
        )


def build_model(arguments: ModelArguments, names: list[str]) -> nn.Module:
    """The pretrained model, with a new head and with those weights to be trained that are asked for."""
    fields = {"image_size": arguments.image_size, "drop_path_rate": arguments.drop_path_rate}
    fields = {name: value for name, value in fields.items() if value is not None}
    model = pretrained_classifier(arguments.model_name_or_path, names, **fields)
    if arguments.freeze_stages:
        freeze_stages(model, arguments.freeze_stages)
    if arguments.lora_rank:
        return add_adapters(model, arguments.lora_rank, arguments.lora_alpha, arguments.lora_dropout)
    return model


def build_processor(arguments: ModelArguments):
    """The model's image processor, at the size asked for."""
    processor = load_processor(arguments.model_name_or_path)
    if arguments.image_size is not None:
        for name, value in sizes_at(processor, arguments.image_size).items():
            setattr(processor, name, value)
    return processor


def build_trainer(
    model: nn.Module, processor, images: LabelledSplits, arguments: ModelArguments, data, training: TrainingArguments
) -> ClassificationTrainer:
    """Trainer on the training and held-out images."""
    varied = TrainingTransform(AUGMENTATIONS[arguments.augmentation], processor, image_size_of(processor))
    options = {"skip_broken": data.skip_broken_images}
    return ClassificationTrainer(
        model,
        training,
        layer_decay=arguments.layer_decay,
        data_collator=collate,
        train_dataset=build_dataset(
            images.train, varied, training.seed, **options, shuffle_buffer_size=data.shuffle_buffer_size, endless=True
        ),
        eval_dataset=build_dataset(images.validation, EvaluationTransform(processor), training.seed, **options),
        processing_class=processor,
        compute_metrics=TrainerScores(len(images.names)),
    )


def settings_of(arguments: ModelArguments, data: ClassificationDataArguments, training: TrainingArguments) -> dict:
    """What a run must have in common with the one that it goes on with."""
    settings = {**asdict(arguments), **asdict(data)}
    for name in ("overwrite_output_dir", "merge_adapters"):
        settings.pop(name)
    return {**settings, **{name: getattr(training, name) for name in SETTINGS}}


def finetune(arguments: ModelArguments, data: ClassificationDataArguments, training: TrainingArguments) -> None:
    """Train, evaluate and save."""
    set_seed(training.seed)
    checkpoint = find_checkpoint(arguments.overwrite_output_dir, settings_of(arguments, data, training), training)
    images = load_images(data)
    check_training(images, training)
    model = build_model(arguments, images.names)
    trainer = build_trainer(model, build_processor(arguments), images, arguments, data, training)
    announce(model, images, checkpoint)
    trainer.train(resume_from_checkpoint=checkpoint)
    metrics = trainer.evaluate()
    trainer.save_metrics("eval", metrics)
    save(trainer, arguments.merge_adapters, Path(training.output_dir))
    report(metrics, training.output_dir, data)


def save(trainer: ClassificationTrainer, merge_adapters: bool, output: Path) -> None:
    """Write the model with its image processor, and the curves."""
    if merge_adapters:
        trainer.model = trainer.accelerator.unwrap_model(trainer.model).merge_and_unload()
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.model.config.save_pretrained(output)  # Adapters alone would not say the classes.
        records = trainer.state.log_history
        losses, scores = ([record for record in records if key in record] for key in ("loss", "eval_loss"))
        title = f"Accuracy {scores[-1]['eval_accuracy']:.1%} on the held-out images"
        write_atomically(output / "curves.png", lambda file: draw_curves(file, losses, scores, title))


def announce(model: PreTrainedModel, images: LabelledSplits, checkpoint: str | None) -> None:
    """Say what begins."""
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    count = f"{len(images.train):,} images" if hasattr(images.train, "__len__") else "a stream of images"
    print(
        f"Training {trained:,} of {total:,} parameters on {count} of {len(images.names)} classes."
        + (f" Going on from {checkpoint}." if checkpoint else "")
    )


def report(metrics: dict[str, float], output: str, data: ClassificationDataArguments) -> None:
    """Say what there is now and what to do with it."""
    default = ClassificationDataArguments()
    flags = "".join(f" --{name} {value}" for name, value in asdict(data).items() if value != getattr(default, name))
    print(f"""
Accuracy on the held-out images: {metrics["eval_accuracy"]:.1%}.

  model and image processor   {output}
  scores                      {Path(output) / "eval_results.json"}
  loss and accuracy by step   {Path(output) / "curves.png"}

Try next:

  python {Path(__file__).parent / "evaluate_classification.py"} --model_name_or_path {output}{flags}""")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser()
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: finetune(*arguments))


if __name__ == "__main__":
    sys.exit(main())
