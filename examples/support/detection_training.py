"""The Trainer of detectors: the original schedule, COCO's scores, a progress bar with scores."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from pycocotools.coco import COCO
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import ProgressCallback

from .coco_annotations import Category
from .coco_scores import SCORES, coco_results, coco_scores, ground_truth
from .detection_data import DetectionSamples
from .detection_inference import ObjectFinder
from .score_bar import ScoreBar
from .variation import EpochTeller


WARMUP_START = 0.001
SHOWN = {"eval_box_ap50": "held-out box AP50", "eval_mask_ap50": "mask AP50"}


@dataclass
class ScheduleArguments:
    """How the learning rate falls."""

    lr_drops: list[float] = field(
        default_factory=list,
        metadata={"help": "Parts of the training after each of which the learning rate is divided by ten, such as "
                          "0.667 0.917, after a linear warm-up from a thousandth; goes before --lr_scheduler_type."},
    )  # fmt: skip

    def __post_init__(self):
        """Check every value."""
        wrong = next((part for part in self.lr_drops if not 0 < part <= 1), None)
        if wrong is not None:
            raise ValueError(f"--lr_drops has {wrong}, but it must be a part of the training, more than 0 and up to 1")


def learning_rate_factor(step: int, warmup_steps: int, drops: Sequence[int]) -> float:
    """What the learning rate is multiplied by in a step, as in mmcv's `step` policy with linear warm-up.

    Args:
        step: From 0.
        warmup_steps: Steps of the warm-up.
        drops: Steps, ascending, from which on it is divided by ten once more.
    """
    warmup = 1 - (1 - step / warmup_steps) * (1 - WARMUP_START) if step < warmup_steps else 1.0
    return warmup * 0.1 ** bisect_right(drops, step)


class DetectionTrainer(Trainer):
    """Trainer that scores with COCO's average precision.

    Args:
        held_out: Images to score on, and their annotations.
        categories: By label.
        kinds: What to score: `box`, `mask`.
        lr_drops: As in `ScheduleArguments`; none for the Trainer's own schedules.
        arguments: As for `Trainer`.
        options: As for `Trainer`; `processing_class` must be the image processor.
    """

    def __init__(
        self,
        *arguments,
        held_out: DetectionSamples,
        categories: Sequence[Category],
        kinds: Sequence[str],
        lr_drops: Sequence[float],
        **options,
    ):
        self.held_out, self.categories, self.kinds, self.lr_drops = held_out, categories, kinds, lr_drops
        self.truth = ground_truth(held_out.images, categories)
        super().__init__(*arguments, eval_dataset=held_out, **options)
        self.add_callback(EpochTeller(self.train_dataset))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(ScoreBar(SHOWN))

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay: as in the recipe all of them, norms and biases too."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The original schedule if there are drops, or else the Trainer's."""
        if not self.lr_drops or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        factor = partial(
            learning_rate_factor,
            warmup_steps=self.args.get_warmup_steps(num_training_steps),
            drops=sorted(round(part * num_training_steps) for part in self.lr_drops),
        )
        self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Take the weights from a checkpoint by `from_pretrained`, which knows the names that they are saved under.

        The Trainer's own way does not, so a DETR's backbone stays as it is (transformers' issue 43701).
        """
        if self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        saved = type(self.model).from_pretrained(resume_from_checkpoint)
        self.model.load_state_dict(saved.state_dict())

    def _load_best_model(self) -> None:
        """The same at the end of a run with `--load_best_model_at_end`."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return super()._load_best_model()
        self._load_from_checkpoint(self.state.best_model_checkpoint)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Average precision on the held-out images, of all classes and of each."""
        self.model.eval()
        finder = ObjectFinder(self.model, self.processing_class)
        results = find_all(finder, self.held_out, self.categories, self.args.per_device_eval_batch_size)
        metrics = {
            f"{metric_key_prefix}_{name}": score
            for kind in self.kinds
            for name, score in scores_of_kind(self.truth, results, kind).items()
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def find_all(
    finder: ObjectFinder, samples: DetectionSamples, categories: Sequence[Category], batch_size: int
) -> list[dict]:
    """Detections in all images in COCO's format."""
    category_ids, results = [category.id for category in categories], []
    for start in tqdm(range(0, len(samples), batch_size), desc="Evaluating", leave=False):
        indices = range(start, min(start + batch_size, len(samples)))
        found = finder([samples[index][0] for index in indices])
        for index, detections in zip(indices, found, strict=True):
            results += coco_results(detections, samples.images[index].image.id, category_ids)
    return results


def scores_of_kind(truth: COCO, results: Sequence[dict], kind: str) -> dict[str, float]:
    """Scores that are there, by names such as `box_ap50` and `box_ap_circle`."""
    scores = coco_scores(truth, results, kind)
    named = {f"{kind}_{name}": scores[name] for name in SCORES}
    named |= {f"{kind}_ap_{row['name']}": row["ap"] for row in scores["classes"]}
    return {name: score for name, score in named.items() if score is not None}
