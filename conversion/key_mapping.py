"""From the original's parameter names to ours, as anchored rename tables and one pure function that applies them."""

import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


Rules = Sequence[tuple[str, str]]

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
# The parts beside the backbone, under the names of mmsegmentation and mmdetection. In a scale head every second module
# doubles the map.
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
HEAD_RENAMES = [
    (r"neck\.lateral_convs\.(\d+)\.conv\.(weight|bias)", r"neck.lateral_convolutions.\1.\2"),
    (r"neck\.fpn_convs\.(\d+)\.conv\.(weight|bias)", r"neck.output_convolutions.\1.\2"),
    (
        r"decode_head\.scale_heads\.(\d+)\.(\d*[02468])\.conv\.(weight)",
        r"decode_head.levels.\1.{\2/2}.convolution.\3",
    ),
    (rf"decode_head\.scale_heads\.(\d+)\.(\d*[02468])\.bn\.{NORM}", r"decode_head.levels.\1.{\2/2}.batch_norm.\3"),
    (r"(decode_head|auxiliary_head)\.conv_seg\.(weight|bias)", r"\1.classifier.\2"),
    (r"decode_head\.psp_modules\.(\d+)\.1\.conv\.(weight)", r"decode_head.psp_modules.\1.1.conv.\2"),
    (rf"decode_head\.psp_modules\.(\d+)\.1\.bn\.{NORM}", r"decode_head.psp_modules.\1.1.batch_norm.\2"),
    (r"decode_head\.(bottleneck|fpn_bottleneck)\.conv\.(weight)", r"decode_head.\1.conv.\2"),
    (rf"decode_head\.(bottleneck|fpn_bottleneck)\.bn\.{NORM}", r"decode_head.\1.batch_norm.\2"),
    (r"decode_head\.(lateral_convs|fpn_convs)\.(\d+)\.conv\.(weight)", r"decode_head.\1.\2.conv.\3"),
    (rf"decode_head\.(lateral_convs|fpn_convs)\.(\d+)\.bn\.{NORM}", r"decode_head.\1.\2.batch_norm.\3"),
    (r"auxiliary_head\.convs\.(\d+)\.conv\.(weight)", r"auxiliary_head.convs.\1.conv.\2"),
    (rf"auxiliary_head\.convs\.(\d+)\.bn\.{NORM}", r"auxiliary_head.convs.\1.batch_norm.\2"),
]
DETECTOR_RENAMES = [
    (r"bbox_head\.cls_convs\.(\d+)\.conv\.(weight|bias)", r"head.class_convolutions.\1.\2"),
    (r"bbox_head\.reg_convs\.(\d+)\.conv\.(weight|bias)", r"head.box_convolutions.\1.\2"),
    (r"bbox_head\.retina_cls\.(weight|bias)", r"head.classifier.\1"),
    (r"bbox_head\.retina_reg\.(weight|bias)", r"head.box_regressor.\1"),
    (r"rpn_head\.rpn_conv\.(weight|bias)", r"proposal_head.convolution.\1"),
    (r"rpn_head\.rpn_cls\.(weight|bias)", r"proposal_head.objectness.\1"),
    (r"rpn_head\.rpn_reg\.(weight|bias)", r"proposal_head.box_regressor.\1"),
    (r"roi_head\.bbox_head\.shared_fcs\.([01])\.(weight|bias)", r"box_head.fc{\1+1}.\2"),
    (r"roi_head\.bbox_head\.fc_cls\.(weight|bias)", r"box_head.classifier.\1"),
    (r"roi_head\.bbox_head\.fc_reg\.(weight|bias)", r"box_head.box_regressor.\1"),
    (r"roi_head\.mask_head\.convs\.(\d+)\.conv\.(weight|bias)", r"mask_head.convolutions.\1.\2"),
    (r"roi_head\.mask_head\.upsample\.(weight|bias)", r"mask_head.upsampling.\1"),
    (r"roi_head\.mask_head\.conv_logits\.(weight|bias)", r"mask_head.classifier.\1"),
]
HEAD_RENAMES += DETECTOR_RENAMES
# RetinaNet's pyramid begins at the second of four stages; what follows its three levels comes from elsewhere.
RETINANET_RENAMES = [
    (r"neck\.fpn_convs\.([34])\.conv\.(weight|bias)", r"extra_levels.convolutions.{\1-3}.\2"),
    *HEAD_RENAMES,
]
# Buffers of the 2021 code, which computes them anew; later code does not save them.
DROPPED = [r"layers\.\d+\.blocks\.\d+\.attn\.(biases|relative_position_index)", r"layers\.\d+\.blocks\.\d+\.attn_mask"]


@dataclass(frozen=True)
class KeyMap:
    """What becomes of each key of a checkpoint."""

    mapped: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


INDEX_ARITHMETIC = {"+": operator.add, "-": operator.sub, "/": operator.floordiv}


def new_index(match: re.Match) -> str:
    """`{2+1}` to `3`."""
    return str(INDEX_ARITHMETIC[match[2]](int(match[1]), int(match[3])))


def rename(key: str, renames: Rules = RENAMES) -> str | None:
    """Our name of an original parameter, without a model prefix; `None` for a key that no rule matches."""
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, key):
            return re.sub(r"\{(\d+)([-+/])(\d+)\}", new_index, match.expand(replacement))
    return None


def map_keys(keys: Iterable[str], renames: Rules = RENAMES) -> KeyMap:
    """Sort the keys of an original checkpoint into mapped ones, those dropped on purpose and unexpected ones."""
    key_map = KeyMap()
    for key in keys:
        if name := rename(key, renames):
            key_map.mapped[key] = name
        elif any(re.fullmatch(pattern, key) for pattern in DROPPED):
            key_map.dropped.append(key)
        else:
            key_map.unexpected.append(key)
    return key_map
