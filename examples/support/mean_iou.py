"""Mean intersection over union, with the keys of the Hub's `mean_iou`, but offline and without storing any mask."""

import datasets
import evaluate
import numpy as np


DESCRIPTION = "Intersection over union of each class, averaged over the classes that occur (arXiv 1411.4038)."
INPUTS = """
Args:
    predictions: Class of each pixel, a list of (height, width) or (batch, height, width).
    references: The true classes in the same shapes; values that are no class are left out.
"""


class MeanIoU(evaluate.Metric):
    """`evaluate`'s mean IoU, adding up a confusion matrix instead of keeping every mask.

    `evaluate.load("mean_iou")` is downloaded from the Hub and holds all masks until the end.

    Args:
        num_labels: Number of classes.
        ignore_index: Label of pixels that do not count.

    Attributes:
        confusion: Pixels by true class and predicted class (num_labels, num_labels), int64.

    Example:
    ```python
    >>> metric = MeanIoU(num_labels=2)
    >>> metric.add_batch(predictions=[[[0, 1]]], references=[[[0, 255]]])
    >>> metric.compute()["mean_iou"]
    1.0

    ```
    """

    def __init__(self, num_labels: int, ignore_index: int = 255, **kwargs):
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.confusion = np.zeros((num_labels, num_labels), dtype=np.int64)
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        """What `evaluate` wants to know."""
        image = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        features = datasets.Features({"predictions": image, "references": image})
        return evaluate.MetricInfo(description=DESCRIPTION, citation="", features=features, inputs_description=INPUTS)

    def add_batch(self, *, predictions=None, references=None, **kwargs) -> None:
        """Count the pixels of a batch."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def add(self, *, prediction=None, reference=None, **kwargs) -> None:
        """Count the pixels of one image."""
        prediction, reference = np.asarray(prediction), np.asarray(reference)
        has_class = (reference >= 0) & (reference < self.num_labels) & (reference != self.ignore_index)
        pairs = self.num_labels * reference[has_class].astype(np.int64) + prediction[has_class]
        self.confusion += np.bincount(pairs, minlength=self.num_labels**2).reshape(self.confusion.shape)

    def compute(self, *, predictions=None, references=None, **kwargs) -> dict:
        """Scores of all that was added, and of the given masks; counting then begins anew."""
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        scores = self.scores()
        self.confusion[:] = 0
        return scores

    def scores(self) -> dict:
        """Scores so far, as `compute` gives them, without beginning anew.

        Returns:
            `mean_iou`, `mean_accuracy` and `overall_accuracy` in [0, 1], `per_category_iou` and
            `per_category_accuracy` (num_labels,), NaN for classes that do not occur, which the means leave out.
        """
        right, true, predicted = self.confusion.diagonal(), self.confusion.sum(1), self.confusion.sum(0)
        union = true + predicted - right
        iou, accuracy = share(right, union), share(right, true)
        return {
            "mean_iou": mean_of_numbers(iou),
            "mean_accuracy": mean_of_numbers(accuracy),
            "overall_accuracy": float(share(right.sum(), true.sum())),
            "per_category_iou": iou,
            "per_category_accuracy": accuracy,
        }


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part / whole`, NaN where `whole` is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=np.asarray(whole) > 0)


def mean_of_numbers(values: np.ndarray) -> float:
    """Mean of what is not NaN; NaN if there is nothing."""
    numbers = values[~np.isnan(values)]
    return float(numbers.mean()) if len(numbers) else float("nan")
