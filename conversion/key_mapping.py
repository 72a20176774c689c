"""From the original's parameter names to ours, as an anchored rename table and one pure function that applies it."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field


# Each rule must match a whole key. `layers.{i}.downsample` ends a stage in the original and starts the next one here.
RENAMES = [
    (r"patch_embed\.projs\.(\d+)\.(weight|bias)", r"embeddings.patch_embeddings.projections.\1.\2"),
    (r"patch_embed\.norm\.(weight|bias)", r"embeddings.layernorm.\1"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm1\.(weight|bias)", r"encoder.stages.\1.layers.\2.layernorm_before.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.attn\.qkv\.(weight|bias)", r"encoder.stages.\1.layers.\2.attention.qkv.\3"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.proj\.(weight|bias)",
        r"encoder.stages.\1.layers.\2.attention.projection.\3",
    ),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.pos\.pos_proj\.(weight|bias)",
        r"encoder.stages.\1.layers.\2.attention.position_bias.projection.\3",
    ),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.pos\.pos([123])\.0\.(weight|bias)",
        r"encoder.stages.\1.layers.\2.attention.position_bias.layers.{\3-1}.layernorm.\4",
    ),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.attn\.pos\.pos([123])\.2\.(weight|bias)",
        r"encoder.stages.\1.layers.\2.attention.position_bias.layers.{\3-1}.linear.\4",
    ),
    (r"layers\.(\d+)\.blocks\.(\d+)\.norm2\.(weight|bias)", r"encoder.stages.\1.layers.\2.layernorm_after.\3"),
    (r"layers\.(\d+)\.blocks\.(\d+)\.mlp\.fc([12])\.(weight|bias)", r"encoder.stages.\1.layers.\2.mlp.fc\3.\4"),
    (
        r"layers\.(\d+)\.blocks\.(\d+)\.ex_conv\.(weight|bias)",
        r"encoder.stages.\1.layers.\2.cooling.convolution.\3",
    ),
    (r"layers\.(\d+)\.blocks\.(\d+)\.ex_ln\.(weight|bias)", r"encoder.stages.\1.layers.\2.cooling.layernorm.\3"),
    (r"layers\.(\d+)\.downsample\.norm\.(weight|bias)", r"encoder.stages.{\1+1}.downsampling.layernorm.\2"),
    (
        r"layers\.(\d+)\.downsample\.reductions\.(\d+)\.(weight|bias)",
        r"encoder.stages.{\1+1}.downsampling.embedding.projections.\2.\3",
    ),
    (r"norm\.(weight|bias)", r"layernorm.\1"),
    (r"head\.(weight|bias)", r"classifier.\1"),
]
# Buffers of the 2021 code, which computes them anew; later code does not save them.
DROPPED = [r"layers\.\d+\.blocks\.\d+\.attn\.(biases|relative_position_index)", r"layers\.\d+\.blocks\.\d+\.attn_mask"]


@dataclass(frozen=True)
class KeyMap:
    """What becomes of each key of a checkpoint."""

    mapped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


def shift_index(match: re.Match) -> str:
    """`{2+1}` to `3`."""
    return str(int(match[1]) + int(match[2]))


def rename(key: str) -> str | None:
    """Our name of an original parameter, without a model prefix; `None` for a key that no rule matches."""
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, key):
            return re.sub(r"\{(\d+)([+-]\d+)\}", shift_index, match.expand(replacement))
    return None


def map_keys(keys: Iterable[str]) -> KeyMap:
    """Sort the keys of an original checkpoint into mapped ones, those dropped on purpose and unexpected ones."""
    key_map = KeyMap()
    for key in keys:
        if name := rename(key):
            key_map.mapped[key] = name
        elif any(re.fullmatch(pattern, key) for pattern in DROPPED):
            key_map.dropped.append(key)
        else:
            key_map.unexpected.append(key)
    return key_map
