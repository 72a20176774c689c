"""The configuration: its defaults, what it derives, and one bad value for each rule."""

import json

import pytest
from huggingface_hub.errors import StrictDataclassError

from crossformer_hf import PRESETS, CrossFormerConfig, CrossFormerModel, group_schedule, preset_config


def test_defaults_are_the_public_contract():
    config = CrossFormerConfig()
    expected = {
        "image_size": 224,
        "num_channels": 3,
        "patch_sizes": [4, 8, 16, 32],
        "merge_sizes": [[2, 4], [2, 4], [2, 4]],
        "embed_dim": 96,
        "depths": [2, 2, 6, 2],
        "num_heads": [3, 6, 12, 24],
        "group_sizes": [7, 7, 7, 7],
        "intervals": [8, 4, 2, 1],
        "grouping": "fixed_group",
        "use_cooling_layer": False,
        "use_patch_norm": True,
        "mlp_ratio": 4.0,
        "qkv_bias": True,
        "qk_scale": None,
        "initializer_range": 0.02,
        "layer_norm_eps": 1e-5,
        "fpn_hidden_size": 256,
        "decoder_hidden_size": 128,
        "classifier_dropout_prob": 0.1,
        "semantic_loss_ignore_index": 255,
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "max_detections": 100,
    }
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.model_type == "crossformer"


def test_derived_sizes():
    config = CrossFormerConfig(depths=[1, 2, 3], num_heads=[1, 2, 4], merge_sizes=[[2], [2, 4]], embed_dim=32,
                               group_sizes=[4, [2, 3], 7], intervals=[4, 2, 1], mlp_ratio=[1, 2, 3])  # fmt: skip
    assert config.hidden_size == 128
    assert config.num_hidden_layers == 3
    assert config.num_attention_heads == [1, 2, 4]
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    assert config.stage_channels == [32, 64, 128]
    assert config.layer_group_sizes == [[4], [2, 3], [7, 7, 7]]
    assert config.stage_mlp_ratios == [1, 2, 3]
    assert config.out_features == ["stage3"]


def test_one_stage_is_enough():
    config = CrossFormerConfig(depths=[1], num_heads=[2], group_sizes=[4], intervals=[1], merge_sizes=[])
    assert config.hidden_size == 96
    CrossFormerModel(config)


def test_a_saved_configuration_is_equal(tmp_path):
    config = CrossFormerConfig(
        image_size=(224, 320), group_sizes=(7, 7, (7, 7, 7, 7, 14, 14), 7), out_features=["stage1"]
    )
    config.save_pretrained(tmp_path)
    assert CrossFormerConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["group_sizes"] == [7, 7, [7, 7, 7, 7, 14, 14], 7]
    assert saved["out_features"] == ["stage1"]


def test_editing_a_saved_configuration_changes_what_follows_from_it(tmp_path):
    CrossFormerConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved |= {"depths": [1, 1], "num_heads": [4, 8], "merge_sizes": [[2, 4]], "embed_dim": 128}
    saved |= {"group_sizes": [7, 7], "intervals": [8, 4], "out_features": ["stage2"], "out_indices": [2]}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = CrossFormerConfig.from_pretrained(tmp_path)
    assert (config.num_stages, config.hidden_size) == (2, 256)
    assert config.stage_names == ["stem", "stage1", "stage2"]


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("depths", [], "at least one stage"),
        ("depths", [2, 2, 0, 2], "must be positive"),
        ("num_heads", [3, 6], "one entry per stage: 4"),
        ("group_sizes", [7, 7], "one entry per stage: 4"),
        ("intervals", [8, 4, 2], "one entry per stage: 4"),
        ("mlp_ratio", [4.0, 4.0], "one entry per stage: 4"),
        ("merge_sizes", [[2, 4]], "one entry per stage after the first: 3"),
        ("num_channels", 0, "must be positive"),
        ("image_size", [224, 0], "must be positive"),
        ("image_size", [224, 224, 3], "an int or (height, width)"),
        ("num_heads", [0, 6, 12, 24], "must be positive"),
        ("intervals", [8, 4, -2, 1], "must be positive"),
        ("mlp_ratio", 0, "must be positive"),
        ("group_sizes", [7, 7, [7, 7], 7], "one int per layer of that stage: 6"),
        ("group_sizes", [7, 7, 0, 7], "must be positive"),
        ("patch_sizes", [], "at least one kernel size"),
        ("patch_sizes", [0, 2], "must be positive"),
        ("patch_sizes", [4, 2], "smaller than the stride, 4"),
        ("patch_sizes", [4, 7], "by an even number"),
        ("embed_dim", 8, "at least 16"),
        ("num_heads", [5, 6, 12, 24], "divide the 96 channels of stage 1"),
        ("grouping", "windows", "one of fixed_group, fixed_interval, adaptive_interval"),
        ("hidden_dropout_prob", 1.0, "less than 1"),
        ("attention_probs_dropout_prob", -0.1, "at least 0"),
        ("drop_path_rate", 1.5, "less than 1"),
        ("classifier_dropout_prob", 1.0, "less than 1"),
        ("fpn_hidden_size", 0, "must be positive"),
        ("decoder_hidden_size", -8, "must be positive"),
        ("score_threshold", -0.1, "at least 0"),
        ("score_threshold", 1.0, "less than 1"),
        ("nms_threshold", -0.5, "at least 0"),
        ("nms_threshold", 1.0, "less than 1"),
        ("max_detections", 0, "must be positive"),
        ("layer_norm_eps", 0.0, "must be positive"),
        ("initializer_range", -1.0, "must not be negative"),
        ("qk_scale", -1.0, "must be positive"),
    ],
)
def test_an_illegal_value_is_named_with_its_rule(field, value, rule):
    with pytest.raises(StrictDataclassError) as error:
        CrossFormerConfig(**{field: value})
    assert f"`{field}` is {value!r}" in str(error.value)
    assert rule in str(error.value)


