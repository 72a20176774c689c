"""Work and memory of each part of a CrossFormer, from its configuration alone: nothing is run.

A multiply-add counts as one in `multiply_adds`, as in the papers, and as two in FLOPs, as in matrix-product rates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from crossformer_hf import CrossFormerConfig
from crossformer_hf.modeling_crossformer import ceil_div, resolve_grouping


# Forward, and backward twice as much: the gradients of the inputs and those of the weights.
TRAINING_FACTOR = 3
FLOPS_PER_MULTIPLY_ADD = 2


@dataclass(frozen=True)
class Cost:
    """What one part of the model costs for one image.

    Attributes:
        stage: `stem`, `stage1`, …, `head`.
        part: What of it, such as `attention products`.
        multiply_adds: Those of matrix products and convolutions, over real tokens only.
        published: The same the way the authors' code counts: each normalised value as one, the position bias for
            every group, attention between all tokens of full groups, no cooling layers.
        parameters: Number of weights.
        activations: Number of values that it computes and a training step keeps.
    """

    stage: str
    part: str
    multiply_adds: float = 0
    published: float = 0
    parameters: int = 0
    activations: float = 0

    def __add__(self, other: "Cost") -> "Cost":
        """Both together, under the name of the first."""
        amounts = ("multiply_adds", "published", "parameters", "activations")
        return Cost(self.stage, self.part, *(getattr(self, name) + getattr(other, name) for name in amounts))


def model_costs(config: CrossFormerConfig, size: tuple[int, int], with_head: bool = True) -> list[Cost]:
    """Cost of every part for one image of `size` (height, width) in pixels; parts of one name are added up.

    Args:
        config: The architecture.
        size: Height and width in pixels.
        with_head: Whether the model is a classifier: a backbone has neither final norm nor head.
    """
    costs: dict[tuple[str, str], Cost] = {}
    for cost in all_costs(config, size, with_head):
        name = (cost.stage, cost.part)
        costs[name] = costs[name] + cost if name in costs else cost
    return list(costs.values())


def total(costs: list[Cost]) -> Cost:
    """The sum."""
    return sum(costs, Cost("total", ""))


def forward_flops(config: CrossFormerConfig, size: tuple[int, int], with_head: bool = True) -> float:
    """FLOPs for one image of `size` (height, width) in pixels."""
    return FLOPS_PER_MULTIPLY_ADD * total(model_costs(config, size, with_head)).multiply_adds


def all_costs(config: CrossFormerConfig, size: tuple[int, int], with_head: bool) -> Iterator[Cost]:
    """Costs in the order of computation."""
    height, width = (ceil_div(side, config.patch_sizes[0]) for side in size)
    yield convolutions("stem", "embedding", config.num_channels, config.embed_dim, config.patch_sizes, height * width)
    if config.use_patch_norm:
        yield norm("stem", config.embed_dim, height * width)
    for index, channels in enumerate(config.stage_channels):
        name = config.stage_names[index + 1]
        if index:
            tokens = height * width
            height, width = ceil_div(height, 2), ceil_div(width, 2)
            yield norm(name, channels // 2, tokens)
            kernels = config.merge_sizes[index - 1]
            yield convolutions(name, "downsampling", channels // 2, channels, kernels, height * width)
        for position in range(config.depths[index]):
            yield from layer_costs(config, index, position, height, width)
    if with_head:
        yield norm("head", config.hidden_size, height * width)
        yield linear("head", "classifier", config.hidden_size, config.num_labels, tokens=1)


def layer_costs(config: CrossFormerConfig, stage: int, position: int, height: int, width: int) -> Iterator[Cost]:
    """Costs of one layer on a map of `height` x `width` tokens."""
    name, channels, tokens = config.stage_names[stage + 1], config.stage_channels[stage], height * width
    hidden = int(channels * config.stage_mlp_ratios[stage])
    yield norm(name, channels, tokens)
    yield linear(name, "qkv and projection", channels, 3 * channels, tokens, bias=config.qkv_bias)
    yield from attention_costs(config, stage, position, height, width)
    yield linear(name, "qkv and projection", channels, channels, tokens)
    yield norm(name, channels, tokens)
    yield linear(name, "MLP", channels, hidden, tokens)
    yield Cost(name, "MLP", activations=tokens * hidden)  # the activation function's
    yield linear(name, "MLP", hidden, channels, tokens)
    if config.use_cooling_layer and position % 3 == 2 and position < config.depths[stage] - 1:
        yield Cost(name, "cooling", 9 * channels * tokens, 0, 10 * channels, channels * tokens)
        yield Cost(name, "cooling", parameters=2 * channels, activations=channels * tokens)  # its norm


def attention_costs(config: CrossFormerConfig, stage: int, position: int, height: int, width: int) -> Iterator[Cost]:
    """Costs of the two products of attention and of the position bias."""
    name, channels, heads = config.stage_names[stage + 1], config.stage_channels[stage], config.num_heads[stage]
    interval = config.intervals[stage] if position % 2 else None
    size = config.layer_group_sizes[stage][position]
    (rows, columns), interval = resolve_grouping(height, width, size, interval, config.grouping)
    pairs = squares(height, rows, interval) * squares(width, columns, interval)
    tokens = height * width
    yield Cost(
        name,
        "attention products",
        2 * pairs * channels,
        2 * tokens * rows * columns * channels,
        activations=heads * pairs + tokens * channels,
    )
    features = channels // 16
    weights = 2 * features + 2 * features**2 + features * heads
    offsets = (2 * rows - 1) * (2 * columns - 1)
    parameters = weights + 3 * features + heads + 6 * features  # biases, three norms
    bias_values = offsets * (7 * features + heads) + heads * (rows * columns) ** 2
    yield Cost(name, "position bias", offsets * weights, tokens * weights, parameters, bias_values)


def squares(side: int, group: int, interval: int) -> int:
    """Sum of the squared lengths of all groups along one side of a map, counting real tokens only.

    The pairs of tokens that attend to each other are the product of this for both sides.

    Args:
        side: Tokens along the side.
        group: Tokens of a full group along it.
        interval: Distance between members of a group.
    """
    lengths = (
        len(range(start + offset, min(start + group * interval, side), interval))
        for start in range(0, side, group * interval)
        for offset in range(interval)
    )
    return sum(length**2 for length in lengths)


def linear(stage: str, part: str, inputs: int, outputs: int, tokens: int, bias: bool = True) -> Cost:
    """A linear layer."""
    products = tokens * inputs * outputs
    return Cost(stage, part, products, products, inputs * outputs + bias * outputs, tokens * outputs)


def norm(stage: str, channels: int, tokens: int) -> Cost:
    """A layer norm: no multiply-adds in the sense of matrix products."""
    return Cost(stage, "norms", 0, tokens * channels, 2 * channels, tokens * channels)


def convolutions(stage: str, part: str, inputs: int, outputs: int, kernels: list[int], tokens: int) -> Cost:
    """A cross-scale embedding, whose kernels share the outputs: a half, a quarter, …, the last as the one before."""
    last = len(kernels) - 1
    weights = sum(inputs * outputs // 2 ** min(i + 1, last) * kernel**2 for i, kernel in enumerate(kernels))
    return Cost(stage, part, tokens * weights, tokens * weights, weights + outputs, tokens * outputs)
