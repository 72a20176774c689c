"""Detectors and segmentors of Transformers around a pretrained backbone: built, trained for a step, saved, loaded."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from stand_in_hub import COMMIT, HubHandler, serve
from transformers import (
    AutoModelForObjectDetection,
    DetrForObjectDetection,
    DetrPreTrainedModel,
    Mask2FormerForUniversalSegmentation,
    OneFormerForUniversalSegmentation,
    RTDetrForObjectDetection,
    UperNetForSemanticSegmentation,
    set_seed,
)

from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerConfig,
    CrossFormerForImageClassification,
    CrossFormerForSemanticSegmentation,
    CrossFormerModel,
    from_pretrained_backbone,
)
from crossformer_hf.pretrained_backbone import CONSUMERS as KNOWN_TYPES


BATCH = 2  # batch norm on the 1 x 1 maps of UPerNet's pooling needs two images to train
ALL_STAGES = ["stage1", "stage2", "stage3", "stage4"]
LAST_STAGES = ["stage2", "stage3", "stage4"]
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,  # Deformable DETR cannot tie its heads with one
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 5,
}
# The mask head of DETR halves the width four times and norms eight groups.
DETR_MASKS = {**DETR, "d_model": 128, "encoder_attention_heads": 8, "decoder_attention_heads": 8}
RT_DETR = {**DETR, "encoder_hidden_dim": 32, "decoder_in_channels": [32, 32, 32], "num_denoising": 2}
DAB_DETR = {**{name: value for name, value in DETR.items() if name != "d_model"}, "hidden_size": 32}
MASKFORMER = {"fpn_feature_size": 32, "mask_feature_size": 32, "decoder_config": {**DETR, "model_type": "detr"}}
MASK2FORMER = {
    "feature_size": 32,
    "mask_feature_size": 32,
    "hidden_dim": 32,
    "encoder_feedforward_dim": 32,
    "dim_feedforward": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 2,
    "num_queries": 5,
    "train_num_points": 16,
}
UPERNET = {"hidden_size": 16, "auxiliary_channels": 16}
# A small image and a larger one, no side a multiple of 32.
ANY_SIZES = [(61, 93), (100, 140)]
# Upstream's hybrid encoder adds maps of double size, so sides must be multiples of 32 once they are rounded up to
# multiples of 8: 57 to 64, 89 to 96, 121 to 128 and so on.
HALVING_SIZES = [(61, 93), (96, 121)]


def boxes(height: int, width: int) -> dict[str, Any]:
    return {"labels": [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.4]])}] * BATCH}


def boxes_and_masks(height: int, width: int) -> dict[str, Any]:
    masks = torch.ones(1, height, width)
    return {"labels": [{**label, "masks": masks} for label in boxes(height, width)["labels"]]}


def masks(height: int, width: int) -> dict[str, Any]:
    top = torch.zeros(height, width)
    top[: height // 2] = 1
    return {"mask_labels": [torch.stack([top, 1 - top])] * BATCH, "class_labels": [torch.tensor([0, 1])] * BATCH}


def pixels(height: int, width: int) -> dict[str, Any]:
    return {"labels": torch.arange(BATCH * height * width).view(BATCH, height, width) % 3}


class Consumer(NamedTuple):
    fields: dict[str, Any]
    labels: Callable[[int, int], dict[str, Any]]
    out_features: list[str]
    sizes: list[tuple[int, int]] = ANY_SIZES


CONSUMERS = {
    "DetrForObjectDetection": Consumer(DETR, boxes, ALL_STAGES),
    "DetrForSegmentation": Consumer(DETR_MASKS, boxes_and_masks, ALL_STAGES),
    "ConditionalDetrForObjectDetection": Consumer(DETR, boxes, ALL_STAGES),
    "ConditionalDetrForSegmentation": Consumer(DETR_MASKS, boxes_and_masks, ALL_STAGES),
    "DabDetrForObjectDetection": Consumer(DAB_DETR, boxes, ALL_STAGES),
    "TableTransformerForObjectDetection": Consumer(DETR, boxes, ALL_STAGES),
    "DeformableDetrForObjectDetection": Consumer(DETR, boxes, LAST_STAGES),
    "RTDetrForObjectDetection": Consumer(RT_DETR, boxes, LAST_STAGES, HALVING_SIZES),
    "RTDetrV2ForObjectDetection": Consumer(RT_DETR, boxes, LAST_STAGES, HALVING_SIZES),
    "DFineForObjectDetection": Consumer(RT_DETR, boxes, LAST_STAGES, HALVING_SIZES),
    "MaskFormerForInstanceSegmentation": Consumer(MASKFORMER, masks, ALL_STAGES),
    "Mask2FormerForUniversalSegmentation": Consumer(MASK2FORMER, masks, ALL_STAGES),
    "UperNetForSemanticSegmentation": Consumer(UPERNET, pixels, ALL_STAGES),
}
each_consumer = pytest.mark.parametrize("name", CONSUMERS)
each_size = pytest.mark.parametrize("size", [0, 1])


def tiny_config(**settings) -> CrossFormerConfig:
    """Four stages with strides 4 to 32 and both kinds of attention."""
    defaults = {
        "embed_dim": 32,
        "depths": [1, 2, 1, 1],
        "num_heads": [1, 2, 2, 4],
        "group_sizes": [4, 4, 4, 4],
        "intervals": [4, 2, 1, 1],
        "mlp_ratio": 2.0,
        "num_labels": 5,
    }
    return CrossFormerConfig(**{**defaults, **settings})


def save_tiny(folder: Path, model_class=CrossFormerForImageClassification, **settings) -> Path:
    set_seed(0)
    model_class(tiny_config(**settings)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    """A classifier for each family of groupings."""
    root = tmp_path_factory.mktemp("classifiers")
    return [save_tiny(root / grouping, grouping=grouping) for grouping in ("fixed_group", "fixed_interval")]


def build(name: str, folder: Path, **settings):
    set_seed(0)
    # Transformers 5.17 takes entries out of the dictionaries that it is given.
    fields = copy.deepcopy(CONSUMERS[name].fields)
    return from_pretrained_backbone(getattr(transformers, name), folder, num_labels=3, **{**fields, **settings})


def backbone_of(model) -> CrossFormerBackbone:
    (backbone,) = [module for module in model.modules() if isinstance(module, CrossFormerBackbone)]
    return backbone


def assert_has_weights(model, folder: Path):
    """The backbone has all weights of the folder's model but its head's."""
    weights, saved = backbone_of(model).state_dict(), load_file(folder / "model.safetensors")
    saved = {key.removeprefix("crossformer."): weight for key, weight in saved.items()}
    heads = ("layernorm.", "classifier.", "neck.", "decode_head.")
    assert set(weights) == {key for key in saved if not key.startswith(heads)}
    for key, weight in weights.items():
        assert torch.equal(weight, saved[key].to(weight.dtype)), key


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(BATCH, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def assert_same_outputs(actual, expected, pixel_values: torch.Tensor):
    outputs = actual.eval()(pixel_values)
    for key, tensor in expected.eval()(pixel_values).items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.isfinite().all()
            torch.testing.assert_close(outputs[key], tensor, rtol=1e-5, atol=1e-6, msg=key)


@each_consumer
def test_the_backbone_has_the_folders_weights(folders, name):
    model = build(name, folders[0])
    assert_has_weights(model, folders[0])
    assert model.training
    assert backbone_of(model).out_features == CONSUMERS[name].out_features
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_each_known_type_is_tested():
    assert {getattr(transformers, name).config_class.model_type for name in CONSUMERS} == set(KNOWN_TYPES)


@each_size
@each_consumer
def test_a_training_step(folders, name, size):
    model = build(name, folders[size])
    height, width = CONSUMERS[name].sizes[size]
    before = copy.deepcopy(backbone_of(model).state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model(pixel_values=images(height, width), **CONSUMERS[name].labels(height, width)).loss.backward()
    for key, parameter in backbone_of(model).named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    optimizer.step()
    for key in ("embeddings.patch_embeddings.projections.0.weight", "encoder.stages.3.layers.0.mlp.fc2.weight"):
        assert not torch.equal(backbone_of(model).state_dict()[key], before[key]), key


@each_size
@each_consumer
def test_saved_and_loaded(folders, tmp_path, name, size):
    model = build(name, folders[size])
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert_same_outputs(loaded, model, images(*CONSUMERS[name].sizes[size]))


@pytest.mark.parametrize(
    "name", ["DetrForObjectDetection", "DeformableDetrForObjectDetection", "Mask2FormerForUniversalSegmentation"]
)
def test_images_of_several_sizes_padded_to_one(folders, name):
    model = build(name, folders[0])
    pixel_values, pixel_mask = images(100, 140), torch.ones(BATCH, 100, 140, dtype=torch.long)
    pixel_values[1, :, 61:], pixel_mask[1, 61:] = 0, 0
    pixel_values[1, :, :, 93:], pixel_mask[1, :, 93:] = 0, 0
    labels = CONSUMERS[name].labels(100, 140)
    model(pixel_values=pixel_values, pixel_mask=pixel_mask, **labels).loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in backbone_of(model).parameters())


@torch.no_grad()
@pytest.mark.parametrize("size", [(25, 32), (57, 64), (64, 89)])
def test_rt_detr_takes_sides_that_halve_once_rounded_up_to_eights(folders, size):
    model = build("RTDetrForObjectDetection", folders[0]).eval()
    assert model(images(*size)).logits.isfinite().all()


def test_fields_follow_from_the_backbone(tmp_path):
    folder = save_tiny(tmp_path, patch_sizes=[2, 4])
    config = build("RTDetrForObjectDetection", folder).config
    assert (config.encoder_in_channels, config.feat_strides) == ([64, 128, 256], [4, 8, 16])
    config = build("Mask2FormerForUniversalSegmentation", folder).config
    assert (config.feature_strides, config.common_stride) == ([2, 4, 8, 16], 2)


def test_fields_and_stages_given_go_before_those_that_follow(folders):
    model = build(
        "DeformableDetrForObjectDetection", folders[0], out_features=["stage3", "stage4"], num_feature_levels=3
    )
    assert backbone_of(model).out_features == ["stage3", "stage4"]
    assert build("RTDetrForObjectDetection", folders[0], feat_strides=[1, 2, 3]).config.feat_strides == [1, 2, 3]


def test_three_stages(tmp_path):
    stages = {"depths": [1, 2, 1], "num_heads": [1, 2, 2], "group_sizes": [4, 4, 4], "intervals": [4, 2, 1]}
    folder = save_tiny(tmp_path, **stages, merge_sizes=[[2, 4], [2, 4]])
    for name in ("DetrForObjectDetection", "Mask2FormerForUniversalSegmentation", "UperNetForSemanticSegmentation"):
        model = build(name, folder)
        assert backbone_of(model).out_features == ["stage1", "stage2", "stage3"]
        model(pixel_values=images(61, 93), **CONSUMERS[name].labels(61, 93)).loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in backbone_of(model).parameters())


@pytest.mark.parametrize("model_class", [CrossFormerModel, CrossFormerBackbone, CrossFormerForSemanticSegmentation])
def test_the_folder_of_another_class(tmp_path, model_class):
    folder = save_tiny(tmp_path, model_class, fpn_hidden_size=16, decoder_hidden_size=16, out_features=["stage2"])
    assert_has_weights(build("UperNetForSemanticSegmentation", folder), folder)


def test_a_backbone_out_of_a_trained_detector(folders, tmp_path):
    build("DetrForObjectDetection", folders[0]).save_pretrained(tmp_path / "detector")
    with pytest.raises(ValueError, match="'detr'.* save the `CrossFormerBackbone` that is in its `modules"):
        build("UperNetForSemanticSegmentation", tmp_path / "detector")
    backbone_of(DetrForObjectDetection.from_pretrained(tmp_path / "detector")).save_pretrained(tmp_path / "backbone")
    assert_has_weights(build("UperNetForSemanticSegmentation", tmp_path / "backbone"), folders[0])


def test_more_arguments_for_the_backbone(folders):
    kwargs = {"drop_path_rate": 0.4, "grouping": "fixed_interval"}
    backbone = backbone_of(build("UperNetForSemanticSegmentation", str(folders[0]), backbone_kwargs=kwargs))
    assert (backbone.config.drop_path_rate, backbone.config.grouping) == (0.4, "fixed_interval")
    assert backbone.encoder.stages[-1].layers[-1].drop_path.rate == 0.4


def test_dtype_and_attention_reach_the_backbone(folders):
    settings = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    model = build("UperNetForSemanticSegmentation", folders[0], **settings).eval()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert backbone_of(model).config._attn_implementation == "eager"
    assert_has_weights(model, folders[0])
    assert model(images(61, 93)).logits.isfinite().all()


def test_weights_in_half_precision_make_a_model_in_float32(tmp_path):
    CrossFormerForImageClassification(tiny_config()).half().save_pretrained(tmp_path)
    model = build("DetrForObjectDetection", tmp_path)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_has_weights(model, tmp_path)


def test_code_beside_a_converted_checkpoint_is_not_claimed(folders, tmp_path):
    folder = Path(shutil.copytree(folders[0], tmp_path / "converted"))
    with_config(auto_map={"AutoBackbone": "modeling_crossformer.CrossFormerBackbone"})(folder)
    build("UperNetForSemanticSegmentation", folder).save_pretrained(tmp_path / "segmentor")
    assert "auto_map" not in (tmp_path / "segmentor" / "config.json").read_text()
    UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmentor")


FROM_HUB = """
import sys
from transformers import UperNetForSemanticSegmentation
from crossformer_hf import from_pretrained_backbone
output = sys.argv[1]
model = from_pretrained_backbone(
    UperNetForSemanticSegmentation, "someone/crossformer", backbone_kwargs={"revision": "v1"}, hidden_size=16
)
model.save_pretrained(output)
try:
    from_pretrained_backbone(UperNetForSemanticSegmentation, "someone/misspelt")
