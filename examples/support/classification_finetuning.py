"""The Trainer of classifiers: learning rates by depth, varied images in each epoch, a progress bar with scores."""

import torch
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback

from .classification_models import parameter_groups
from .score_bar import ScoreBar
from .variation import EpochTeller


class ClassificationTrainer(Trainer):
    """Trainer whose learning rate may fall from layer to layer, and whose vectors do not decay.

    Args:
        layer_decay: Learning rate of a layer relative to that of the next.
        arguments: As for `Trainer`.
        options: As for `Trainer`.
    """

    def __init__(self, *arguments, layer_decay: float, **options):
        self.layer_decay = layer_decay
        super().__init__(*arguments, **options)
        self.add_callback(EpochTeller(self.train_dataset))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ScoreBar({"eval_accuracy": "held-out accuracy"}))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The Trainer's optimizer, with a group for each layer."""
        if self.optimizer is None:
            groups = parameter_groups(
                model or self.model, self.args.learning_rate, self.args.weight_decay, self.layer_decay
            )
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model or self.model)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer
