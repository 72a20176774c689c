"""The dynamic position bias: every pair of tokens gets the bias of its own offset."""

import pytest
import torch

from crossformer_hf import CrossFormerConfig
from crossformer_hf.modeling_crossformer import CrossFormerDynamicPositionBias, pairwise


SIZES = [(1, 1), (2, 3), (7, 7), (5, 2)]
FLOAT64 = torch.empty(0, dtype=torch.float64)


def position_bias(channels: int = 64, num_heads: int = 4) -> CrossFormerDynamicPositionBias:
    torch.manual_seed(0)
    return CrossFormerDynamicPositionBias(CrossFormerConfig(), channels, num_heads).double()


def bias_of_offset(module: CrossFormerDynamicPositionBias, row: int, column: int) -> torch.Tensor:
    """The MLP on a single offset: a bias per head."""
    bias = module.projection(torch.tensor([row, column], dtype=torch.float64))
    for layer in module.layers:
        bias = layer(bias)
    return bias


@pytest.mark.parametrize("size", SIZES)
def test_every_pair_finds_the_value_of_its_offset(size):
    rows, columns = size
    offsets = torch.cartesian_prod(torch.arange(1 - rows, rows), torch.arange(1 - columns, columns))
    pairs = pairwise(offsets.t().view(2, 2 * rows - 1, 2 * columns - 1))
    tokens = torch.cartesian_prod(torch.arange(rows), torch.arange(columns))
    assert torch.equal(pairs.permute(1, 2, 0), tokens[:, None] - tokens[None, :])


@pytest.mark.parametrize("size", SIZES)
def test_every_pair_gets_the_bias_of_its_offset(size):
    module = position_bias()
    bias = module(size, like=FLOAT64)
    tokens = [(row, column) for row in range(size[0]) for column in range(size[1])]
    assert bias.shape == (4, len(tokens), len(tokens))
    for query, (query_row, query_column) in enumerate(tokens):
        for key, (key_row, key_column) in enumerate(tokens):
            expected = bias_of_offset(module, query_row - key_row, query_column - key_column)
            torch.testing.assert_close(bias[:, query, key], expected)


def test_a_smaller_group_has_part_of_a_larger_ones_biases():
    module = position_bias()
    large = module((4, 5), like=FLOAT64).view(4, 4, 5, 4, 5)
    torch.testing.assert_close(module((2, 3), like=FLOAT64), large[:, :2, :3, :2, :3].reshape(4, 6, 6))


def test_width_is_a_sixteenth_of_the_channels():
    assert position_bias(channels=96).projection.weight.shape == (6, 2)
