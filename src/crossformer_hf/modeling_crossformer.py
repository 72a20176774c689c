"""CrossFormer and CrossFormer++ in PyTorch, for Hugging Face Transformers.

Papers: arXiv 2108.00154 (CrossFormer) and 2303.06908 (CrossFormer++). Original code: github.com/cheerss/CrossFormer.

Tensors come in three layouts:

- `feature_map` (batch, channels, height, width): the image, what passes between stages, every output map;
- `hidden_states` (batch, height, width, channels): inside a stage;
- `groups` (batch * num_groups, tokens_per_group, channels): inside attention.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BackboneOutput,
    BaseModelOutput,
    BaseModelOutputWithPooling,
    ImageClassifierOutput,
    SemanticSegmenterOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_crossformer import CrossFormerConfig
from .linear_crossformer import CrossFormerLinear, CrossFormerPatchProjection


# A padded key adds its product with the query's last features, -PADDED_KEY ** 2, to the scaled score: far enough below
# any score that its weight is exactly 0, near enough to stay finite in float16.
PADDED_KEY = 64.0
# Fused attention kernels want head widths that are multiples of 8.
PADDING_FEATURES = 8
# On a CPU, groups of up to this many tokens are too short for a fused attention kernel.
SHORT_GROUP = 64
# This many numbers stay in a CPU's caches, and its allocator keeps their memory.
PART_SIZE = 2**20


def ceil_div(dividend: int, divisor: int) -> int:
    """Quotient of two positive numbers, rounded up."""
    return (dividend + divisor - 1) // divisor


def resolve_grouping(
    height: int, width: int, group_size: int, interval: int | None, grouping: str
) -> tuple[tuple[int, int], int]:
    """Size and interval of the attention groups on one token map; the three policies of the original code.

    Groups are never larger than the map needs: where the original pads a square group over a smaller map, the group
    here is the rectangle that holds the real tokens, which computes the same.

    Args:
        height: Rows of the map, in tokens.
        width: Columns of the map, in tokens.
        group_size: The layer's group size, in tokens.
        interval: The layer's interval, in tokens; `None` for short distance attention (SDA).
        grouping: `fixed_group` (original `main` branch), `fixed_interval` (the dense code of its `crossformer` branch)
            or `adaptive_interval` (`main` with its flag of that name).

    Returns:
        The group's (height, width) and its interval, both in tokens. Interval 1 is a group of adjacent tokens.
    """
    if height <= group_size or width <= group_size:
        shorter = min(height, width)
        return ((shorter, shorter) if grouping == "fixed_interval" else (height, width)), 1
    if interval is None:
        return (group_size, group_size), 1
    if grouping == "fixed_interval":
        return (ceil_div(height, interval), ceil_div(width, interval)), interval
    if grouping == "adaptive_interval":
        interval = ceil_div(max(height, width), group_size)
    # A branch, not `min`: with dynamic shapes the group of a large map stays a constant in the compiled graph.
    rows = group_size if group_size * interval <= height else ceil_div(height, interval)
    columns = group_size if group_size * interval <= width else ceil_div(width, interval)
    return (rows, columns), interval


def padding_to_multiple(size: int, multiple: int) -> int:
    """What to add to a positive `size` to make it a multiple of `multiple`."""
    return ceil_div(size, multiple) * multiple - size


def tiled_size(height: int, width: int, group_size: tuple[int, int], interval: int) -> tuple[int, int]:
    """(height, width) of the smallest map that holds one of these sides and is tiled by groups, in tokens."""
    rows, columns = group_size
    return (
        height + padding_to_multiple(height, rows * interval),
        width + padding_to_multiple(width, columns * interval),
    )


def pad_feature_map(feature_map: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad (batch, channels, height, width) with zeros, below and on the right, to a multiple of `multiple`."""
    bottom, right = (padding_to_multiple(size, multiple) for size in feature_map.shape[-2:])
    # With dynamic shapes the answer is not known, so one graph that always pads serves every size.
    return feature_map if statically_known_true(bottom + right == 0) else F.pad(feature_map, (0, right, 0, bottom))


def group_tokens(hidden_states: torch.Tensor, group_size: tuple[int, int], interval: int = 1) -> torch.Tensor:
    """Collect every `interval`-th token into groups of `group_size` (height, width), in tokens.

    Interval 1 is short distance attention (SDA); larger is long distance (LDA). Section 3.2 of arXiv 2108.00154.
    Takes (batch, height, width, channels) with sides that are multiples of `group_size * interval`; returns
    (batch * num_groups, tokens_per_group, channels).
    """
    batch, height, width, channels = hidden_states.shape
    rows, columns = group_size
    row_regions, column_regions = height // (rows * interval), width // (columns * interval)
    # (batch, row_region, row, row_offset, column_region, column, column_offset, channels)
    regions = hidden_states.view(batch, row_regions, rows, interval, column_regions, columns, interval, channels)
    return regions.permute(0, 1, 4, 3, 6, 2, 5, 7).reshape(-1, rows * columns, channels)