def test_illegal_merge_kernels_are_named_with_their_stage():
    with pytest.raises(StrictDataclassError, match=r"`merge_sizes\[1\]` is \[1, 4\].*smaller than the stride, 2"):
        CrossFormerConfig(merge_sizes=[[2, 4], [1, 4], [2, 4]])


def test_channels_must_suit_the_number_of_kernels():
    with pytest.raises(StrictDataclassError, match=r"`embed_dim` is 20, but .*multiple of 8"):
        CrossFormerConfig(embed_dim=20, num_heads=[1, 2, 4, 8])


@pytest.mark.parametrize(
    ("field", "value"),
    [("embed_dim", "wide"), ("semantic_loss_ignore_index", None), ("max_detections", 10.5), ("score_threshold", None)],
)
def test_a_value_of_the_wrong_type_is_named(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        CrossFormerConfig(**{field: value})


def test_the_ignored_label_may_be_negative():
    """PyTorch's own is -100."""
    assert CrossFormerConfig(semantic_loss_ignore_index=-100).semantic_loss_ignore_index == -100


def test_an_unknown_activation_is_named():
    with pytest.raises(ValueError, match="`hidden_act` is 'swoosh'.*gelu"):
        CrossFormerModel(CrossFormerConfig(hidden_act="swoosh"))


# Published parameter counts in millions, with the head for 1000 classes (README of the original code).
PUBLISHED = {
    "crossformer-t": 27.8,
    "crossformer-s": 30.7,
    "crossformer-b": 52.0,
    "crossformer-l": 92.0,
    "crossformer-pp-s": 23.3,
    "crossformer-pp-b": 52.0,
    "crossformer-pp-l": 92.0,
    "crossformer-pp-h": 96.0,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_architectures_have_the_published_number_of_parameters(name):
    config = preset_config(name)
    parameters = CrossFormerModel(config).num_parameters() + (config.hidden_size + 1) * 1000
    assert round(parameters / 1e6, 1) == PUBLISHED[name]


@pytest.mark.parametrize("name", sorted(set(PRESETS) - set(PUBLISHED)))
def test_small_image_presets_end_with_a_map_worth_grouping(name):
    config = preset_config(name)
    last_map = config.image_size // config.patch_sizes[0] // 2 ** (config.num_stages - 1)
    assert last_map == config.group_sizes[-1] == 4


def test_presets_take_overrides():
    config = preset_config("crossformer-s", num_labels=7, drop_path_rate=0.0)
    assert (config.num_labels, config.drop_path_rate, config.depths) == (7, 0.0, [2, 2, 6, 2])


def test_an_unknown_preset_is_named():
    with pytest.raises(ValueError, match="`name` is 'crossformer-xl', but it must be one of crossformer-t, "):
        preset_config("crossformer-xl")


# What `compute_group_size` of the original code returns.
@pytest.mark.parametrize(
    ("name", "image_size", "depths", "expected"),
    [
        ("linear", 224, [2, 2, 6, 2], [[4, 9], [7, 9], [6, 7, 8, 9, 10, 11], [6, 7]]),
        ("linear_div", 224, [2, 2, 8, 2], [[4, 8], [6, 8], [5, 6, 7, 7, 7, 7, 7, 14], [7, 7]]),
        ("alter", 224, [2, 2, 8, 2], [[4, 8], [6, 8], [5, 6, 7, 14, 7, 14, 7, 14], [7, 7]]),
        ("7_14", 224, [2, 2, 6, 2], [[7, 7], [7, 7], [7, 7, 7, 7, 14, 14], [7, 7]]),
    ],
)
def test_group_schedules(name, image_size, depths, expected):
    assert group_schedule(name, image_size, depths) == expected


@pytest.mark.parametrize(("name", "image_size", "field"), [("steps", 224, "`name`"), ("linear", 12, "`image_size`")])
def test_bad_schedules_are_named(name, image_size, field):
    with pytest.raises(ValueError, match=field):
        group_schedule(name, image_size)
