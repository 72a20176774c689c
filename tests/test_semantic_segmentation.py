"""The segmentor: maps and loss at any size, weights shared with the other classes, compiled, exported."""

import copy

import pytest
import torch
import torch.nn.functional as F
from test_modeling import GROUPINGS, SIZES, tiny_config
from transformers import AutoModelForSemanticSegmentation, set_seed

from crossformer_hf import CrossFormerBackbone, CrossFormerForImageClassification, CrossFormerForSemanticSegmentation
from crossformer_hf.modeling_crossformer import upsample_to


ONE_LAYER_A_STAGE = {"depths": [1, 1, 1], "use_cooling_layer": False}  # where the head is what matters
IGNORED = 255


def tiny_segmentor(**settings) -> CrossFormerForSemanticSegmentation:
    """Three stages and five classes."""
    set_seed(0)
    settings = {"fpn_hidden_size": 16, "decoder_hidden_size": 8, **settings}
    return CrossFormerForSemanticSegmentation(tiny_config(**settings)).eval()


def first_stages(number: int) -> dict:
    """Settings of a segmentor with the first `number` of the tiny configuration's stages."""
    fields = ("depths", "num_heads", "group_sizes", "intervals")
    stages = {field: getattr(tiny_config(), field)[:number] for field in fields}
    return {**stages, "merge_sizes": [[2, 4]] * (number - 1)}


@torch.no_grad()
def segment(model, pixel_values):
    return model(pixel_values).logits


def random_labels(height: int = 61, width: int = 64, batch_size: int = 2) -> torch.Tensor:
    """Classes of each pixel, with a part that has none."""
    labels = torch.randint(5, (batch_size, height, width))
    labels[:, :7] = IGNORED
    return labels


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("size", [*SIZES, (33, 65), (96, 32)])
def test_logits_have_a_quarter_of_any_size(grouping, size):
    logits = segment(tiny_segmentor(grouping=grouping), torch.randn(2, 3, *size))
    assert logits.shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert logits.isfinite().all()


@pytest.mark.parametrize("size", [(4, 4), (33, 65), (64, 96)])
@pytest.mark.parametrize("number", [1, 2])
def test_any_number_of_stages(number, size):
    model = tiny_segmentor(**first_stages(number))
    assert segment(model, torch.randn(2, 3, *size)).shape == (2, 5, -(-size[0] // 4), -(-size[1] // 4))
    assert len(model.neck.lateral_convolutions) == len(model.decode_head.levels) == number


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(10, 14), (9, 14), (10, 13), (9, 13)])
def test_upsampling_to_an_odd_size_cuts_and_does_not_stretch(mode, size):
    feature_map = torch.randn(2, 3, 5, 7)
    expected = F.interpolate(feature_map, scale_factor=2, mode=mode)[..., : size[0], : size[1]]
    assert torch.equal(upsample_to(feature_map, torch.Size(size), mode), expected)


def test_results_depend_on_the_input_alone():
    model = tiny_segmentor()
    large, small = torch.randn(1, 3, 260, 224), torch.randn(1, 3, 16, 24)
    first = segment(model, large)
    segment(model, small)
    assert torch.equal(segment(model, large), first)


@pytest.mark.parametrize("size", [(5, 7), (61, 129), (64, 96)])
def test_eager_equals_sdpa(size):
    model, image = tiny_segmentor().double(), torch.randn(2, 3, *size, dtype=torch.float64)
    model.set_attn_implementation("eager")
    eager = segment(model, image)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(segment(model, image), eager, rtol=0, atol=1e-12)


def test_loss_is_the_mean_cross_entropy_of_the_pixels_that_have_a_class():
    model, image, labels = tiny_segmentor(), torch.randn(2, 3, 61, 64), random_labels()
    outputs = model(image, labels=labels)
    logits = F.interpolate(outputs.logits, size=(61, 64), mode="bilinear")
    has_class = labels != IGNORED
    probabilities = logits.softmax(dim=1).movedim(1, -1)[has_class]
    expected = -probabilities.gather(1, labels[has_class][:, None]).log().mean()
    torch.testing.assert_close(outputs.loss, expected)
    torch.testing.assert_close(outputs.logits, segment(model, image))


