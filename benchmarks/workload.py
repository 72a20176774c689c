"""A case made ready to run: its model and images on their device, and one call that does the work once."""

from collections.abc import Callable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cases import AUTOCAST, Case
from benchmarks.errors import BenchmarkError
from benchmarks.flops import TRAINING_FACTOR, forward_flops
from benchmarks.models import NUM_LABELS, build_model, our_config


def compute_dtype(case: Case) -> torch.dtype:
    """What matrix products are computed in."""
    return torch.bfloat16 if case.dtype == AUTOCAST else getattr(torch, case.dtype)


def outputs_of(result) -> list[torch.Tensor]:
    """The logits, or every feature map, of any model's result."""
    if isinstance(result, torch.Tensor):
        return [result]
    if "logits" in result:
        return [result.logits]
    return list(getattr(result, "feature_maps", result))


class Workload:
    """A case ready to run.

    Args:
        case: What to run.
        device: Where.
        seed: For weights, images and labels; two workloads of one model get the same.

    Raises:
        BenchmarkError: The model cannot do it.
    """

    def __init__(self, case: Case, device: torch.device, seed: int = 0):
        self.case, self.device = case, device
        weights = torch.float32 if case.dtype == AUTOCAST else getattr(torch, case.dtype)
        self.model = build_model(case, seed).to(device, weights)
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(case.batch_size, 3, *case.size, generator=generator)
        self.images = images.to(device, weights)
        self.labels = torch.randint(NUM_LABELS, (case.batch_size,), generator=generator).to(device)
        self.forward: Callable = torch.compile(self.model, dynamic=False) if case.compiled else self.model

    def run(self) -> None:
        """Do the work once: a forward pass, or a training step without the optimizer's part."""
        if self.case.mode == "training":
            self.train_step()
            return
        with torch.no_grad(), self.autocast():
            self.forward(self.images)

    def train_step(self) -> None:
        """Forward, loss and backward; gradients are dropped beforehand, as an optimizer's `zero_grad` does."""
        self.model.zero_grad(set_to_none=True)
        with self.autocast():
            outputs = outputs_of(self.forward(self.images))
            loss = self.loss(outputs)
        loss.backward()

    def loss(self, outputs: list[torch.Tensor]) -> torch.Tensor:
        """Cross entropy for a classifier, the mean square of its maps for a backbone."""
        if self.case.task == "classify":
            return F.cross_entropy(outputs[0], self.labels)
        return sum(output.float().square().mean() for output in outputs)

    def autocast(self):
        """The context to compute in."""
        if self.case.dtype != AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def outputs(self) -> list[torch.Tensor]:
        """Logits or feature maps for its images, without dropout, in float32 on the CPU.

        Raises:
            BenchmarkError: The model cannot take images of that size.
        """
        training = self.model.training
        try:
            with self.autocast():
                return [output.float().cpu() for output in outputs_of(self.model.eval()(self.images))]
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise BenchmarkError(f"{self.case.name} cannot take {self.case.setting}: {reason}") from error
        finally:
            self.model.train(training)

    def flops(self) -> float:
        """Useful FLOPs of one run: matrix products and convolutions on real tokens; three times that for training."""
        case = self.case
        factor = TRAINING_FACTOR if case.mode == "training" else 1
        if case.implementation in ("ours", "original"):
            return factor * case.batch_size * forward_flops(our_config(case), case.size, case.task == "classify")
        return factor * case.batch_size * counted_flops(self.model, case.size)


def counted_flops(model: nn.Module, size: tuple[int, int]) -> float:
    """FLOPs of one forward pass of one image of `size` (height, width) in pixels, as torch counts them."""
    parameter = next(model.parameters())
    training = model.training
    image = torch.zeros(1, 3, *size, dtype=parameter.dtype, device=parameter.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(image)
    model.train(training)
    return counter.get_total_flops()


def relative_difference(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float:
    """Largest difference as a part of the largest value, the worst over all outputs."""
    differences = [
        ((first - second).abs().max() / second.abs().max()).item() for first, second in zip(ours, theirs, strict=True)
    ]
    return max(differences)
