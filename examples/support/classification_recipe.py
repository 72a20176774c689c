"""How a classifier is trained from scratch: which weights decay, how the learning rate moves, what one step does.

The defaults are the original recipe for ImageNet-1k, which was for batches of 1024 (128 on each of 8 GPUs). Like the
authors' code this does not scale the learning rate with the batch.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.data import Mixup
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn
from torch.nn.functional import cross_entropy


# Swin's own recipe leaves its tables of biases alone, which are matrices.
NEVER_DECAYED = ["*relative_position_bias_table"]

# Defaults of all flags of a script; those of `RecipeArguments` are the original's.
RECIPES = {
    "imagenet": {"preset": "crossformer-s", "augmentation": "imagenet", "dataloader_num_workers": 8},
    # For images of up to 64 pixels, of which there are few, and minutes of training: nothing that needs many epochs.
    "small_images": {
        "preset": "crossformer-32px",
        "augmentation": "flip",
        "num_train_epochs": 7,
        "optimizer": "nadamuon",
        "learning_rate": 2e-3,
        "adam_beta2": 0.95,
        "warmup_epochs": 0.2,
        "mixup": 0.0,
        "cutmix": 0.0,
    },
}


@dataclass
class RecipeArguments:
    """How to train."""

    num_train_epochs: int = field(default=300, metadata={"help": "Passes over the training images."})
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Updates of the weights, in place of --num_train_epochs."}
    )
    optimizer: str = field(
        default="adamw",
        metadata={"help": "adamw, or timm's nadamuon, which makes updates of matrices orthogonal: fewer steps do. Not "
                          "for sharded models (FSDP).",
                  "choices": ["adamw", "nadamuon"]},
    )  # fmt: skip
    learning_rate: float = field(default=5e-4, metadata={"help": "Highest learning rate."})
    weight_decay: float = field(default=0.05, metadata={"help": "Of matrices and kernels; vectors do not decay."})
    adam_beta1: float = field(default=0.9, metadata={"help": "The optimizer's decay of the mean gradient."})
    adam_beta2: float = field(default=0.999, metadata={"help": "Its decay of the mean squared gradient."})
    adam_epsilon: float = field(default=1e-8, metadata={"help": "Its epsilon."})
    warmup_epochs: float = field(default=20.0, metadata={"help": "Epochs in which the learning rate rises."})
    num_warmup_steps: int | None = field(
        default=None, metadata={"help": "The same in updates of the weights; goes before --warmup_epochs."}
    )
    warmup_learning_rate: float = field(default=5e-7, metadata={"help": "Learning rate of the first update."})
    min_learning_rate: float = field(default=5e-6, metadata={"help": "Learning rate at the end."})
    max_grad_norm: float = field(default=5.0, metadata={"help": "Longest gradient; 0 for any."})
    label_smoothing: float = field(default=0.1, metadata={"help": "Share of a target that all classes divide."})
    mixup: float = field(default=0.8, metadata={"help": "Alpha of mixup; 0 for none."})
    cutmix: float = field(default=1.0, metadata={"help": "Alpha of CutMix; 0 for none."})
    mixup_prob: float = field(default=1.0, metadata={"help": "Share of the batches that are mixed at all."})
    mixup_switch_prob: float = field(default=0.5, metadata={"help": "Share of CutMix where both are on."})
    ema_decay: float | None = field(
        default=None,
        metadata={"help": "Keep a moving average of the weights with this decay, such as 0.9999, which is what is "
                          "evaluated and saved; it starts lower. Unless given, there is none."},
    )  # fmt: skip

    def __post_init__(self):
        """Check every value."""
        for name in ("learning_rate", "num_train_epochs", "max_train_steps"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}, but it must be positive: give more")
        for name in ("weight_decay", "warmup_epochs", "num_warmup_steps", "max_grad_norm", "mixup", "cutmix"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"--{name} is {value}, but it must not be negative: give 0 or more")
        for name in ("label_smoothing", "mixup_prob", "mixup_switch_prob", "ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"--{name} is {value}, but it must be between 0 and 1")


def build_optimizer(model: nn.Module, recipe: RecipeArguments) -> torch.optim.Optimizer:
    """Optimizer with two groups: vectors and biases, which do not decay, and all other weights."""
    return create_optimizer_v2(
        param_groups_weight_decay(model, recipe.weight_decay, no_weight_decay_list=NEVER_DECAYED),
        opt=recipe.optimizer,
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
    )


def build_schedule(
    optimizer: torch.optim.Optimizer, recipe: RecipeArguments, steps_per_epoch: int, num_steps: int
) -> CosineLRScheduler:
    """Linear rise, then a cosine from the start of training, both per update of the weights.

    Args:
        optimizer: Its learning rates move.
        recipe: Highest, first and last learning rate and the length of the rise.
        steps_per_epoch: Updates in an epoch.
        num_steps: Updates in all.
    """
    warmup = recipe.num_warmup_steps
    return CosineLRScheduler(
        optimizer,
        t_initial=num_steps,
        lr_min=recipe.min_learning_rate,
        warmup_t=round(recipe.warmup_epochs * steps_per_epoch) if warmup is None else warmup,
        warmup_lr_init=recipe.warmup_learning_rate,
        t_in_epochs=False,
    )


def build_mixing(recipe: RecipeArguments, num_labels: int) -> Mixup | None:
    """Mixup and CutMix in whole batches, if either is on. Labels are smoothed in the loss."""
    if not (recipe.mixup or recipe.cutmix):
        return None
    return Mixup(
        mixup_alpha=recipe.mixup,
        cutmix_alpha=recipe.cutmix,
        prob=recipe.mixup_prob,
        switch_prob=recipe.mixup_switch_prob,
        label_smoothing=0.0,
        num_classes=num_labels,
    )


def seed_batch(seed: int, epoch: int, batch: int, process: int) -> None:
    """Make all that is random in a batch, drop path and mixup for two, depend on its position and process alone."""
    set_seed(int(np.random.SeedSequence([seed, epoch, batch, process]).generate_state(1)[0]))


@dataclass
class Learner:
    """What a step of training takes and changes.

    Args:
        accelerator: With what the model and the optimizer were prepared.
        model: Classifier in training mode.
        optimizer: From `build_optimizer`.
        schedule: From `build_schedule`.
        recipe: Label smoothing and the longest gradient.
        num_labels: Number of classes.
        mixing: From `build_mixing`.
        ema: Moving average of the model's weights, if there is one.
        completed_steps: Updates of the weights up to now.
    """

    accelerator: Accelerator
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: CosineLRScheduler
    recipe: RecipeArguments
    num_labels: int
    mixing: Mixup | None = None
    ema: ModelEmaV3 | None = None
    completed_steps: int = 0

    def train_batch(
        self, pixel_values: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Learn from a batch.

        Args:
            pixel_values: (batch, channels, height, width); may be overwritten.
            labels: (batch,), int64.

        Returns:
            The loss, and the norm of the gradient before clipping, or `None` while gradients are only accumulated.
        """
        with self.accelerator.accumulate(self.model):
            loss = self.loss(pixel_values, labels)
            self.accelerator.backward(loss)
            norm = self.update() if self.accelerator.sync_gradients else None
        return loss.detach(), norm

    def loss(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy with mixed and smoothed targets.

        The model gets no labels: it would take mixed ones, which are fractions, for those of several labels an image.
        """
        if self.mixing is not None:
            pixel_values, labels = self.mixing(pixel_values, labels)
        logits = self.model(pixel_values=pixel_values).logits
        return cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)

    def update(self) -> torch.Tensor:
        """Change the weights, and return the norm of their gradient before clipping."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_grad_norm or float("inf"))
        self.optimizer.step()
        self.optimizer.zero_grad()
        # As in the authors' code the number of the update just done: the first two have the same learning rate.
        self.schedule.step_update(self.completed_steps)
        self.completed_steps += 1
        if self.ema is not None:
            self.ema.update(self.accelerator.unwrap_model(self.model), step=self.completed_steps)
        return norm

    def state_dict(self) -> dict:
        """What is not in the model, the optimizer and the moving average."""
        return {"completed_steps": self.completed_steps}

    def load_state_dict(self, state: dict) -> None:
        """Go on after the steps of a checkpoint."""
        self.completed_steps = state["completed_steps"]
        if self.completed_steps:
            self.schedule.step_update(self.completed_steps - 1)
