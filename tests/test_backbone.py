"""The backbone: feature maps for dense heads, and weights that pass between a classifier and a backbone."""

import pytest
import torch
from test_modeling import tiny_config
from transformers import AutoBackbone, set_seed

from crossformer_hf import CrossFormerBackbone, CrossFormerForImageClassification


STAGES = ["stage1", "stage2", "stage3"]


@torch.no_grad()
def feature_maps(backbone, pixel_values):
    return backbone.eval()(pixel_values).feature_maps


def test_feature_maps_are_the_stages_without_a_norm():
    backbone = CrossFormerBackbone(tiny_config(out_features=["stem", *STAGES])).eval()
    outputs = backbone(torch.randn(1, 3, 61, 64), output_hidden_states=True)
    assert len(outputs.feature_maps) == len(outputs.hidden_states) == 4
    for feature_map, hidden_state in zip(outputs.feature_maps, outputs.hidden_states, strict=True):
        assert torch.equal(feature_map, hidden_state)
    assert [feature_map.shape[1] for feature_map in outputs.feature_maps] == backbone.channels == [16, 16, 32, 64]


def test_out_indices_select_stages():
    backbone = CrossFormerBackbone(tiny_config(out_indices=[1, 3]))
    assert backbone.out_features == ["stage1", "stage3"]
    assert [tuple(m.shape) for m in feature_maps(backbone, torch.randn(1, 3, 64, 32))] == [
        (1, 16, 16, 8),
        (1, 64, 4, 2),
    ]


def test_hidden_states_come_only_when_asked_for():
    backbone = CrossFormerBackbone(tiny_config())
    assert "hidden_states" not in backbone(torch.randn(1, 3, 32, 32))


def test_auto_backbone_builds_it_from_a_configuration():
    assert isinstance(AutoBackbone.from_config(tiny_config(out_features=STAGES)), CrossFormerBackbone)


def test_a_backbone_takes_a_classifiers_weights(tmp_path):
    set_seed(0)
    classifier = CrossFormerForImageClassification(tiny_config()).eval()
    classifier.save_pretrained(tmp_path)
    backbone, info = CrossFormerBackbone.from_pretrained(tmp_path, out_features=STAGES, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    image = torch.randn(1, 3, 61, 64)
    expected = classifier(image, output_hidden_states=True).hidden_states[1:]
    for actual, feature_map in zip(feature_maps(backbone, image), expected, strict=True):
        torch.testing.assert_close(actual, feature_map)


def test_a_classifier_takes_a_backbones_weights_and_says_what_is_new(tmp_path):
    CrossFormerBackbone(tiny_config()).save_pretrained(tmp_path)
    _, info = CrossFormerForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    new = {"crossformer.layernorm.weight", "crossformer.layernorm.bias", "classifier.weight", "classifier.bias"}
    assert set(info["missing_keys"]) == new
    assert not info["unexpected_keys"]


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match="stage9"):
        tiny_config(out_features=["stage9"])
