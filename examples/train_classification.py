"""Train a classifier from random weights with Accelerate: the original ImageNet recipe, or one for small images.

With images in `my/train/CLASS/…` and `my/validation/CLASS/…`, and the original recipe (8 GPUs, 128 images on each):

    accelerate launch --num_processes 8 --mixed_precision fp16 train_classification.py --preset crossformer-s
        --train_dir my/train --validation_dir my/validation --output_dir outputs/mine

Small images, in minutes on two cores:

    python train_classification.py --recipe small_images --dataset_name fashion_mnist --output_dir outputs/fashion

The same with Transformers' Swin, and without long distance attention:

    … --model_type swin --config_overrides '{"image_size": 32, "patch_size": 2, "embed_dim": 64, "depths": [2, 2, 6],
        "num_heads": [2, 4, 8], "window_size": 4}'
    … --preset crossformer-32px --config_overrides '{"intervals": [1, 1, 1]}'

A killed run goes on from its last whole checkpoint when the same command is given again, to the same losses. Flags go
before what the recipe says.
"""

import argparse
import math
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path


try:
    import torch
    from accelerate import Accelerator, DistributedType
    from accelerate.utils import parse_flag_from_env, set_seed
    from support.checkpoints import choose_checkpoint, writing
    from support.classification_architectures import ArchitectureArguments, build_classifier
    from support.classification_data import ClassificationDataArguments, load_images
    from support.classification_datasets import build_dataset
    from support.classification_recipe import (
        RECIPES,
        Learner,
        RecipeArguments,
        build_mixing,
        build_optimizer,
        build_schedule,
    )
    from support.classification_training import (
        ClassifierTraining,
        Progress,
        RunArguments,
        build_loader,
        count_batches,
    )
    from support.classification_transforms import (
        AUGMENTATIONS,
        EvaluationTransform,
        TrainingTransform,
        build_image_processor,
    )
    from support.curves import draw_curves
    from support.errors import CommandParser, InputError, run_command, say
    from support.publishing import CURVES_FILE, RESULTS_FILE, check_token, save_classifier, upload, write_card
    from support.resuming import SETTINGS_FILE, START_ANEW, check_same_run, remove_run, write_atomically, write_json
    from support.training_log import LOG_FILE
    from timm.utils import ModelEmaV3
    from transformers import PreTrainedModel, logging
except ImportError as error:
    sys.exit(f"This script needs `{error.name}`, which is not installed: pip install 'crossformer-hf[train]'")


# Flags that may change when a run goes on.
CHANGEABLE = ("output_dir", "overwrite_output_dir", "resume_from_checkpoint", "checkpoints_total_limit", "report_to")
CHANGEABLE += ("with_tracking", "push_to_hub", "hub_model_id", "hub_private_repo", "per_device_eval_batch_size")


@dataclass
class InputArguments:
    """What the model sees."""

    recipe: str = field(
        default="imagenet",
        metadata={"help": "Defaults of the other flags: the original one, or one for small images.",
                  "choices": list(RECIPES)},
    )  # fmt: skip
    image_size: int | None = field(
        default=None, metadata={"help": "Height and width of the images in pixels; unless given, the model's."}
    )
    augmentation: str = field(
        default="imagenet", metadata={"help": "How training images are varied.", "choices": list(AUGMENTATIONS)}
    )


Arguments = tuple[InputArguments, ArchitectureArguments, ClassificationDataArguments, RecipeArguments, RunArguments]


def build_parser(argv: list[str] | None) -> CommandParser:
    """Parser whose defaults are those of the recipe that `argv` names."""
    parser = CommandParser(Arguments.__args__, description=__doc__)
    parser.set_defaults(**recipe_defaults(argv))
    return parser


