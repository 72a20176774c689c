"""Segmentors' checkpoints, converted by the command, compute what mmsegmentation computes with them."""

import json

import numpy as np
import pytest
import torch
from golden import DATA, image_for, read_case, relative_error, sample, tensor_for
from torch.nn.functional import interpolate
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    UperNetForSemanticSegmentation,
)

from conversion.convert_crossformer import main
from conversion.key_mapping import HEAD_RENAMES, map_keys
from crossformer_hf import CrossFormerForSemanticSegmentation


VARIANTS = {
    "segment-2021-fpn-s": "fpn-crossformer-s",
    "segment-2021-upernet-s": "upernet-crossformer-s",
    "segment-main-fpn-pp-s": "fpn-crossformer-pp-s",
    "segment-main-upernet-pp-s": "upernet-crossformer-pp-s",
}
SETTINGS = [("eager", torch.float32, 1e-5), ("sdpa", torch.float32, 1e-5), ("eager", torch.float64, 1e-9)]


def logits_of(model, case: dict, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The model's logits under the names that the cases use, sampled as theirs are."""
    pixel_values = image_for(case["image_shape"], case["image_seed"]).to(dtype)
    from_head = []
    hook = model.decode_head.register_forward_hook(lambda module, inputs, logits: from_head.append(logits))
    with hook, torch.no_grad():
        logits = model(pixel_values).logits
    if not isinstance(model, UperNetForSemanticSegmentation):  # which interpolates by itself
        logits = interpolate(logits, size=case["image_shape"][-2:], mode="bilinear", align_corners=False)
    return {"logits_before_resize": sample(from_head[0], 4096), "logits": sample(logits, 8192)}


@pytest.fixture(scope="module", params=VARIANTS)
def converted(request, tmp_path_factory):
    """A case's checkpoint, as mmsegmentation saves it, and the folder that it was converted to."""
    folder = tmp_path_factory.mktemp(request.param)
    case = read_case(request.param)
    weights = {key: tensor_for(key, shape, case["weight_seed"]) for key, shape in case["state_dict"]}
    torch.save({"meta": {"epoch": 1}, "state_dict": weights, "optimizer": {}}, folder / "checkpoint.pth")
    arguments = [str(folder / "checkpoint.pth"), "--variant", VARIANTS[request.param]]
    assert main([*arguments, "--output", str(folder / "model")]) == 0
    return request.param, case, folder / "model"


def test_all_cases_are_there():
    assert sorted(VARIANTS) == sorted(path.stem for path in DATA.glob("segment-*.npz"))


def test_logits(converted):
    name, case, folder = converted
    expected = np.load(DATA / f"{name}.npz")
    model, loading = AutoModelForSemanticSegmentation.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    for implementation, dtype, tolerance in SETTINGS:
        getattr(model, "backbone", model).set_attn_implementation(implementation)
        actual = logits_of(model.eval().to(dtype), case, dtype)
        for output in expected.files:
            assert relative_error(actual[output], expected[output]) < tolerance, (implementation, dtype, output)


def test_every_key_is_accounted_for(converted):
    _, case, folder = converted
    report = json.loads((folder / "conversion_report.json").read_text())
    keys = {key.removeprefix("backbone.") for key, _ in case["state_dict"]}
    assert report["mapped"].keys() | report["dropped"].keys() == keys
    assert not report["missing"] and not report["unexpected"]
    assert all("norm" in why or "buffer" in why for why in report["dropped"].values())


def test_batch_norm_statistics(converted):
    _, case, folder = converted
    mapped = json.loads((folder / "conversion_report.json").read_text())["mapped"]
    weights = AutoModelForSemanticSegmentation.from_pretrained(folder).state_dict()
    statistics = [(key, shape) for key, shape in case["state_dict"] if "running_" in key]
    assert statistics
    for key, shape in statistics:
        assert torch.equal(weights[mapped[key]], tensor_for(key, shape, case["weight_seed"])), key


def test_folder(converted):
    name, case, folder = converted
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    config = getattr(model.config, "backbone_config", None) or model.config
    assert config.group_sizes == case["backbone"]["group_size"]
    assert config.intervals == case["backbone"]["crs_interval"]
    assert config.grouping == ("fixed_interval" if "2021" in name else "fixed_group")
    is_semantic_fpn = isinstance(model, CrossFormerForSemanticSegmentation)
    assert is_semantic_fpn == ("fpn" in name)
    assert (folder / "modeling_crossformer.py").exists() == is_semantic_fpn
    names = model.config.id2label
    assert len(names) == 150 and (names[0], names[12], names[149]) == ("wall", "person", "flag")
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: image-segmentation" in card
    assert ("46.4" in card or "47.6" in card) if "2021" in name else "no weights and no result" in card


def test_image_processor(converted):
    _, _, folder = converted
    processor = AutoImageProcessor.from_pretrained(folder)
    wide = np.zeros((300, 1500, 3), dtype=np.uint8)
    assert processor(wide, return_tensors="pt")["pixel_values"].shape[-2:] == (410, 2048)
    small = np.zeros((100, 150, 3), dtype=np.uint8)
    mask = np.full((100, 150), 3, dtype=np.uint8)
    mask[:50] = 0
    inputs = processor(small, mask, return_tensors="pt")
    assert inputs["pixel_values"].shape[-2:] == (512, 768)
    assert inputs["labels"][0].unique().tolist() == [2, 255]


def test_every_head_has_its_own_name():
    for name in VARIANTS:
        keys = [key for key, _ in read_case(name)["state_dict"] if not key.startswith("backbone.")]
        key_map = map_keys(keys, HEAD_RENAMES)
        assert list(key_map.mapped) == keys and len(set(key_map.mapped.values())) == len(keys)
    strangers = ["decode_head.scale_heads.1.1.conv.weight", "neck.lateral_convs.0.weight", "decode_head.conv_seg"]
    assert map_keys(strangers, HEAD_RENAMES).unexpected == strangers