def test_the_ignored_label_is_configurable():
    image, labels = torch.randn(2, 3, 61, 64), random_labels()
    expected = tiny_segmentor()(image, labels=labels).loss
    actual = tiny_segmentor(semantic_loss_ignore_index=-1)(image, labels=labels.where(labels != IGNORED, -1)).loss
    assert torch.equal(actual, expected)


def test_a_batch_without_any_class_has_loss_and_gradients_of_zero():
    """Cross entropy gives NaN there, and with it Segformer; mmsegmentation gives 0."""
    model = tiny_segmentor().train()
    loss = model(torch.randn(2, 3, 61, 64), labels=torch.full((2, 61, 64), IGNORED)).loss
    loss.backward()
    assert loss.item() == 0
    assert all((parameter.grad == 0).all() for parameter in model.parameters())


def test_a_loss_that_is_nan_for_another_reason_stays_nan():
    model = tiny_segmentor()
    model.decode_head.classifier.bias.data[0] = float("nan")
    assert model(torch.randn(2, 3, 61, 64), labels=random_labels()).loss.isnan()


@pytest.mark.parametrize("shape", [(2, 16, 16), (2, 64, 61), (1, 61, 64), (2, 1, 61, 64), (2,)])
def test_labels_of_another_size_are_refused(shape):
    with pytest.raises(ValueError, match=r"`labels` has the shape \(.*\), but must be .*: \(2, 61, 64\); resize"):
        tiny_segmentor()(torch.randn(2, 3, 61, 64), labels=torch.zeros(shape, dtype=torch.long))


def test_one_class_cannot_be_learned():
    model, image = tiny_segmentor(num_labels=1), torch.randn(2, 3, 61, 64)
    assert segment(model, image).shape == (2, 1, 16, 16)
    with pytest.raises(ValueError, match="`num_labels` is 1, but a segmentor needs at least 2 classes"):
        model(image, labels=torch.zeros(2, 61, 64, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_close(dtype):
    model, image, labels = tiny_segmentor(), torch.randn(2, 3, 61, 129), random_labels(61, 129)
    expected = model(image, labels=labels)
    actual = model.to(dtype)(image, labels=labels)
    assert actual.logits.isfinite().all()
    tolerance = {torch.float16: 0.005, torch.bfloat16: 0.04}[dtype]
    assert (actual.logits.float() - expected.logits).abs().mean() < tolerance
    torch.testing.assert_close(actual.loss.float(), expected.loss, rtol=0, atol=tolerance)


def test_every_parameter_gets_a_finite_gradient():
    model = tiny_segmentor().train()
    model(torch.randn(2, 3, 61, 64), labels=random_labels()).loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad.any() for parameter in model.decode_head.parameters())


def test_gradient_checkpointing_changes_no_gradient():
    image, labels = torch.randn(2, 3, 61, 64), random_labels()
    model = tiny_segmentor().train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for instance in (model, checkpointed):
        set_seed(1)  # the same branches and channels are dropped
        instance(image, labels=labels).loss.backward()
    for (name, plain), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, plain.grad, msg=name)
    for (name, plain), other in zip(model.named_buffers(), checkpointed.buffers(), strict=True):
        torch.testing.assert_close(other, plain, msg=name)


def test_logits_come_first_and_maps_only_when_asked_for():
    model, image = tiny_segmentor(), torch.randn(2, 3, 61, 64)
    assert list(model(image)) == ["logits"]
    assert list(model(image, labels=random_labels())) == ["loss", "logits"]
    assert torch.equal(model(image, return_dict=False)[0], model(image)[0])


@pytest.mark.parametrize("wanted", [True, [1], [0, 2]])
def test_hidden_states_are_the_backbones(wanted):
    model, image = tiny_segmentor(), torch.randn(2, 3, 61, 64)
    actual = model(image, output_hidden_states=wanted).hidden_states
    expected = model.crossformer(image, output_hidden_states=wanted).hidden_states
    assert [feature_map is None for feature_map in actual] == [feature_map is None for feature_map in expected]
    for feature_map, other in zip(actual, expected, strict=True):
        assert other is None or torch.equal(feature_map, other)


