"""What every model promises: any size, no memory of earlier inputs, finite in half precision, compiled, exported."""

import copy

import pytest
import torch
from transformers import set_seed

from crossformer_hf import CrossFormerConfig, CrossFormerForImageClassification, CrossFormerModel, modeling_crossformer
from crossformer_hf.modeling_crossformer import CrossFormerAttention, CrossFormerDropPath


SIZES = [(4, 4), (5, 7), (32, 32), (61, 129), (100, 228), (8, 300), (224, 224)]
GROUPINGS = ["fixed_group", "fixed_interval", "adaptive_interval"]


def tiny_config(**settings) -> CrossFormerConfig:
    """Both kinds of attention in every stage, and a cooling layer."""
    defaults = {
        "embed_dim": 16,
        "depths": [2, 2, 4],
        "num_heads": [1, 2, 4],
        "merge_sizes": [[2, 4], [2, 4]],
        "group_sizes": [4, 4, 4],
        "intervals": [4, 2, 1],
        "use_cooling_layer": True,
        "num_labels": 5,
    }
    return CrossFormerConfig(**{**defaults, **settings})


def tiny_model(model_class=CrossFormerModel, **settings):
    set_seed(0)
    return model_class(tiny_config(**settings)).eval()


@torch.no_grad()
def run(model, pixel_values):
    return model(pixel_values).last_hidden_state


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("size", SIZES)
def test_any_image_size(grouping, size):
    outputs = tiny_model(grouping=grouping)(torch.randn(2, 3, *size), output_hidden_states=True)
    height, width = (-(-side // 4) for side in size)
    shapes = [(2, 16, height, width)]
    for channels in (16, 32, 64):
        shapes.append((2, channels, height, width))
        height, width = -(-height // 2), -(-width // 2)
    assert [tuple(feature_map.shape) for feature_map in outputs.hidden_states] == shapes
    assert outputs.last_hidden_state.shape == (2, shapes[-1][2] * shapes[-1][3], 64)
    assert outputs.pooler_output.shape == (2, 64)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_results_depend_on_the_input_alone(grouping):
    model = tiny_model(grouping=grouping)
    large, small = torch.randn(1, 3, 260, 224), torch.randn(1, 3, 16, 24)
    first = run(model, large)
    run(model, small)
    assert torch.equal(run(model, large), first)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_an_image_is_unaffected_by_its_batch(grouping):
    model = tiny_model(grouping=grouping).double()
    images = torch.randn(3, 3, 61, 129, dtype=torch.float64)
    torch.testing.assert_close(run(model, images)[1:2], run(model, images[1:2]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("size", SIZES)
def test_eager_equals_sdpa(grouping, size):
    model, image = tiny_model(grouping=grouping).double(), torch.randn(2, 3, *size, dtype=torch.float64)
    model.set_attn_implementation("eager")
    eager = run(model, image)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(run(model, image), eager, rtol=0, atol=1e-12)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("interval", [None, 2, 8])
def test_padded_tokens_have_no_influence(implementation, interval):
    """A map that divides into groups, cut off where padding then begins, gives what masking the rest would."""
    torch.manual_seed(0)
    config = tiny_config()
    config._attn_implementation = implementation
    attention = CrossFormerAttention(config, channels=32, num_heads=2, group_size=4, interval=interval).double().eval()
    hidden_states = torch.randn(1, 9, 13, 32, dtype=torch.float64)
    actual, _ = attention(hidden_states)
    torch.testing.assert_close(actual, reference_attention(attention, hidden_states), rtol=0, atol=1e-12)


def reference_attention(attention: CrossFormerAttention, hidden_states: torch.Tensor) -> torch.Tensor:
    """Attention over one map without any padding: token pairs of different groups are masked one by one."""
    height, width, channels = hidden_states.shape[1:]
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    interval, size = attention.interval or 1, attention.group_size
    side = interval * size
    group = torch.stack([rows // side, columns // side, rows % interval, columns % interval], dim=-1).flatten(0, 1)
    position = torch.stack([rows % side // interval, columns % side // interval], dim=-1).flatten(0, 1)
    same_group = (group[:, None] == group[None]).all(dim=-1)
    index = (position[:, None] - position[None] + size - 1).clamp(0, 2 * size - 2)
    offsets = torch.cartesian_prod(*[torch.arange(1 - size, size)] * 2).double()
    table = attention.position_bias.projection(offsets)
    for layer in attention.position_bias.layers:
        table = layer(table)
    bias = table[index[..., 0] * (2 * size - 1) + index[..., 1]].permute(2, 0, 1)
    bias = bias.masked_fill(~same_group, float("-inf"))
    qkv = attention.qkv(hidden_states.flatten(1, 2)).unflatten(-1, (3, attention.num_heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    context = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    return attention.projection(context.transpose(1, 2).flatten(2)).view(1, height, width, channels)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("size", [(228, 228), (61, 129)])  # with groups that hold no real token
def test_half_precision_is_finite_and_close(dtype, implementation, size):
    model, image = tiny_model(), torch.randn(2, 3, *size)
    expected = run(model, image)
    model.set_attn_implementation(implementation)
    actual = run(model.to(dtype), image).float()
    assert actual.isfinite().all()
    assert (actual - expected).abs().mean() < {torch.float16: 0.005, torch.bfloat16: 0.04}[dtype]


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_autocast_trains_with_finite_gradients(implementation):
    model = tiny_model(CrossFormerForImageClassification).train()
    model.set_attn_implementation(implementation)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(torch.randn(2, 3, 61, 129), labels=torch.tensor([1, 4])).loss
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_every_parameter_gets_a_gradient():
    model = tiny_model(CrossFormerForImageClassification).train()
    model(torch.randn(2, 3, 64, 64), labels=torch.tensor([0, 3])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_gradient_checkpointing_changes_no_gradient():
    image, labels = torch.randn(2, 3, 61, 64), torch.tensor([0, 3])
    model = tiny_model(CrossFormerForImageClassification).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for instance in (model, checkpointed):
        set_seed(1)  # the same branches are dropped
        instance(image, labels=labels).loss.backward()
    for (name, plain), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, plain.grad, msg=name)


def test_attentions_are_probabilities_of_each_layer():
    model = tiny_model()
    model.set_attn_implementation("eager")
    attentions = model(torch.randn(2, 3, 64, 64), output_attentions=True).attentions
    # 16 x 16, 8 x 8 and 4 x 4 tokens in groups of 4 x 4
    expected = [(2 * 16, 1, 16, 16)] * 2 + [(2 * 4, 2, 16, 16)] * 2 + [(2, 4, 16, 16)] * 4
    assert [tuple(attention.shape) for attention in attentions] == expected
    for attention in attentions:
        torch.testing.assert_close(attention.sum(dim=-1), torch.ones(attention.shape[:-1]))


@pytest.mark.parametrize("size", [(64, 64), (61, 129)])
def test_empty_batch(size):
    model, image = tiny_model(), torch.randn(0, 3, *size)
    assert model(image).last_hidden_state.shape == run(model, image).shape == (0, 16 if size == (64, 64) else 36, 64)


@pytest.mark.parametrize("size", [(64, 64), (61, 129)])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_working_in_parts_changes_nothing(implementation, size, monkeypatch):
    model, image = tiny_model().double(), torch.randn(3, 3, *size, dtype=torch.float64)
    model.set_attn_implementation(implementation)
    outputs = []
    for part_size in (modeling_crossformer.PART_SIZE, 100):
        monkeypatch.setattr(modeling_crossformer, "PART_SIZE", part_size)
        with torch.no_grad():
            outputs.append(model(image, output_attentions=implementation == "eager"))
    whole, parts = outputs
    torch.testing.assert_close(parts.last_hidden_state, whole.last_hidden_state)
    torch.testing.assert_close(parts.attentions, whole.attentions)


def test_plain_attention_computes_what_the_fused_kernel_does(monkeypatch):
    model, image = tiny_model().double(), torch.randn(2, 3, 61, 129, dtype=torch.float64)
    model.set_attn_implementation("sdpa")
    short = run(model, image)
    monkeypatch.setattr(modeling_crossformer, "SHORT_GROUP", 0)
    torch.testing.assert_close(run(model, image), short)


def test_cooling_layers_follow_every_third_layer_but_the_last():
    model = CrossFormerModel(tiny_config(depths=[3, 6, 8]))
    cooled = [
        [type(layer.cooling).__name__ == "CrossFormerCoolingLayer" for layer in stage.layers]
        for stage in model.encoder.stages
    ]
    assert [[index for index, is_cooled in enumerate(stage) if is_cooled] for stage in cooled] == [[], [2], [2, 5]]


def test_weights_start_as_the_originals_do():
    set_seed(0)
    model = CrossFormerModel(CrossFormerConfig(use_cooling_layer=True, initializer_range=0.01))
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, torch.nn.LayerNorm):
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif isinstance(module, torch.nn.Linear):
            expected = 0.01 if name.endswith("weight") else 0
            assert parameter.numel() < 2000 or parameter.std().item() == pytest.approx(expected, rel=0.1), name
        else:  # PyTorch's default for convolutions: uniform with variance 1 / (3 * fan_in)
            bound = module.weight[0].numel() ** -0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.numel() < 500 or parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


def test_drop_path_drops_whole_branches_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = CrossFormerDropPath(0.25).train()
    dropped = drop_path(torch.ones(4000, 3, 2, 2))
    assert dropped.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (dropped.flatten(1) == dropped[:, :1, 0, 0]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert torch.equal(drop_path.eval()(dropped), dropped)


def test_drop_path_grows_with_depth():
    model = CrossFormerModel(tiny_config(drop_path_rate=0.7))
    rates = [layer.drop_path.rate for stage in model.encoder.stages for layer in stage.layers]
    assert rates == pytest.approx([0.1 * index for index in range(8)])


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({}, torch.tensor([0, 4])),
        ({"num_labels": 1}, torch.tensor([0.5, 2.0])),
        ({"problem_type": "multi_label_classification"}, torch.eye(5)[:2]),
    ],
)
def test_loss_for_each_kind_of_labels(settings, labels):
    outputs = tiny_model(CrossFormerForImageClassification, **settings)(torch.randn(2, 3, 32, 32), labels=labels)
    assert outputs.loss.isfinite()
    assert outputs.logits.shape == (2, settings.get("num_labels", 5))


def test_save_and_load(tmp_path):
    model, image = tiny_model(CrossFormerForImageClassification), torch.randn(1, 3, 61, 64)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    loaded, info = CrossFormerForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(loaded(image).logits, model(image).logits)


def test_device_map_auto_and_dtype(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = CrossFormerModel.from_pretrained(tmp_path, device_map="auto", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.bfloat16}
    assert run(loaded, torch.randn(1, 3, 32, 32, device=loaded.device)).isfinite().all()


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")
def test_quantised_linear_layers():
    model, image = tiny_model(CrossFormerForImageClassification), torch.randn(2, 3, 61, 129)
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), {torch.nn.Linear}, dtype=torch.qint8)
    logits = model(image).logits
    assert (quantised(image).logits - logits).abs().max() < 0.1 * logits.abs().max()


@pytest.mark.parametrize("size", [(64, 64), (61, 129)])
def test_compile_without_graph_breaks(size):
    model, image = tiny_model(), torch.randn(2, 3, *size)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(run(compiled, image), run(model, image), rtol=1e-5, atol=1e-5)


def test_one_dynamic_graph_serves_many_sizes():
    model, graphs = tiny_model(), []
    torch.compiler.reset()

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    for size in [(229, 321), (320, 480), (256, 600), (271, 299)]:
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(run(compiled, image), run(model, image), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


@pytest.mark.slow
def test_compile_with_inductor():
    model, image = tiny_model(), torch.randn(2, 3, 61, 129)
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(run(compiled, image), run(model, image), rtol=1e-4, atol=1e-4)


def test_export():
    model, image = tiny_model(), torch.randn(1, 3, 61, 129)
    program = torch.export.export(model, (image,))
    torch.testing.assert_close(run(program.module(), image), run(model, image))


def test_export_with_dynamic_sizes():
    model, auto = tiny_model(), torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    for shape in [(2, 3, 96, 128), (3, 3, 101, 267), (5, 3, 256, 130)]:
        image = torch.randn(shape)
        torch.testing.assert_close(run(program.module(), image), run(model, image), rtol=1e-5, atol=1e-5)
