"""Every original name has one name here, and nothing else is renamed."""

import pytest
from golden import DATA, read_case

from conversion.key_mapping import map_keys, rename


CASES = sorted(path.stem for path in DATA.glob("classify-*.json"))


@pytest.mark.parametrize(
    ("original", "ours"),
    [
        ("patch_embed.projs.3.bias", "embeddings.patch_embeddings.projections.3.bias"),
        ("patch_embed.norm.weight", "embeddings.layernorm.weight"),
        ("layers.2.blocks.17.norm1.weight", "encoder.stages.2.layers.17.layernorm_before.weight"),
        ("layers.0.blocks.1.attn.qkv.bias", "encoder.stages.0.layers.1.attention.qkv.bias"),
        ("layers.0.blocks.1.attn.proj.bias", "encoder.stages.0.layers.1.attention.projection.bias"),
        (
            "layers.1.blocks.0.attn.pos.pos_proj.weight",
            "encoder.stages.1.layers.0.attention.position_bias.projection.weight",
        ),
        (
            "layers.1.blocks.0.attn.pos.pos1.0.weight",
            "encoder.stages.1.layers.0.attention.position_bias.layers.0.layernorm.weight",
        ),
        (
            "layers.1.blocks.0.attn.pos.pos3.2.weight",
            "encoder.stages.1.layers.0.attention.position_bias.layers.2.linear.weight",
        ),
        ("layers.3.blocks.0.mlp.fc2.weight", "encoder.stages.3.layers.0.mlp.fc2.weight"),
        ("layers.2.blocks.2.ex_conv.weight", "encoder.stages.2.layers.2.cooling.convolution.weight"),
        ("layers.2.blocks.2.ex_ln.bias", "encoder.stages.2.layers.2.cooling.layernorm.bias"),
        ("layers.0.downsample.norm.weight", "encoder.stages.1.downsampling.layernorm.weight"),
        (
            "layers.2.downsample.reductions.1.weight",
            "encoder.stages.3.downsampling.embedding.projections.1.weight",
        ),
        ("norm.bias", "layernorm.bias"),
        ("head.weight", "classifier.weight"),
    ],
)
def test_names(original, ours):
    assert rename(original) == ours


@pytest.mark.parametrize("name", CASES)
def test_every_parameter_of_the_original_has_its_own_name(name):
    keys = [key for key, _ in read_case(name)["parameters"]]
    key_map = map_keys(keys)
    assert list(key_map.mapped) == keys
    assert len(set(key_map.mapped.values())) == len(keys)


def test_the_buffers_of_2021_are_dropped():
    buffers = [key for key, _, _ in read_case("classify-2021-crossformer-s-224")["buffers"]]
    key_map = map_keys(buffers)
    assert key_map.dropped == buffers
    assert buffers and not key_map.mapped and not key_map.unexpected


@pytest.mark.parametrize(
    "key",
    [
        "",
        "head",
        "head.weight.extra",
        "xhead.weight",
        "layers.0.blocks.0.attn.qkv",
        "backbone.norm.weight",
        "norm1.bias",
    ],
)
def test_other_names_are_unexpected(key):
    assert map_keys([key]).unexpected == [key]