def test_attentions_are_the_backbones():
    model, image = tiny_segmentor(), torch.randn(2, 3, 61, 64)
    model.set_attn_implementation("eager")
    actual = model(image, output_attentions=True).attentions
    expected = model.crossformer(image, output_attentions=True).attentions
    assert len(actual) == 8
    assert all(torch.equal(attention, other) for attention, other in zip(actual, expected, strict=True))


def test_save_and_load_with_the_statistics_of_batch_norm(tmp_path):
    model, image = tiny_segmentor(), torch.randn(2, 3, 61, 64)
    before = segment(model, image)
    segment(model.train(), image)  # moves the running mean and variance
    expected = segment(model.eval(), image)
    assert not torch.allclose(expected, before)
    model.save_pretrained(tmp_path)
    loaded, info = CrossFormerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    torch.testing.assert_close(segment(loaded, image), expected)
    for (name, buffer), other in zip(model.named_buffers(), loaded.buffers(), strict=True):
        assert torch.equal(other, buffer), name


def test_auto_class(tmp_path):
    model = AutoModelForSemanticSegmentation.from_config(tiny_config())
    assert isinstance(model, CrossFormerForSemanticSegmentation)
    model.save_pretrained(tmp_path)
    assert isinstance(AutoModelForSemanticSegmentation.from_pretrained(tmp_path), CrossFormerForSemanticSegmentation)


@pytest.mark.parametrize("source_class", [CrossFormerForImageClassification, CrossFormerBackbone])
def test_a_segmentor_takes_another_models_weights_and_says_what_is_new(source_class, tmp_path):
    set_seed(1)
    source = source_class(tiny_config())
    source.save_pretrained(tmp_path)
    model, info = CrossFormerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    weights = getattr(source, "crossformer", source).state_dict()
    for name, weight in model.crossformer.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    heads = {name for name in model.state_dict() if name.startswith(("neck.", "decode_head."))}
    assert set(info["missing_keys"]) == heads
    assert not info["unexpected_keys"] and not info["mismatched_keys"]


def test_a_backbone_takes_a_segmentors_weights(tmp_path):
    model, image = tiny_segmentor(), torch.randn(1, 3, 61, 64)
    model.save_pretrained(tmp_path)
    stages = ["stage1", "stage2", "stage3"]
    backbone, info = CrossFormerBackbone.from_pretrained(tmp_path, out_features=stages, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = model(image, output_hidden_states=True).hidden_states[1:]
    for actual, feature_map in zip(backbone(image).feature_maps, expected, strict=True):
        torch.testing.assert_close(actual, feature_map)


@torch.no_grad()
def test_compile_without_graph_breaks():
    model = tiny_segmentor(**ONE_LAYER_A_STAGE)
    image, labels = torch.randn(2, 3, 61, 129), random_labels(61, 129)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    actual, expected = compiled(image, labels=labels), model(image, labels=labels)
    torch.testing.assert_close(actual.logits, expected.logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss)


def test_one_dynamic_graph_serves_odd_and_even_sizes():
    model, graphs = tiny_segmentor(**ONE_LAYER_A_STAGE), []
    torch.compiler.reset()

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=count)
    for size in [(229, 321), (320, 480), (256, 600), (271, 299), (257, 511), (260, 300)]:
        image = torch.randn(2, 3, *size)
        torch.testing.assert_close(segment(compiled, image), segment(model, image), rtol=1e-5, atol=1e-5)
    assert len(graphs) == 1


def test_export_with_dynamic_sizes():
    model, auto = tiny_segmentor(**ONE_LAYER_A_STAGE), torch.export.Dim.AUTO
    program = torch.export.export(model, (torch.randn(2, 3, 96, 128),), dynamic_shapes=({0: auto, 2: auto, 3: auto},))
    for shape in [(2, 3, 96, 128), (3, 3, 101, 267), (5, 3, 256, 130)]:
        image = torch.randn(shape)
        torch.testing.assert_close(segment(program.module(), image), segment(model, image), rtol=1e-5, atol=1e-5)
