"""Linear layers and patch projections compute what PyTorch's do, whichever way is faster."""

import copy

import pytest
import torch
from torch import nn

from crossformer_hf import linear_crossformer
from crossformer_hf.linear_crossformer import (
    CrossFormerLinear,
    CrossFormerPatchProjection,
    multiplies_faster_as_convolution,
)


@pytest.fixture(autouse=True)
def fast_convolutions(monkeypatch):
    """As on a CPU with AVX-512, on whatever machine."""
    monkeypatch.setattr(linear_crossformer, "HAS_FAST_CONVOLUTIONS", True)


def gradients(module: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Output, and the gradients of a loss that weighs every number differently."""
    inputs = inputs.clone().requires_grad_()
    output = module(inputs)
    weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
    return [output, *torch.autograd.grad((output * weights).sum(), [inputs, *module.parameters()])]


def assert_computes_the_same(module: nn.Module, plain: nn.Module, inputs: torch.Tensor) -> None:
    """Outputs and gradients of `module` are those of `plain`, in its layout."""
    plain.load_state_dict(module.state_dict())
    for ours, theirs in zip(gradients(module, inputs), gradients(plain, inputs), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (40, 24), (5, 49, 24), (2, 6, 7, 24), (0, 24)])
def test_linear_layer(shape, bias):
    assert_computes_the_same(CrossFormerLinear(24, 40, bias), nn.Linear(24, 40, bias), torch.randn(shape))


def test_linear_layer_takes_any_strides():
    inputs = torch.randn(24, 7, 5).permute(2, 1, 0)
    assert_computes_the_same(CrossFormerLinear(24, 40), nn.Linear(24, 40), inputs)
    assert CrossFormerLinear(24, 40)(inputs).is_contiguous()


@pytest.mark.parametrize(("kernel_size", "stride"), [(2, 2), (4, 2), (4, 4), (16, 4)])
@pytest.mark.parametrize("size", [(4, 8), (16, 12), (40, 40)])
def test_patch_projection(size, kernel_size, stride):
    arguments = (6, 32, kernel_size, stride, (kernel_size - stride) // 2)
    feature_map = torch.randn(2, 6, *size)
    assert_computes_the_same(CrossFormerPatchProjection(*arguments), nn.Conv2d(*arguments), feature_map)


def test_only_plain_float32_tensors_on_a_cpu(monkeypatch):
    plain = torch.randn(3, 4)
    assert multiplies_faster_as_convolution(plain, nn.Parameter(plain))
    assert not multiplies_faster_as_convolution(plain, plain.double())
    assert not multiplies_faster_as_convolution(plain, plain.to("meta"))
    assert not multiplies_faster_as_convolution(plain, plain.as_subclass(type("Quantised", (torch.Tensor,), {})))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not multiplies_faster_as_convolution(plain, plain)
    monkeypatch.setattr(linear_crossformer, "HAS_FAST_CONVOLUTIONS", False)
    assert not multiplies_faster_as_convolution(plain, plain)


@pytest.mark.parametrize("rows", [3, 50])
def test_compiled(rows):
    module, inputs = CrossFormerLinear(24, 40), torch.randn(rows, 24)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(gradients(compiled, inputs), gradients(module, inputs), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_exported_models_multiply_plainly():
    program = torch.export.export(CrossFormerLinear(24, 40), (torch.randn(50, 24),))
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls == ["aten.linear.default"]