def recipe_defaults(argv: list[str] | None) -> dict:
    """Defaults of the recipe that `argv` names, but for a preset where another architecture is named."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("recipe", "config_name", "model_type"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}")
    given = parser.parse_known_args(argv)[0]
    defaults = dict(RECIPES.get(given.recipe or "imagenet", {}))
    if given.config_name or given.model_type:
        defaults.pop("preset", None)
    return {**defaults, "recipe": given.recipe or "imagenet"}


def build_accelerator(run: RunArguments) -> Accelerator:
    """Accelerator, as the flags and `accelerate launch` say."""
    try:
        return Accelerator(
            cpu=not torch.accelerator.is_available(),  # Else processes on CPUs would not know of each other.
            gradient_accumulation_steps=run.gradient_accumulation_steps,
            mixed_precision=run.mixed_precision,
            dynamo_backend="inductor" if run.compile else None,
            log_with=run.report_to if run.with_tracking else None,
            project_dir=run.output_dir,
        )
    except ValueError as error:
        raise InputError(f"--mixed_precision or --report_to cannot be used here ({error}): give another") from error


def settings_of(arguments: Arguments, accelerator: Accelerator) -> dict:
    """What a run must have in common with the one that it goes on with."""
    settings = {name: value for part in arguments for name, value in asdict(part).items() if name not in CHANGEABLE}
    return {**settings, "num_processes": accelerator.num_processes}


def find_start(accelerator: Accelerator, run: RunArguments, settings: dict) -> Path | None:
    """The checkpoint to go on from, of the same run, if there is one."""
    output = Path(run.output_dir)
    if accelerator.is_main_process:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
            if run.overwrite_output_dir:
                remove_run(output, SETTINGS_FILE, LOG_FILE)
            check_same_run(output / SETTINGS_FILE, settings, START_ANEW)
    return choose_checkpoint(accelerator, output, run.resume_from_checkpoint)


def check_settings(recipe: RecipeArguments, run: RunArguments, accelerator: Accelerator) -> None:
    """Refuse what cannot go together.

    Raises:
        InputError: It cannot.
    """
    if (recipe.mixup or recipe.cutmix) and run.per_device_train_batch_size % 2:
        raise InputError(
            f"--per_device_train_batch_size is {run.per_device_train_batch_size}, but mixup and CutMix pair images: "
            "give an even number, or --mixup 0 --cutmix 0"
        )
    sharded = accelerator.distributed_type == DistributedType.FSDP
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and not sharded:
        raise InputError("FSDP is configured, but Accelerate shards models on several GPUs only: leave it out")
    if recipe.ema_decay is not None and sharded:
        raise InputError(
            f"--ema_decay is {recipe.ema_decay}, but weights that FSDP shards are not averaged: leave it out"
        )
    if recipe.optimizer != "adamw" and sharded:
        raise InputError(
            f"--optimizer is {recipe.optimizer}, which needs whole matrices, but FSDP shards them: give adamw"
        )
    if run.push_to_hub:
        check_token()


def build_examples(model: PreTrainedModel, splits, inputs: InputArguments, data, run: RunArguments) -> tuple:
    """Training and held-out examples, and the image processor."""
    size = inputs.image_size or model.config.image_size
    size = max(size) if isinstance(size, list | tuple) else size
    processor = build_image_processor(size, model.config.num_channels)
    varied = TrainingTransform(AUGMENTATIONS[inputs.augmentation], processor, size)
    # Accelerate divides a stream among processes.
    options = {"skip_broken": data.skip_broken_images}
    train = build_dataset(splits.train, varied, run.seed, shuffle_buffer_size=data.shuffle_buffer_size, **options)
    return train, build_dataset(splits.validation, EvaluationTransform(processor), run.seed, **options), processor


def count_steps(num_batches: int | None, recipe: RecipeArguments, run: RunArguments) -> tuple[int, int]:
    """Updates of the weights in an epoch and in all.

    Raises:
        InputError: An epoch has no batch, or its length is not known.
    """
    if num_batches is None and (recipe.max_train_steps is None or recipe.num_warmup_steps is None):
        raise InputError(
            "a stream does not say how long an epoch is, which the learning rate depends on: give --max_train_steps "
            "and --num_warmup_steps"
        )
    if num_batches == 0:
        raise InputError(
            f"--per_device_train_batch_size is {run.per_device_train_batch_size}, but there are too few training "
            "images for one batch in each process: give less"
        )
    per_epoch = math.ceil((num_batches or 1) / run.gradient_accumulation_steps)
    return per_epoch, recipe.max_train_steps or per_epoch * recipe.num_train_epochs


def build_training(model, examples, recipe: RecipeArguments, run: RunArguments, accelerator) -> ClassifierTraining:
    """All that is trained and tested with, ready to start or to load a checkpoint."""
    model = model.to(accelerator.device, memory_format=torch.channels_last if run.channels_last else None)
    ema = ModelEmaV3(model, recipe.ema_decay, use_warmup=True) if recipe.ema_decay is not None else None
    loaders = build_loader(examples[0], run, training=True), build_loader(examples[1], run, training=False)
    num_labels = model.config.num_labels
    model, optimizer, *loaders = accelerator.prepare(model, build_optimizer(model, recipe), *loaders)
    steps_per_epoch, num_steps = count_steps(count_batches(loaders[0]), recipe, run)
    schedule = build_schedule(optimizer, recipe, steps_per_epoch, num_steps)
    mixing = build_mixing(recipe, num_labels)
    learner = Learner(accelerator, model.train(), optimizer, schedule, recipe, num_labels, mixing, ema)
    return ClassifierTraining(learner, loaders, Progress(), run, num_steps)


def train(*arguments) -> None:
    """Train, test and save."""
    inputs, architecture, data, recipe, run = arguments
    accelerator = build_accelerator(run)
    check_settings(recipe, run, accelerator)
    settings = settings_of(arguments, accelerator)
    checkpoint = find_start(accelerator, run, settings)
    with accelerator.main_process_first():
        splits = load_images(data)
    if splits.train is None:
        raise InputError("no training images are given: give --train_dir or --dataset_name")
    set_seed(run.seed)
    model = build_classifier(architecture, splits.names)
    *examples, processor = build_examples(model, splits, inputs, data, run)
    announce(model, splits, checkpoint, run, accelerator)
    training = build_training(model, examples, recipe, run, accelerator)
    if run.with_tracking:
        accelerator.init_trackers("train_classification", {name: str(value) for name, value in settings.items()})
    training.start(checkpoint)
    scores = training.run()
    save_classifier(training.learner, processor, Path(run.output_dir))
    if accelerator.is_main_process:
        public = {**asdict(inputs), **asdict(architecture), **asdict(recipe), "seed": run.seed}
        publish(training, model, data.dataset_name or data.train_dir or data.validation_dir, scores, public)
    accelerator.end_training()


def announce(model: PreTrainedModel, splits, checkpoint: Path | None, run: RunArguments, accelerator) -> None:
    """Say what begins."""
    if not accelerator.is_main_process:
        return
    counts = [f"{len(images):,}" if hasattr(images, "__len__") else "a stream of" for images in splits[:2]]
    print(
        f"Training a {type(model).__name__} with {model.num_parameters():,} parameters on {counts[0]} images of "
        f"{len(splits.names)} classes in batches of {batch_of(run, accelerator)}; {counts[1]} are held out."
        + (f" Going on from {checkpoint}." if checkpoint else "")
    )


def batch_of(run: RunArguments, accelerator: Accelerator) -> int:
    """Images for each update of the weights."""
    return run.per_device_train_batch_size * run.gradient_accumulation_steps * accelerator.num_processes


def publish(training: ClassifierTraining, model: PreTrainedModel, dataset: str, scores: dict, settings: dict) -> None:
    """Write scores, curve and model card, upload all if asked, and say what there is."""
    run, output, log = training.run_arguments, training.output, training.log
    title = f"{type(model).__name__} on {Path(dataset).name}"
    with writing(output):
        write_json(output / RESULTS_FILE, scores)
        losses, tests = log.with_key("loss"), log.with_key("eval_loss")
        write_atomically(output / CURVES_FILE, lambda file: draw_curves(file, losses, tests, title))
        write_card(output, model, dataset, batch_of(run, training.accelerator), scores, settings)
    if run.push_to_hub:
        say(f"uploaded to {upload(output, run.hub_model_id, run.hub_private_repo)}")
    print(f"""
{scores["eval_accuracy"]:.2%} of {scores["eval_images"]:,} held-out images are classified right.

  model and image processor   {output}
  curves, scores              {output / CURVES_FILE}, {output / RESULTS_FILE}
  model card                  {output / "README.md"}""")


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    parser = build_parser(argv)
    arguments = parser.parse(argv)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return run_command(parser, lambda: train(*arguments))


if __name__ == "__main__":
    sys.exit(main())