except ValueError as error:
    print(error)
"""


def test_from_a_hub(folders, tmp_path, monkeypatch):
    paths, send_content = [], HubHandler.send_content

    def recorded(handler, *arguments):
        paths.append(handler.path)
        send_content(handler, *arguments)

    monkeypatch.setattr(HubHandler, "send_content", recorded)
    with serve(folders[0], "someone/crossformer") as endpoint:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        source = str(Path(__file__).parents[1] / "src")
        environment = {**kept, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": endpoint, "PYTHONPATH": source}
        command = [sys.executable, "-c", FROM_HUB, str(tmp_path / "segmentor")]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    assert "`backbone` is 'someone/misspelt', where no configuration can be read" in process.stdout
    assert_has_weights(UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmentor"), folders[0])
    # The revision is asked for first, the rest either by its name or by its commit.
    assert "/v1" in paths[0]
    assert all("/v1" in path or f"/{COMMIT}" in path for path in paths)


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def garbage(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(b"\xff{")


def with_config(**fields) -> Callable[[Path], None]:
    return lambda folder: (folder / "config.json").write_text(
        json.dumps({**json.loads((folder / "config.json").read_text()), **fields})
    )


def with_weights(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Path], None]:
    def replace(folder: Path):
        weights = edit(load_file(folder / "model.safetensors"))
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return replace


BIAS = "crossformer.embeddings.layernorm.bias"
BAD_FOLDERS = {
    "no folder": (shutil.rmtree, "where no configuration can be read (OSError: "),
    "no config.json": (without("config.json"), "which has no config.json that says its `model_type`"),
    "config.json is no JSON": (garbage("config.json"), "where no configuration can be read (OSError: "),
    "config.json is a list": (
        lambda folder: (folder / "config.json").write_text("[1]"),
        "where no configuration can be read",
    ),
    "no model_type": (with_config(model_type=None), "which has no config.json that says its `model_type`"),
    "another model_type": (with_config(model_type="swin"), "whose `model_type` is 'swin'"),
    "around another backbone": (
        with_config(model_type="upernet", backbone_config={"model_type": "swin"}),
        "whose `model_type` is 'upernet'",
    ),
    "illegal architecture": (with_config(embed_dim=15), "`embed_dim` is 15, but it must be at least 16"),
    "wrong type of field": (with_config(depths="2"), "Validation error for field 'depths'"),
    "no weights": (without("model.safetensors"), "which cannot be loaded (OSError: Error no file named"),
    "weights are garbage": (garbage("model.safetensors"), "which cannot be loaded (SafetensorError: "),
    "weights of a head alone": (
        with_weights(lambda weights: {key: value for key, value in weights.items() if key.startswith("classifier")}),
        "(158 missing: embeddings.layernorm.bias, embeddings.layernorm.weight, ",
    ),
    "weights of something else": (
        with_weights(lambda weights: {f"model.{key}": value for key, value in weights.items()}),
        " and 153 more; 162 unexpected: model.classifier.bias, ",
    ),
    "a weight missing": (
        with_weights(lambda weights: {key: value for key, value in weights.items() if key != BIAS}),
        "(1 missing: embeddings.layernorm.bias)",
    ),
    "a weight too much": (
        with_weights(lambda weights: {**weights, "crossformer.extra": torch.zeros(1)}),
        "(1 unexpected: crossformer.extra)",
    ),
    "a weight of another shape": (
        with_weights(lambda weights: {**weights, BIAS: torch.zeros(3)}),
        "(1 of another shape: embeddings.layernorm.bias)",
    ),
    "weights of another architecture": (with_config(depths=[1, 2, 2, 1]), "(26 missing: encoder.stages.2.layers.1."),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_refused(folders, tmp_path, case):
    edit, words = BAD_FOLDERS[case]
    folder = Path(shutil.copytree(folders[0], tmp_path / "bad"))
    edit(folder)
    with pytest.raises(ValueError) as caught:
        build("UperNetForSemanticSegmentation", folder)
    message = str(caught.value)
    assert message.startswith(f"`backbone` is {str(folder)!r}, ")
    assert words in message
    assert "must be the folder of a CrossFormer" in message and "conversion/convert_crossformer.py" in message
    assert len(message) < 1500


def test_a_file_is_refused(folders):
    with pytest.raises(ValueError, match="model.safetensors', a file, but it must be the folder"):
        build("UperNetForSemanticSegmentation", folders[0] / "model.safetensors")


@pytest.mark.parametrize(
    ("model_class", "settings", "words"),
    [
        (AutoModelForObjectDetection, {}, "`model_class` is AutoModelForObjectDetection, but it must be"),
        (CrossFormerForImageClassification, {}, "`model_class` is CrossFormerForImageClassification, but it must be"),
        ("detr", {}, "`model_class` is 'detr', but it must be"),
        (DetrPreTrainedModel, {}, "has 0 CrossFormer backbones, but it must have one"),
        (OneFormerForUniversalSegmentation, {}, "`out_features` is None, but for OneFormer"),
        (DetrForObjectDetection, {"backbone_config": tiny_config()}, "`backbone_config` is given, but"),
        (DetrForObjectDetection, {"out_features": ["stage9"]}, "stage9"),
        (DetrForObjectDetection, {"out_features": []}, "`out_features` is [], but DetrForObjectDetection needs"),
        (UperNetForSemanticSegmentation, {"out_features": ["stage3", "stage4"]}, "needs at least 3 maps"),
        (Mask2FormerForUniversalSegmentation, {"out_features": ["stage4"]}, "needs at least 3 maps"),
        (RTDetrForObjectDetection, {"out_features": ["stage4"]}, "needs at least 3 maps"),
        (DetrForObjectDetection, {"backbone_kwargs": {"revison": "v1"}}, "unexpected keyword argument 'revison'"),
    ],
)
def test_bad_arguments_are_refused(folders, model_class, settings, words):
    with pytest.raises(ValueError) as caught:
        from_pretrained_backbone(model_class, folders[0], **settings)
    assert words in str(caught.value)