def ungroup_tokens(
    groups: torch.Tensor, group_size: tuple[int, int], interval: int, height: int, width: int
) -> torch.Tensor:
    """Undo `group_tokens`: (batch * num_groups, tokens_per_group, channels) to (batch, height, width, channels)."""
    rows, columns = group_size
    row_regions, column_regions = height // (rows * interval), width // (columns * interval)
    batch = groups.shape[0] // (row_regions * column_regions * interval**2)
    # (batch, row_region, column_region, row_offset, column_offset, row, column, channels)
    regions = groups.view(batch, row_regions, column_regions, interval, interval, rows, columns, groups.shape[-1])
    return regions.permute(0, 1, 5, 3, 2, 6, 4, 7).reshape(batch, height, width, groups.shape[-1])


def padded_groups(
    batch: int, height: int, width: int, group_size: tuple[int, int], interval: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Groups of (batch, height, width) tokens of any size, as if each map were padded below and on the right.

    Returns two tensors (batch * num_groups, tokens_per_group), grouped as by `group_tokens`: each token's place among
    all tokens of the batch, row by row, with any place for padding, and whether it is real.
    """
    rows, columns = tiled_size(height, width, group_size, interval)
    # Counted from 1, so that padding is 0.
    places = torch.arange(1, height * width + 1, device=device).view(1, height, width, 1)
    places = F.pad(places, (0, 0, 0, columns - width, 0, rows - height))
    places = group_tokens(places, group_size, interval).squeeze(-1)
    starts = height * width * torch.arange(batch, device=device)
    return ((places - 1).clamp(min=0) + starts[:, None, None]).flatten(0, 1), (places > 0).repeat(batch, 1)


def ungroup_padded_tokens(
    groups: torch.Tensor, group_size: tuple[int, int], interval: int, height: int, width: int
) -> torch.Tensor:
    """Undo the grouping by `padded_groups`.

    (batch * num_groups, tokens_per_group, channels) to the real tokens (batch, height, width, channels).
    """
    rows, columns = tiled_size(height, width, group_size, interval)
    places = torch.arange(rows * columns, device=groups.device).view(-1, groups.shape[1], 1)
    places = crop_tokens(ungroup_tokens(places, group_size, interval, rows, columns), height, width)
    tokens = groups.view(-1, rows * columns, groups.shape[-1]).index_select(1, places.flatten())
    return tokens.unflatten(1, (height, width))


def crop_tokens(hidden_states: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The first `height` rows and `width` columns of (batch, padded height, padded width, channels)."""
    # Gathered, not sliced: with dynamic shapes the layout of a slice depends on whether it cuts anything off.
    rows = torch.arange(height, device=hidden_states.device)
    columns = torch.arange(width, device=hidden_states.device)
    index = (rows[:, None] * hidden_states.shape[2] + columns).flatten()
    return hidden_states.flatten(1, 2).index_select(1, index).unflatten(1, (height, width))


def split_rows(row_size: int, *tensors: torch.Tensor) -> list[tuple[torch.Tensor, ...]]:
    """Split tensors (rows, ...) into parts that are faster to work on, one after the other, than the whole.

    Large intermediate results leave a CPU's caches, and its allocator takes their memory from the system each time,
    which costs more than to compute them. Where gradients keep them, on other devices, and in compiled graphs, whose
    number of parts would depend on the size of the images, there is one part.

    Args:
        row_size: Numbers that the work on a row needs at a time.
        tensors: What to split in the same places.
    """
    rows = tensors[0].shape[0]
    if tensors[0].device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return [tensors]
    num_parts = max(1, ceil_div(rows * row_size, PART_SIZE))
    return list(zip(*(tensor.chunk(num_parts) for tensor in tensors), strict=True))


def join_rows(parts: list[torch.Tensor | None]) -> torch.Tensor | None:
    """Undo `split_rows` for one tensor, or none."""
    return torch.cat(parts) if len(parts) > 1 and parts[0] is not None else parts[0]


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax attention in plain PyTorch.

    Takes query, key and value (groups, heads, tokens, head_dim) and an additive `attention_mask` that broadcasts to
    (groups, heads, tokens, tokens); returns (groups, tokens, heads, head_dim) and the probabilities.
    """
    # The query is scaled before the product, as in the original: in float16 the unscaled product can overflow.
    scores = torch.matmul(query * scaling, key.transpose(-1, -2)).add_(attention_mask)
    probabilities = nn.functional.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(probabilities, value).transpose(1, 2), probabilities


def short_attention_forward(*args, **kwargs) -> tuple[torch.Tensor, None]:
    """`eager_attention_forward` without the probabilities, in place of a fused kernel."""
    return eager_attention_forward(*args, **kwargs)[0], None


class CrossFormerDropPath(nn.Module):
    """Stochastic depth: drops a residual branch for a random part of the batch (arXiv 1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Keep a sample's branch with probability `1 - rate`, scaled to keep its expectation; identity in eval."""
        if self.rate == 0.0 or not self.training:
            return hidden_states
        keep_shape = (hidden_states.shape[0],) + (1,) * (hidden_states.ndim - 1)
        keep = hidden_states.new_empty(keep_shape).bernoulli_(1 - self.rate)
        return hidden_states * (keep / (1 - self.rate))

    def extra_repr(self) -> str:
        """The rate, for `print(model)`."""
        return f"rate={self.rate}"


class CrossFormerCrossScaleEmbedding(nn.Module):
    """Cross-scale embedding layer (CEL): one token from patches of several sizes with the same centre.

    Convolutions of different kernel sizes and one stride, concatenated; the larger a kernel, the fewer its channels
    (section 3.1 of arXiv 2108.00154).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_sizes: list[int], stride: int):
        super().__init__()
        self.stride = stride
        # A half, a quarter, …, and the last kernel gets as much as the one before it.
        last = len(kernel_sizes) - 1
        self.projections = nn.ModuleList(
            CrossFormerPatchProjection(
                in_channels, out_channels // 2 ** min(i + 1, last), size, stride, padding=(size - stride) // 2
            )
            for i, size in enumerate(kernel_sizes)
        )

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) to out_channels, with the sides divided by the stride, rounded up."""
        feature_map = pad_feature_map(feature_map, self.stride)
        return torch.cat([projection(feature_map) for projection in self.projections], dim=1)


class CrossFormerEmbeddings(nn.Module):
    """Image to the first token map."""

    def __init__(self, config: CrossFormerConfig):
        super().__init__()
        self.num_channels = config.num_channels
        stride = config.patch_sizes[0]
        self.patch_embeddings = CrossFormerCrossScaleEmbedding(
            config.num_channels, config.embed_dim, config.patch_sizes, stride
        )
        self.layernorm = (
            nn.LayerNorm(config.embed_dim, eps=config.layer_norm_eps) if config.use_patch_norm else nn.Identity()
        )
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(batch, num_channels, height, width) in pixels to the stem (batch, embed_dim, height, width) in tokens."""
        self.check_image(pixel_values)
        pixel_values = pixel_values.to(self.patch_embeddings.projections[0].weight.dtype)
        hidden_states = self.patch_embeddings(pixel_values).permute(0, 2, 3, 1)
        return self.dropout(self.layernorm(hidden_states)).permute(0, 3, 1, 2)

    def check_image(self, pixel_values: torch.Tensor) -> None:
        """Raise a `ValueError` unless the images have the right channels and at least one patch."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != self.num_channels:
            raise ValueError(
                f"`pixel_values` has the shape {tuple(pixel_values.shape)}, but must be (batch, {self.num_channels}, "
                "height, width); convert images to that number of channels or set `num_channels` in the configuration."
            )
        patch = self.patch_embeddings.stride
        if min(pixel_values.shape[-2:]) < patch:
            raise ValueError(
                f"`pixel_values` has the shape {tuple(pixel_values.shape)}, but height and width must be at least one "
                f"patch: {patch} pixels; resize the images."
            )


class CrossFormerDownsampling(nn.Module):
    """Start of every stage but the first: layer norm, then a cross-scale embedding that halves height and width."""

    def __init__(self, config: CrossFormerConfig, in_channels: int, kernel_sizes: list[int]):
        super().__init__()
        self.layernorm = nn.LayerNorm(in_channels, eps=config.layer_norm_eps)
        self.embedding = CrossFormerCrossScaleEmbedding(in_channels, 2 * in_channels, kernel_sizes, stride=2)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(batch, channels, height, width) to (batch, 2 * channels, height / 2, width / 2), rounded up."""
        normalized = self.layernorm(feature_map.permute(0, 2, 3, 1))
        return self.embedding(normalized.permute(0, 3, 1, 2))


class CrossFormerPositionBiasLayer(nn.Module):
    """Layer norm, ReLU and linear layer: one step of the dynamic position bias."""

    def __init__(self, config: CrossFormerConfig, in_features: int, out_features: int):
        super().__init__()
        self.layernorm = nn.LayerNorm(in_features, eps=config.layer_norm_eps)
        self.linear = nn.Linear(in_features, out_features)

    def forward(self, offsets: torch.Tensor) -> torch.Tensor:
        """(num_offsets, in_features) to (num_offsets, out_features)."""
        return self.linear(F.relu(self.layernorm(offsets)))


class CrossFormerDynamicPositionBias(nn.Module):
    """Dynamic position bias (DPB): an MLP from the offset between two tokens to a bias for each head.

    A function of the offset instead of a table, so one set of weights serves groups of any size (section 3.3 of arXiv
    2108.00154). The original quarters the width twice, hence `channels // 16`.
    """

    def __init__(self, config: CrossFormerConfig, channels: int, num_heads: int):
        super().__init__()
        width = channels // 16
        self.projection = nn.Linear(2, width)
        self.layers = nn.ModuleList(
            CrossFormerPositionBiasLayer(config, width, features) for features in (width, width, num_heads)
        )

    def forward(self, group_size: tuple[int, int], like: torch.Tensor) -> torch.Tensor:
        """Bias of each pair of tokens of a group of `group_size` (height, width): (heads, tokens, tokens).

        It is computed with the dtype and on the device of `like`; those of the weights differ if they are quantised.
        """
        rows, columns = group_size
        row_offsets = torch.arange(1 - rows, rows, device=like.device)
        column_offsets = torch.arange(1 - columns, columns, device=like.device)
        bias = self.projection(torch.cartesian_prod(row_offsets, column_offsets).to(like.dtype))
        for layer in self.layers:
            bias = layer(bias)
        return pairwise(bias.t().unflatten(1, (2 * rows - 1, 2 * columns - 1))).to(like.dtype)


def pairwise(values: torch.Tensor) -> torch.Tensor:
    """Value of each pair of tokens in a group, from the value of each offset between two tokens.

    Takes (heads, 2 * rows - 1, 2 * columns - 1), offsets from the most negative on; returns (heads, rows * columns,
    rows * columns), where the offset is the first token's place less the second's.
    """
    rows, columns = (ceil_div(size, 2) for size in values.shape[1:])
    # For each first token a window of offsets, the second tokens backwards; columns, then rows.
    windows = values.unfold(2, columns, 1).flip(3)
    windows = windows.unfold(1, rows, 1).flip(4)
    # (heads, row, column, other_column, other_row)
    return windows.transpose(3, 4).flatten(3).flatten(1, 2)


class CrossFormerAttention(nn.Module):
    """Long short distance attention (LSDA): self-attention within groups of tokens.

    Short distance attention (SDA) groups adjacent tokens and has no interval; long distance attention (LDA) groups
    tokens `interval` apart.
    """

    is_causal = False

    def __init__(
        self, config: CrossFormerConfig, channels: int, num_heads: int, group_size: int, interval: int | None
    ):
        super().__init__()
        self.config = config
        self.num_heads = num_heads
        self.group_size = group_size
        self.interval = interval
        self.head_dim = channels // num_heads
        self.scaling = config.qk_scale or self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.qkv = CrossFormerLinear(channels, 3 * channels, bias=config.qkv_bias)
        self.position_bias = CrossFormerDynamicPositionBias(config, channels, num_heads)
        self.projection = CrossFormerLinear(channels, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend within groups.

        Takes and returns (batch, height, width, channels), and the probabilities (batch * num_groups, heads,
        tokens_per_group, tokens_per_group) where the attention implementation gives them, else `None`.
        """
        height, width = hidden_states.shape[1:3]
        group_size, interval = resolve_grouping(height, width, self.group_size, self.interval, self.config.grouping)
        position_bias = self.position_bias(group_size, like=hidden_states)[None]
        is_tiled = statically_known_true(sum(tiled_size(height, width, group_size, interval)) == height + width)
        attend = self.attend_within_tiles if is_tiled else self.attend_within_padded_groups
        output, probabilities = attend(hidden_states, position_bias, group_size, interval, **kwargs)
        return self.dropout(output), probabilities

    def attend_within_tiles(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        group_size: tuple[int, int],
        interval: int,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend where groups tile the map; takes and returns what `forward` does."""
        groups = group_tokens(hidden_states, group_size, interval)
        contexts, probabilities = [], []
        for (part,) in split_rows(3 * groups.shape[1] * groups.shape[2], groups):
            context, probability = self.attend(self.qkv(part), position_bias, **kwargs)
            contexts.append(self.projection(context))
            probabilities.append(probability)
        output = ungroup_tokens(join_rows(contexts), group_size, interval, *hidden_states.shape[1:3])
        return output, join_rows(probabilities)

    def attend_within_padded_groups(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor,
        group_size: tuple[int, int],
        interval: int,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attend where groups reach beyond the map: as `attend_within_tiles`, but only real tokens are projected."""
        batch, height, width, channels = hidden_states.shape
        projected = self.qkv(hidden_states).flatten(0, 2)
        places, is_real = padded_groups(batch, height, width, group_size, interval, hidden_states.device)
        contexts, probabilities = [], []
        for part, is_real_part in split_rows(3 * channels * places.shape[1], places, is_real):
            groups = projected.index_select(0, part.flatten()).view(*part.shape, projected.shape[-1])
            context, probability = self.attend(groups, position_bias, is_real_part, **kwargs)
            contexts.append(context)
            probabilities.append(probability)
        context = ungroup_padded_tokens(join_rows(contexts), group_size, interval, height, width)
        return self.projection(context), join_rows(probabilities)

    def attend(
        self,
        groups: torch.Tensor,
        position_bias: torch.Tensor,
        is_real: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Apply the attention implementation to some groups.

        Args:
            groups: Queries, keys and values (num_groups, tokens_per_group, 3 * channels).
            position_bias: Bias of each pair (1, heads, tokens_per_group, tokens_per_group).
            is_real: False where a token is padding (num_groups, tokens_per_group); none is if it is not given.
            kwargs: For the attention implementation.

        Returns:
            (num_groups, tokens_per_group, channels), and the probabilities (num_groups, heads, tokens_per_group,
            tokens_per_group) where the implementation gives them, else `None`.
        """
        query, key, value = groups.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if is_real is not None:
            query, key, value = self.keep_off_padding(query, key, value, is_real)
        context, probabilities = self.attention_function(query, position_bias)(
            self,
            query,
            key,
            value,
            attention_mask=position_bias.to(query.dtype),
            scaling=self.scaling,
            dropout=self.attention_dropout if self.training else 0.0,
            **kwargs,
        )
        return context[..., : self.head_dim].flatten(2), probabilities

    def attention_function(self, query: torch.Tensor, position_bias: torch.Tensor) -> Callable:
        """The chosen attention implementation, or what is faster in place of a fused kernel and computes the same."""
        implementation = self.config._attn_implementation
        if implementation == "sdpa" and query.device.type == "cpu" and not torch.compiler.is_compiling():
            # The fused kernel is slow on short groups, and gives no gradient of the bias.
            if query.shape[-2] <= SHORT_GROUP or position_bias.requires_grad:
                return short_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)

    def keep_off_padding(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_real: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """Keep attention off the tokens that are not real.

        The mask is carried by the tokens: heads get a few more features, whose product of query and key is 0 for a
        real key and far below 0 for a padded one. So a mask per pair of tokens is never built, and a group without any
        real token still has a finite softmax.

        Takes (num_groups, heads, tokens_per_group, head_dim) and (num_groups, tokens_per_group); returns wider heads.
        """
        query, key, value = (F.pad(tensor, (0, PADDING_FEATURES)) for tensor in (query, key, value))
        query[..., self.head_dim :] = PADDED_KEY / self.scaling / PADDING_FEATURES
        key[..., self.head_dim :] = torch.where(is_real, 0.0, -PADDED_KEY)[:, None, :, None]
        return query, key, value


class CrossFormerMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: CrossFormerConfig, channels: int, hidden_channels: int):
        super().__init__()
        if config.hidden_act not in ACT2FN:
            raise ValueError(
                f"`hidden_act` is {config.hidden_act!r}, but it must be an activation that Transformers knows: "
                f"{', '.join(sorted(ACT2FN))}."
            )
        self.fc1 = CrossFormerLinear(channels, hidden_channels)
        self.activation = ACT2FN[config.hidden_act]
        self.fc2 = CrossFormerLinear(hidden_channels, channels)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels) to the same."""
        parts = split_rows(self.fc1.out_features, hidden_states.flatten(0, -2))
        return join_rows([self.transform(tokens) for (tokens,) in parts]).view_as(hidden_states)

    def transform(self, tokens: torch.Tensor) -> torch.Tensor:
        """(tokens, channels) to the same."""
        hidden_states = self.dropout(self.activation(self.fc1(tokens)))
        return self.dropout(self.fc2(hidden_states))


class CrossFormerCoolingLayer(nn.Module):
    """Activation cooling layer (ACL): a depthwise convolution and a layer norm without a residual connection.

    It keeps the activations of the residual stream from growing with depth (section 4.2 of arXiv 2303.06908).
    """

    def __init__(self, config: CrossFormerConfig, channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels)
        self.layernorm = nn.LayerNorm(channels, eps=config.layer_norm_eps)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, height, width, channels) to the same."""
        feature_map = self.convolution(hidden_states.permute(0, 3, 1, 2))
        return self.layernorm(feature_map.permute(0, 2, 3, 1))


class CrossFormerLayer(GradientCheckpointingLayer):
    """Pre-norm attention and MLP, each with a residual connection, and a cooling layer where one belongs."""

    def __init__(
        self,
        config: CrossFormerConfig,
        channels: int,
        mlp_channels: int,
        attention: CrossFormerAttention,
        drop_path_rate: float,
        cooling: nn.Module,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.attention = attention
        self.layernorm_after = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.mlp = CrossFormerMLP(config, channels, mlp_channels)
        self.drop_path = CrossFormerDropPath(drop_path_rate)
        self.cooling = cooling

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """(batch, height, width, channels) to the same."""
        attended, _ = self.attention(self.layernorm_before(hidden_states), **kwargs)
        hidden_states = hidden_states + self.drop_path(attended)
        hidden_states = hidden_states + self.drop_path(self.mlp(self.layernorm_after(hidden_states)))
        return self.cooling(hidden_states)


class CrossFormerStage(nn.Module):
    """One resolution: a cross-scale embedding (but in the first stage, which follows the stem), then the layers."""

    def __init__(self, config: CrossFormerConfig, index: int, drop_path_rates: list[float]):
        super().__init__()
        self.downsampling = (
            CrossFormerDownsampling(config, config.stage_channels[index - 1], config.merge_sizes[index - 1])
            if index > 0
            else nn.Identity()
        )
        self.layers = nn.ModuleList(
            self.build_layer(config, index, position, rate) for position, rate in enumerate(drop_path_rates)
        )

    @staticmethod
    def build_layer(config: CrossFormerConfig, stage: int, position: int, drop_path_rate: float) -> CrossFormerLayer:
        """Layer number `position` of a stage: even ones attend over a short, odd ones over a long distance."""
        channels = config.stage_channels[stage]
        is_long_distance = position % 2 == 1
        is_cooled = config.use_cooling_layer and position % 3 == 2 and position < config.depths[stage] - 1
        attention = CrossFormerAttention(
            config,
            channels,
            num_heads=config.num_heads[stage],
            group_size=config.layer_group_sizes[stage][position],
            interval=config.intervals[stage] if is_long_distance else None,
        )
        return CrossFormerLayer(
            config,
            channels,
            mlp_channels=int(channels * config.stage_mlp_ratios[stage]),
            attention=attention,
            drop_path_rate=drop_path_rate,
            cooling=CrossFormerCoolingLayer(config, channels) if is_cooled else nn.Identity(),
        )

    def forward(self, feature_map: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        """Feature map of the stage before (or the stem) to this one's; (batch, channels, height, width) each."""
        hidden_states = self.downsampling(feature_map).permute(0, 2, 3, 1)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return hidden_states.permute(0, 3, 1, 2)


class CrossFormerPreTrainedModel(PreTrainedModel):
    """Initial weights, and what Transformers may do with the models."""

    config: CrossFormerConfig
    config_class = CrossFormerConfig
    base_model_prefix = "crossformer"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _no_split_modules = ["CrossFormerEmbeddings", "CrossFormerDownsampling", "CrossFormerLayer"]
    _input_embed_layer = "patch_embeddings"
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The losses are means: without this, the Trainer takes `**kwargs` for a sum over accumulated batches.
    accepts_loss_kwargs = False
    _can_record_outputs = {
        "hidden_states": OutputRecorder(CrossFormerStage, capture_initial_hidden_state=True),
        "attentions": OutputRecorder(CrossFormerAttention, index=1),
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Set initial weights as the original does: normal for linear layers, PyTorch's default for convolutions."""
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


class CrossFormerEncoder(CrossFormerPreTrainedModel):
    """The stages, one after the other."""

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        num_layers = sum(config.depths)
        rates = [config.drop_path_rate * index / max(num_layers - 1, 1) for index in range(num_layers)]
        starts = [sum(config.depths[:index]) for index in range(len(config.depths))]
        self.stages = nn.ModuleList(
            CrossFormerStage(config, index, rates[start : start + depth])
            for index, (start, depth) in enumerate(zip(starts, config.depths, strict=True))
        )
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(self, feature_map: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutput:
        """Run the stages.

        Takes the stem (batch, embed_dim, height, width). `last_hidden_state` is the last stage's feature map (batch,
        hidden_size, height, width); `hidden_states` are the stem and each stage's map, in the same layout;
        `attentions` are each layer's probabilities (batch * num_groups, heads, tokens, tokens).
        """
        for stage in self.stages:
            feature_map = stage(feature_map, **kwargs)
        return BaseModelOutput(last_hidden_state=feature_map)


class CrossFormerModel(CrossFormerPreTrainedModel):
    """CrossFormer without a head.

    Example:
    ```python
    >>> import torch
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerModel

    >>> model = CrossFormerModel(CrossFormerConfig()).eval()
    >>> outputs = model(torch.zeros(1, 3, 224, 224))
    >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
    (torch.Size([1, 49, 768]), torch.Size([1, 768]))

    ```
    """

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        self.embeddings = CrossFormerEmbeddings(config)
        self.encoder = CrossFormerEncoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BaseModelOutputWithPooling:
        """Encode images of any size.

        Args:
            pixel_values: Normalised images (batch, num_channels, height, width), each side at least one patch.
            kwargs: `output_hidden_states`, `output_attentions` and the like.

        Returns:
            `last_hidden_state` (batch, tokens, hidden_size) after the final layer norm, `pooler_output` (batch,
            hidden_size), its mean over the tokens; when asked for, `hidden_states`, the stem and each stage's feature
            map (batch, channels, height, width), and `attentions`, each layer's (batch * num_groups, heads, tokens,
            tokens).

        Raises:
            ValueError: `pixel_values` has another number of channels or is smaller than a patch.
        """
        outputs = self.encoder(self.embeddings(pixel_values), **kwargs)
        tokens = outputs.last_hidden_state.flatten(2).transpose(1, 2)
        last_hidden_state = self.layernorm(tokens)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=last_hidden_state.mean(dim=1),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class CrossFormerForImageClassification(CrossFormerPreTrainedModel):
    """CrossFormer with a linear head on the mean of the last tokens.

    Example:
    ```python
    >>> import torch
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerForImageClassification

    >>> model = CrossFormerForImageClassification(CrossFormerConfig(num_labels=10)).eval()
    >>> model(torch.zeros(1, 3, 224, 224)).logits.shape
    torch.Size([1, 10])

    ```
    """

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.crossformer = CrossFormerModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels) if config.num_labels > 0 else nn.Identity()
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Classify images of any size.

        Args:
            pixel_values: Normalised images (batch, num_channels, height, width), each side at least one patch.
            labels: Class of each image (batch,); targets (batch, num_labels) for several labels an image, or values
                for regression, as `config.problem_type` says.
            kwargs: `output_hidden_states`, `output_attentions` and the like.

        Returns:
            `logits` (batch, num_labels), `loss` when there are labels, and `hidden_states` and `attentions` as in
            `CrossFormerModel`.
        """
        outputs = self.crossformer(pixel_values, **kwargs)
        logits = self.classifier(outputs.pooler_output)
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class CrossFormerBackbone(BackboneMixin, CrossFormerPreTrainedModel):
    """CrossFormer's feature maps for DETR, Mask R-CNN, UPerNet and other dense heads; no norm is added to them.

    Example:
    ```python
    >>> import torch
    >>> from crossformer_hf import CrossFormerBackbone, CrossFormerConfig

    >>> config = CrossFormerConfig(out_features=["stage2", "stage3", "stage4"])
    >>> backbone = CrossFormerBackbone(config).eval()
    >>> [tuple(feature_map.shape) for feature_map in backbone(torch.zeros(1, 3, 200, 304)).feature_maps]
    [(1, 192, 25, 38), (1, 384, 13, 19), (1, 768, 7, 10)]

    ```
    """

    # The parts of a classifier, segmentor or detector that a backbone has no use for.
    _keys_to_ignore_on_load_unexpected = [
        r"^(crossformer\.)?layernorm\.",
        r"^classifier\.",
        r"^neck\.",
        r"^((decode|proposal|box|mask)_)?head\.",
        r"^extra_levels\.",
    ]

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        self.num_features = [config.embed_dim, *config.stage_channels]
        self.embeddings = CrossFormerEmbeddings(config)
        self.encoder = CrossFormerEncoder(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """Encode images of any size.

        Args:
            pixel_values: Normalised images (batch, num_channels, height, width), each side at least one patch.
            kwargs: `output_hidden_states`, `output_attentions` and the like.

        Returns:
            `feature_maps`, one (batch, channels, height, width) for each name in `out_features`; `hidden_states` and
            `attentions` as in `CrossFormerModel` when asked for.
        """
        outputs = self.encoder(self.embeddings(pixel_values), **kwargs)
        feature_maps = tuple(
            feature_map
            for name, feature_map in zip(self.stage_names, outputs.hidden_states, strict=True)
            if name in self.out_features
        )
        return BackboneOutput(
            feature_maps=feature_maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


def upsample_to(feature_map: torch.Tensor, size: torch.Size, mode: str) -> torch.Tensor:
    """Double (batch, channels, height, width) and cut it to `size`: (height, width), at most one less than the double.

    A map is the next finer one's half, rounded up, so tokens stay where they are in the image; stretching the map to
    an odd size would move them.
    """
    height, width = size
    doubled = F.interpolate(feature_map, scale_factor=2, mode=mode)
    if statically_known_true(sum(doubled.shape[-2:]) == height + width):
        return doubled
    return crop_tokens(doubled.permute(0, 2, 3, 1), height, width).permute(0, 3, 1, 2)


class CrossFormerFeaturePyramid(nn.Module):
    """Feature pyramid network (FPN, arXiv 1612.03144), as mmsegmentation and mmdetection compute it."""

    def __init__(self, in_channels: list[int], out_channels: int):
        super().__init__()
        self.lateral_convolutions = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)
        self.output_convolutions = nn.ModuleList(
            nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1) for _ in in_channels
        )

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Maps (batch, in_channels[i], height, width), fine to coarse, to as many with `out_channels`."""
        pyramid = [
            convolution(feature_map)
            for convolution, feature_map in zip(self.lateral_convolutions, feature_maps, strict=True)
        ]
        for level in reversed(range(len(pyramid) - 1)):
            pyramid[level] = pyramid[level] + upsample_to(pyramid[level + 1], pyramid[level].shape[-2:], "nearest")
        return [convolution(level) for convolution, level in zip(self.output_convolutions, pyramid, strict=True)]


class CrossFormerConvolutionLayer(nn.Module):
    """3 x 3 convolution, batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(out_channels)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """(batch, in_channels, height, width) to out_channels."""
        return F.relu(self.batch_norm(self.convolution(feature_map)))


class CrossFormerSemanticHead(nn.Module):
    """Head of Semantic FPN: every level brought to the finest one's size, added and classified (arXiv 1901.02446).

    Level `i` is doubled `i` times, with a convolution before each; mmsegmentation's `FPNHead`.
    """

    def __init__(self, config: CrossFormerConfig):
        super().__init__()
        self.levels = nn.ModuleList(
            nn.ModuleList(
                CrossFormerConvolutionLayer(channels, config.decoder_hidden_size)
                for channels in [config.fpn_hidden_size] + [config.decoder_hidden_size] * (max(level, 1) - 1)
            )
            for level in range(config.num_stages)
        )
        self.dropout = nn.Dropout2d(config.classifier_dropout_prob)
        self.classifier = nn.Conv2d(config.decoder_hidden_size, config.num_labels, kernel_size=1)

    def forward(self, pyramid: list[torch.Tensor]) -> torch.Tensor:
        """Levels (batch, fpn_hidden_size, height, width), fine to coarse, to the finest one's logits (num_labels)."""
        sizes = [feature_map.shape[-2:] for feature_map in pyramid]
        merged = self.levels[0][0](pyramid[0])
        for level in range(1, len(pyramid)):
            feature_map = pyramid[level]
            for layer, size in zip(self.levels[level], reversed(sizes[:level]), strict=True):
                feature_map = upsample_to(layer(feature_map), size, "bilinear")
            merged = merged + feature_map
        return self.classifier(self.dropout(merged))


class CrossFormerForSemanticSegmentation(CrossFormerPreTrainedModel):
    """CrossFormer with a Semantic FPN head, the one of the authors' `fpn_crossformer_*` checkpoints.

    Example:
    ```python
    >>> import torch
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerForSemanticSegmentation

    >>> model = CrossFormerForSemanticSegmentation(CrossFormerConfig(num_labels=150)).eval()
    >>> model(torch.zeros(1, 3, 200, 304)).logits.shape
    torch.Size([1, 150, 50, 76])

    ```
    """

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        self.crossformer = CrossFormerBackbone(config)
        self.neck = CrossFormerFeaturePyramid(config.stage_channels, config.fpn_hidden_size)
        self.decode_head = CrossFormerSemanticHead(config)
        self.post_init()

    @can_return_tuple
    @filter_output_hidden_states
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SemanticSegmenterOutput:
        """Classify every pixel of images of any size.

        Args:
            pixel_values: Normalised images (batch, num_channels, height, width), each side at least one patch.
            labels: Class of each pixel (batch, height, width); `semantic_loss_ignore_index` where it has none.
            kwargs: `output_hidden_states`, `output_attentions` and the like.

        Returns:
            `logits` (batch, num_labels, height, width) of the first stage's map: a quarter of the image, rounded up;
            `loss` when there are labels: the cross entropy of the logits, interpolated to the image, averaged over
            the pixels that have a class, 0 where none has; `hidden_states` and `attentions` as in `CrossFormerModel`.

        Raises:
            ValueError: The images are as in `CrossFormerModel`, or the labels are not of their size.
        """
        if labels is not None:
            self.check_labels(pixel_values, labels)
        outputs = self.crossformer(pixel_values, **kwargs)
        logits = self.decode_head(self.neck(outputs.hidden_states[1:]))
        return SemanticSegmenterOutput(
            loss=None if labels is None else self.segmentation_loss(logits, labels),
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def segmentation_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Cross entropy of (batch, num_labels, height, width) logits, interpolated to the size of the labels."""
        ignored = self.config.semantic_loss_ignore_index
        logits = F.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
        loss = F.cross_entropy(logits, labels, ignore_index=ignored)
        # Where no pixel has a class, the mean is 0 / 0. As in mmsegmentation, the loss is then 0.
        return torch.where((labels != ignored).any(), loss, torch.zeros_like(loss))

    def check_labels(self, pixel_values: torch.Tensor, labels: torch.Tensor) -> None:
        """Raise a `ValueError` unless there are classes to tell apart and one label for each pixel."""
        expected = (pixel_values.shape[0], *pixel_values.shape[-2:])
        if tuple(labels.shape) != expected:
            raise ValueError(
                f"`labels` has the shape {tuple(labels.shape)}, but must be (batch, height, width) of the images: "
                f"{expected}; resize the masks as their images, without interpolation."
            )
        if self.config.num_labels < 2:
            raise ValueError(
                f"`num_labels` is {self.config.num_labels}, but a segmentor needs at least 2 classes to learn; give "
                "the background a class of its own."
            )


__all__ = [
    "CrossFormerBackbone",
    "CrossFormerForImageClassification",
    "CrossFormerForSemanticSegmentation",
    "CrossFormerModel",
    "CrossFormerPreTrainedModel",
]
