"""The original code's model with the weights of ours."""

from pathlib import Path

from torch import nn

from benchmarks.errors import BenchmarkError
from conversion.command import ConversionError
from conversion.original_code import branch_of, build_like, check_computable
from crossformer_hf import CrossFormerPreTrainedModel


def fitting_checkout(checkouts: tuple[Path, ...], model: CrossFormerPreTrainedModel, size: tuple[int, int]) -> Path:
    """The first checkout whose code computes what the model does at `size` (height, width) in pixels.

    Raises:
        BenchmarkError: There is none.
    """
    problem = "the original code is on no registry; give a checkout of it with --original"
    kind = "classifier" if hasattr(model, "classifier") else "backbone"
    for checkout in checkouts:
        try:
            check_computable(model.config, branch_of(checkout), kind, size)
            return checkout
        except ConversionError as error:
            problem = str(error).replace("--image_size", "--sizes")  # that command's name of it
    raise BenchmarkError(problem)


def build_original(checkouts: tuple[Path, ...], model: CrossFormerPreTrainedModel, size: tuple[int, int]) -> nn.Module:
    """The original of our model, with its weights and timm's stochastic depth, which the original uses."""
    try:
        from timm.layers import DropPath
    except ImportError as error:
        raise BenchmarkError("the original code needs timm: pip install 'crossformer-hf[train]'") from error
    return build_like(model, fitting_checkout(checkouts, model, size), size, DropPath)
