"""Top-1 and top-5 accuracy, loss and the confusion matrix, by torchmetrics, batch by batch."""

import torch
from torch.nn.functional import cross_entropy
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from transformers import EvalPrediction


ALONE = {"sync_on_compute": False}


class ClassificationScores:
    """Scores of logits, each image counted once, in this process alone.

    Args:
        num_labels: Number of classes.
    """

    def __init__(self, num_labels: int):
        self.metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(num_labels, average="micro", **ALONE),
                "top5": MulticlassAccuracy(num_labels, top_k=min(5, num_labels), average="micro", **ALONE),
                "confusion": MulticlassConfusionMatrix(num_labels, **ALONE),
            },
            compute_groups=False,
        )
        self.loss = MeanMetric(**ALONE)
        self.metrics.persistent(True)
        self.loss.persistent(True)

    def add(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Count a batch: logits (batch, num_labels) and the true classes (batch,)."""
        logits, labels = logits.float().cpu(), labels.cpu()
        self.metrics.update(logits, labels)
        self.loss.update(cross_entropy(logits, labels, reduction="none"))

    def compute(self) -> dict[str, float]:
        """`top1`, `top5` and `loss`: means over all images."""
        return {
            "top1": float(self.metrics["top1"].compute()),
            "top5": float(self.metrics["top5"].compute()),
            "loss": float(self.loss.compute()),
        }

    @property
    def confusion(self) -> torch.Tensor:
        """Images by true and predicted class (num_labels, num_labels), int64."""
        return self.metrics["confusion"].compute()

    def state_dict(self) -> dict:
        """What was counted."""
        return {"metrics": self.metrics.state_dict(), "loss": self.loss.state_dict()}

    def load_state_dict(self, state: dict) -> None:
        """Go on from what was counted."""
        self.metrics.load_state_dict(state["metrics"])
        self.loss.load_state_dict(state["loss"])


class TrainerScores:
    """Accuracies of the Trainer's evaluation, batch by batch (`batch_eval_metrics`)."""

    def __init__(self, num_labels: int):
        self.num_labels = num_labels
        self.scores = ClassificationScores(num_labels)

    def __call__(self, prediction: EvalPrediction, compute_result: bool = True) -> dict[str, float]:
        """Count a batch; after the last, give the accuracies and begin anew."""
        logits, labels = (torch.as_tensor(values) for values in (prediction.predictions, prediction.label_ids))
        self.scores.add(logits, labels)
        if not compute_result:
            return {}
        scores, self.scores = self.scores.compute(), ClassificationScores(self.num_labels)
        return {"accuracy": scores["top1"], "top5_accuracy": scores["top5"]}
