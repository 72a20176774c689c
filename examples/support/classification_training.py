"""Training a classifier from scratch with Accelerate: loaders, the loop, evaluation, and where a run stands."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import SeedableRandomSampler
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm.auto import tqdm

from .checkpoints import load_checkpoint, save_checkpoint, writing
from .classification_datasets import ImageStream, ImageTable, collate
from .classification_recipe import Learner, seed_batch
from .classification_scores import ClassificationScores
from .errors import InputError
from .training_log import LOG_FILE, TrainingLog


@dataclass
class RunArguments:
    """Where and in which pieces to train."""

    output_dir: str = field(default="outputs/classification", metadata={"help": "Folder for everything."})
    seed: int = field(default=0, metadata={"help": "Seed of weights, batches, augmentation, drop path and mixup."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Images in a batch of one process."})
    per_device_eval_batch_size: int = field(default=128, metadata={"help": "The same in evaluation."})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "Batches for each update of the weights."})
    mixed_precision: str | None = field(
        default=None, metadata={"help": "no, bf16 or fp16; unless given, as `accelerate launch` says."}
    )
    compile: bool = field(default=False, metadata={"help": "Compile the model with torch.compile."})
    channels_last: bool = field(default=False, metadata={"help": "Keep images and kernels with channels last."})
    dataloader_num_workers: int = field(default=0, metadata={"help": "Processes that read images, for each process."})
    logging_steps: int = field(default=10, metadata={"help": "Updates between two entries of the log."})
    checkpointing_steps: str = field(
        default="epoch",
        metadata={"help": "Updates between two checkpoints, or `epoch`; after an epoch there always is one."},
    )
    checkpoints_total_limit: int | None = field(default=2, metadata={"help": "Number of checkpoints to keep."})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Folder of a checkpoint to go on from; unless given, the newest whole one in --output_dir."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Start anew instead of going on from the checkpoints in --output_dir."}
    )
    with_tracking: bool = field(default=False, metadata={"help": "Send what is measured to trackers."})
    report_to: str = field(
        default="all", metadata={"help": "Tracker, such as tensorboard or wandb; `all` for those that are installed."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Upload the model at the end."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to upload to; unless given, it is named after --output_dir."}
    )
    hub_private_repo: bool = field(default=False, metadata={"help": "Make it private if it is made."})

    def __post_init__(self):
        """Check every value."""
        positive = ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
        for name in (*positive, "logging_steps", "checkpoints_total_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, but it must be at least 1")
        if self.dataloader_num_workers < 0:
            raise ValueError(f"--dataloader_num_workers is {self.dataloader_num_workers}, but it must be 0 or more")
        if self.mixed_precision not in (None, "no", "bf16", "fp16"):
            raise ValueError(f"--mixed_precision is {self.mixed_precision}, but it must be no, bf16 or fp16")
        steps = self.checkpointing_steps
        if steps != "epoch" and (not steps.isdigit() or int(steps) < 1):
            raise ValueError(f"--checkpointing_steps is {steps}, but it must be a positive number or `epoch`")

    @property
    def steps_between_checkpoints(self) -> int | None:
        """Updates between two checkpoints, or `None` for checkpoints after epochs only."""
        return None if self.checkpointing_steps == "epoch" else int(self.checkpointing_steps)


@dataclass
class Progress:
    """Where a run stands; saved with each checkpoint.

    Attributes:
        epoch: Number of whole epochs.
        batch: Batches of the next one that have been learnt from.
        losses: Of the batches since the last entry of the log.
        num_records: Number of entries of the log.
    """

    epoch: int = 0
    batch: int = 0
    losses: list[torch.Tensor] = field(default_factory=list)
    num_records: int = 0

    def state_dict(self) -> dict:
        """Numbers alone."""
        return {**vars(self), "losses": [loss.item() for loss in self.losses]}

    def load_state_dict(self, state: dict) -> None:
        """Stand where a checkpoint was written."""
        vars(self).update({**state, "losses": [torch.tensor(loss) for loss in state["losses"]]})


def build_loader(examples: ImageTable | ImageStream, run: RunArguments, training: bool) -> DataLoader:
    """Batches of examples; in training shuffled, anew in each epoch, without an incomplete last one."""
    sampler = None
    if training and not isinstance(examples, IterableDataset):
        data_seed = int(np.random.SeedSequence(run.seed).generate_state(1)[0])
        sampler = SeedableRandomSampler(examples, data_seed=data_seed)
    return DataLoader(
        examples,
        batch_size=run.per_device_train_batch_size if training else run.per_device_eval_batch_size,
        sampler=sampler,
        drop_last=training,
        collate_fn=collate,
        num_workers=run.dataloader_num_workers,
        persistent_workers=run.dataloader_num_workers > 0,
        pin_memory=torch.accelerator.is_available(),
    )


def count_batches(loader: DataLoader) -> int | None:
    """Batches in an epoch, or `None` for a stream."""
    return None if isinstance(loader.dataset, IterableDataset) else len(loader)


@torch.no_grad()
def evaluate(
    accelerator: Accelerator, model: nn.Module, loader: DataLoader, num_labels: int, channels_last: bool
) -> dict[str, float]:
    """Accuracy, top-5 accuracy, mean cross entropy, and number of held-out images.

    Each image counts once, in however many processes, and also where the last batch is not full.
    """
    was_training = model.training
    model.eval()
    scores, num_images = ClassificationScores(num_labels), 0
    for batch in tqdm(loader, desc="Evaluating", leave=False, disable=not accelerator.is_local_main_process):
        with accelerator.autocast():
            logits = model(pixel_values=pixels_of(batch, channels_last)).logits
        logits, labels = accelerator.gather_for_metrics((logits, batch["labels"]))
        scores.add(logits, labels)
        num_images += len(labels)
    model.train(was_training)
    if not num_images:
        raise InputError("there are no held-out images, but the model is to be tested: give --validation_dir")
    means = scores.compute()
    names = {"eval_accuracy": "top1", "eval_top5_accuracy": "top5", "eval_loss": "loss"}
    return {**{name: means[key] for name, key in names.items()}, "eval_images": num_images}


def pixels_of(batch: dict[str, torch.Tensor], channels_last: bool) -> torch.Tensor:
    """Pixel values of a batch in the memory format that is asked for."""
    return batch["pixel_values"].to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


class ClassifierTraining:
    """The loop.

    Args:
        learner: Takes the steps.
        loaders: Prepared batches for training and for evaluation.
        progress: Where the run stands.
        run: Where and in which pieces to train.
        num_steps: Updates of the weights in all.
    """

    def __init__(
        self,
        learner: Learner,
        loaders: tuple[DataLoader, DataLoader],
        progress: Progress,
        run: RunArguments,
        num_steps: int,
    ):
        self.learner, self.accelerator, self.progress = learner, learner.accelerator, progress
        self.train_loader, self.eval_loader = loaders
        self.run_arguments, self.num_steps, self.output = run, num_steps, Path(run.output_dir)
        self.num_batches = count_batches(self.train_loader)
        self.norm, self.shown, self.saved_step = None, {}, None

    def start(self, checkpoint: Path | None) -> None:
        """Load a checkpoint, if there is one, and get ready."""
        learner, accelerator = self.learner, self.accelerator
        accelerator.register_for_checkpointing(learner, self.progress, *filter(None, [learner.ema]))
        if checkpoint:
            load_checkpoint(accelerator, checkpoint)
            self.saved_step = learner.completed_steps
        self.log = TrainingLog(self.output / LOG_FILE, self.progress.num_records, accelerator.is_main_process)
        self.bar = tqdm(
            total=self.num_steps,
            initial=learner.completed_steps,
            desc="Training",
            unit="step",
            disable=not accelerator.is_local_main_process,
        )
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the speed from now on."""
        self.start_time, self.num_images = time.perf_counter(), 0

    def run(self) -> dict[str, float]:
        """Train to the end and return the last record of scores."""
        while self.learner.completed_steps < self.num_steps:
            self.train_epoch()
            self.evaluate()
            self.progress.epoch, self.progress.batch = self.progress.epoch + 1, 0
            self.save()
        self.bar.close()
        if self.num_steps not in [record["step"] for record in self.log.with_key("eval_loss")]:
            self.evaluate()  # Killed between the last checkpoint and its test.
        return self.log.with_key("eval_loss")[-1]

    def train_epoch(self) -> None:
        """Learn from the rest of an epoch, or up to the last step."""
        for batch in self.batches():
            self.train_batch(batch)
            if not self.accelerator.sync_gradients:
                continue
            step = self.learner.completed_steps
            self.bar.update()
            if step % self.run_arguments.logging_steps == 0 or step == self.num_steps:
                self.record_losses()
            every = self.run_arguments.steps_between_checkpoints
            if every and step % every == 0:
                self.save()
            if step == self.num_steps:
                break
        if not self.progress.batch:
            raise InputError("an epoch has no full batch of images: give more images or a smaller batch")

    def batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """Batches of this epoch that have not been learnt from."""
        self.train_loader.dataset.set_epoch(self.progress.epoch)
        self.train_loader.set_epoch(self.progress.epoch)
        if not self.progress.batch:
            return self.train_loader
        return skip_first_batches(self.train_loader, self.progress.batch)

    def train_batch(self, batch: dict[str, torch.Tensor]) -> None:
        """Learn from a batch, in a way that depends on nothing but its place in the run."""
        progress, run = self.progress, self.run_arguments
        seed_batch(run.seed, progress.epoch, progress.batch, self.accelerator.process_index)
        loss, self.norm = self.learner.train_batch(pixels_of(batch, run.channels_last), batch["labels"])
        progress.losses.append(loss)
        progress.batch += 1
        self.num_images += len(batch["labels"]) * self.accelerator.num_processes

    def record_losses(self) -> None:
        """Log the mean loss since the last entry.

        Raises:
            InputError: It is no finite number.
        """
        self.average_losses()
        loss = sum(loss.item() for loss in self.progress.losses) / len(self.progress.losses)
        step, seconds = self.learner.completed_steps, time.perf_counter() - self.start_time
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} after {step} steps, but must be finite: give a lower --learning_rate, a longer "
                "warm-up, or another --mixed_precision"
            )
        rate, norm, speed = self.learner.optimizer.param_groups[0]["lr"], float(self.norm), self.num_images / seconds
        self.record({"loss": loss, "learning_rate": rate, "gradient_norm": norm, "images_per_second": speed})
        self.show(loss=f"{loss:.3f}", rate=f"{rate:.1e}", speed=f"{speed:,.0f} images/s")
        self.progress.losses = []
        self.restart_clock()

    def average_losses(self) -> None:
        """Make each loss that is not logged yet the mean over all processes."""
        if self.progress.losses:
            losses = torch.stack([loss.to(self.accelerator.device) for loss in self.progress.losses])
            self.progress.losses = list(self.accelerator.reduce(losses, reduction="mean"))

    def evaluate(self) -> None:
        """Test on the held-out images and log the scores."""
        learner, channels_last = self.learner, self.run_arguments.channels_last
        model = learner.model if learner.ema is None else learner.ema.module
        scores = evaluate(self.accelerator, model, self.eval_loader, learner.num_labels, channels_last)
        self.show(accuracy=f"{scores['eval_accuracy']:.1%}")
        self.record(scores)
        self.restart_clock()

    def show(self, **values: str) -> None:
        """Show values at the end of the bar, beside those shown before."""
        self.shown |= values
        self.bar.set_postfix_str(", ".join(f"{name} {value}" for name, value in self.shown.items()))

    def record(self, values: dict[str, float]) -> None:
        """Write down and send to trackers."""
        step = self.learner.completed_steps
        part = self.progress.batch / self.num_batches if self.num_batches else 0  # It is not known of a stream.
        with writing(self.log.path):
            self.log.add({"step": step, "epoch": self.progress.epoch + part, **values})
        self.progress.num_records = len(self.log.records)
        self.accelerator.log(values, step=step)

    def save(self) -> None:
        """Write a checkpoint, unless there is one of this step."""
        if self.saved_step != self.learner.completed_steps:
            self.average_losses()
            limit = self.run_arguments.checkpoints_total_limit
            save_checkpoint(self.accelerator, self.output, self.learner.completed_steps, limit)
            self.saved_step = self.learner.completed_steps
            self.restart_clock()
