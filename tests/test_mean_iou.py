"""Mean IoU beside numbers computed by hand and a direct computation."""

import evaluate
import numpy as np
import pytest
import torch
from support.mean_iou import MeanIoU


def test_by_hand():
    """Class 0: 2 right of a union of 4; class 1: 1 of 4; class 2: 1 of 2; class 3 does not occur."""
    reference = [[0, 0, 0, 1], [1, 2, 2, 255]]
    prediction = [[0, 0, 1, 1], [0, 2, 1, 2]]
    scores = MeanIoU(num_labels=4).compute(predictions=[prediction], references=[reference])
    assert scores["per_category_iou"] == pytest.approx([2 / 4, 1 / 4, 1 / 2, np.nan], nan_ok=True)
    assert scores["per_category_accuracy"] == pytest.approx([2 / 3, 1 / 2, 1 / 2, np.nan], nan_ok=True)
    assert scores["mean_iou"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 2) / 3)
    assert scores["mean_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1 / 2) / 3)
    assert scores["overall_accuracy"] == pytest.approx(4 / 7)


def direct(predictions, references, num_labels, ignore_index):
    """IoU and accuracy of each class, from the definition."""
    keep = references != ignore_index
    iou, accuracy = [], []
    for label in range(num_labels):
        predicted, true = (predictions == label) & keep, (references == label) & keep
        both, either = (predicted & true).sum(), (predicted | true).sum()
        iou.append(both / either if either else np.nan)
        accuracy.append(both / true.sum() if true.sum() else np.nan)
    return iou, accuracy


@pytest.mark.parametrize("ignore_index", [255, 1])
def test_agrees_with_the_definition(ignore_index):
    generator = np.random.default_rng(0)
    references = generator.choice([0, 1, 2, 3, 255], (5, 9, 7))
    predictions = generator.choice([0, 1, 2, 4], (5, 9, 7))
    references[references == 255] = ignore_index
    scores = MeanIoU(6, ignore_index).compute(predictions=predictions, references=references)
    iou, accuracy = direct(predictions, references, 6, ignore_index)
    assert scores["per_category_iou"] == pytest.approx(iou, nan_ok=True)
    assert scores["per_category_accuracy"] == pytest.approx(accuracy, nan_ok=True)
    assert scores["mean_iou"] == pytest.approx(np.nanmean(iou))


def test_batches_add_up_and_compute_begins_anew():
    generator = torch.Generator().manual_seed(0)
    predictions, references = torch.randint(3, (2, 6, 4, 5), generator=generator)
    metric = MeanIoU(3)
    assert isinstance(metric, evaluate.Metric)
    whole = metric.compute(predictions=predictions, references=references)
    for half in (slice(0, 2), slice(2, 6)):
        metric.add_batch(predictions=predictions[half], references=references[half])
    assert metric.scores()["mean_iou"] == metric.compute()["mean_iou"] == whole["mean_iou"]
    assert metric.confusion.sum() == 0


def test_nothing_to_count():
    scores = MeanIoU(2).compute(predictions=[[[0, 1]]], references=[[[255, -100]]])
    assert np.isnan(scores["mean_iou"]) and np.isnan(scores["overall_accuracy"])
