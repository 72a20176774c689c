"""The Trainer of segmentors: which weights decay, mean IoU without storing masks, a progress bar with scores."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import EvalPrediction, Trainer
from transformers.trainer_callback import ProgressCallback

from .mean_iou import MeanIoU
from .score_bar import ScoreBar
from .variation import EpochTeller


NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


class SegmentationTrainer(Trainer):
    """Trainer whose weight decay takes in all weights, or all but those of normalisation layers.

    Args:
        decay_norms: Whether weights of normalisation layers decay too.
        arguments: As for `Trainer`.
        options: As for `Trainer`.
    """

    def __init__(self, *arguments, decay_norms: bool, **options):
        self.decay_norms = decay_norms
        super().__init__(*arguments, **options)
        self.add_callback(EpochTeller(self.train_dataset))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ScoreBar({"eval_mean_iou": "held-out mIoU"}))

    def get_eval_dataloader(self, eval_dataset=None):
        """Batches of all held-out images: only in training is an incomplete last one dropped."""
        drop_last, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay; unlike Transformers' default, biases are among them."""
        norms = {
            f"{prefix}.{name}"
            for prefix, module in model.named_modules()
            if isinstance(module, NORMS)
            for name, _ in module.named_parameters(recurse=False)
        }
        return [name for name, _ in model.named_parameters() if self.decay_norms or name not in norms]


class SegmentationMetrics:
    """Mean IoU of the Trainer's evaluation, batch by batch (`batch_eval_metrics`)."""

    def __init__(self, names: list[str]):
        self.names = names
        self.metric = MeanIoU(num_labels=len(names))

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count a batch; after the last, give the scores and the IoU of each class that occurs."""
        predictions, references = (torch.as_tensor(x).cpu() for x in (prediction.predictions, prediction.label_ids))
        self.metric.add_batch(predictions=predictions, references=references)
        if not compute_result:
            return {}
        scores = self.metric.compute()
        classes = zip(self.names, scores["per_category_iou"].tolist(), strict=True)
        means = {name: scores[name] for name in ("mean_iou", "mean_accuracy", "overall_accuracy")}
        return {**means, **{f"iou_{name}": iou for name, iou in classes if iou == iou}}


def most_likely_classes(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Logits (batch, num_labels, rows, columns) to classes (batch, height, width) of the labels' size."""
    logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return logits.argmax(dim=1)
