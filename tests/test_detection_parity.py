"""Detectors' checkpoints, converted by the command, compute what mmdetection computes with them, array by array."""

import json

import numpy as np
import pytest
import torch
from golden import DATA, image_for, read_case, relative_error, sample, tensor_for
from transformers import AutoImageProcessor, AutoModelForInstanceSegmentation, AutoModelForObjectDetection

from conversion.convert_crossformer import main
from conversion.key_mapping import HEAD_RENAMES, RETINANET_RENAMES, map_keys
from crossformer_hf import CrossFormerBackbone, CrossFormerForObjectDetection


VARIANTS = {
    "detect-2021-retinanet-s": "retinanet-crossformer-s",
    "detect-2021-mask-rcnn-s": "mask-rcnn-crossformer-s",
    "detect-main-retinanet-pp-s": "retinanet-crossformer-pp-s",
    "detect-main-mask-rcnn-pp-s": "mask-rcnn-crossformer-pp-s",
}


def as_map(predictions: torch.Tensor, feature_map: torch.Tensor) -> torch.Tensor:
    """Predictions for each anchor as the convolution gave them: (batch, channels, height, width)."""
    return predictions.reshape(1, *feature_map.shape[-2:], -1).permute(0, 3, 1, 2)


def head_outputs(head, pyramid: list[torch.Tensor], prefix: str, scores: int, deltas: int) -> dict[str, np.ndarray]:
    outputs = {}
    for level, feature_map in enumerate(pyramid):
        logits, offsets = head(feature_map)
        outputs[f"{prefix}score{level}"] = sample(as_map(logits, feature_map), scores)
        outputs[f"{prefix}delta{level}"] = sample(as_map(offsets, feature_map), deltas)
    return outputs


def boxes_with_scores(boxes: torch.Tensor, scores: torch.Tensor) -> np.ndarray:
    return torch.cat([boxes, scores[:, None]], dim=1).numpy()


def retinanet_outputs(model, pyramid: list[torch.Tensor], size: tuple[int, int], expected) -> dict[str, np.ndarray]:
    (found,) = model.detect(pyramid, [size])
    boxes = {"boxes": boxes_with_scores(found.boxes, found.scores), "labels": found.labels.numpy()}
    return {**boxes, **head_outputs(model.head, pyramid, "", 4096, 1024)}


def mask_rcnn_outputs(model, pyramid: list[torch.Tensor], size: tuple[int, int], expected) -> dict[str, np.ndarray]:
    """The heads behind the proposals are given the case's: in single precision nearly equal ones change places."""
    predictions = [model.proposal_head(level) for level in pyramid]
    ((boxes, scores),) = model.propose(model.anchors(pyramid), predictions, [size])
    (found,) = model.detect(pyramid, [size])
    proposals = torch.from_numpy(expected["proposals"][:, :4]).to(boxes.dtype)
    logits, deltas = model.box_head(model.pool(pyramid, [proposals], 7))
    first = torch.from_numpy(expected["boxes"][:32, :4]).to(boxes.dtype)
    masks = model.mask_head(model.pool(pyramid, [first], 14), torch.from_numpy(expected["labels"][:32]))
    return {
        **head_outputs(model.proposal_head, pyramid, "rpn_", 1024, 1024),
        "proposals": boxes_with_scores(boxes, scores),
        "box_scores": logits[:64].numpy(),
        "box_deltas": sample(deltas[:64].flatten(1), 8192),
        "boxes": boxes_with_scores(found.boxes, found.scores),
        "labels": found.labels.numpy(),
        "mask_logits": sample(masks, 8192),
        "masks_found": sample(found.masks[:32], 8192),
    }


@torch.no_grad()
def outputs_of(model, case: dict, expected, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """The model's arrays under the names that the cases use, sampled as theirs are."""
    pixel_values = image_for(case["image_shape"], case["image_seed"]).to(dtype)
    pyramid = model.pyramid(model.crossformer(pixel_values, output_hidden_states=True).hidden_states[1:])
    of_kind = retinanet_outputs if isinstance(model, CrossFormerForObjectDetection) else mask_rcnn_outputs
    levels = {f"fpn{level}": sample(feature_map, 1024) for level, feature_map in enumerate(pyramid)}
    return {**levels, **of_kind(model, pyramid, tuple(case["image_shape"][-2:]), expected)}


def farthest(boxes: np.ndarray, expected: np.ndarray) -> float:
    """Largest distance from an expected box to the nearest one, in any order, relative to the largest value."""
    distances = torch.cdist(torch.from_numpy(expected), torch.from_numpy(boxes).double(), p=float("inf"))
    return float(distances.amin(dim=1).max()) / np.abs(expected).max()


@pytest.fixture(scope="module", params=VARIANTS)
def converted(request, tmp_path_factory):
    """A case's checkpoint, as mmdetection saves it, and the folder that it was converted to."""
    folder = tmp_path_factory.mktemp(request.param)
    case = read_case(request.param)
    weights = {key: tensor_for(key, shape, case["weight_seed"]) for key, shape in case["state_dict"]}
    torch.save({"meta": {"epoch": 12}, "state_dict": weights, "optimizer": {}}, folder / "checkpoint.pth")
    arguments = [str(folder / "checkpoint.pth"), "--variant", VARIANTS[request.param]]
    assert main([*arguments, "--output", str(folder / "model")]) == 0
    return request.param, case, folder


def load(name: str, folder):
    auto = AutoModelForObjectDetection if "retinanet" in name else AutoModelForInstanceSegmentation
    model, loading = auto.from_pretrained(folder, output_loading_info=True)
    assert not any(loading.values())
    return model.eval()


def test_all_cases_are_there():
    assert sorted(VARIANTS) == sorted(path.stem for path in DATA.glob("detect-*.npz"))


def test_double_precision(converted):
    name, case, folder = converted
    expected = np.load(DATA / f"{name}.npz")
    actual = outputs_of(load(name, folder / "model").double(), case, expected, torch.float64)
    assert np.array_equal(actual.pop("labels"), expected["labels"])
    if "masks_found" in actual:
        assert relative_error(actual.pop("masks_found"), expected["mask_logits"]) < 1e-9
    assert actual.keys() == set(expected.files) - {"labels"}
    for output, values in actual.items():
        assert values.shape == expected[output].shape, output
        assert relative_error(values, expected[output]) < 1e-9, output


# A box is an anchor times the exponential of a prediction, so boxes magnify rounding errors: 1.4e-5 here.
BOX_TOLERANCE = 2e-5


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_single_precision(converted, implementation):
    name, case, folder = converted
    expected = np.load(DATA / f"{name}.npz")
    model = load(name, folder / "model")
    model.set_attn_implementation(implementation)
    actual = outputs_of(model, case, expected, torch.float32)
    for output in ("proposals", "boxes"):
        if output in actual:
            assert farthest(actual.pop(output), expected[output]) < BOX_TOLERANCE, output
    for output in set(expected.files) & actual.keys() - {"labels"}:
        assert relative_error(actual[output], expected[output]) < 1e-5, output


def test_outputs_are_the_detections(converted):
    name, case, folder = converted
    expected = np.load(DATA / f"{name}.npz")
    model = load(name, folder / "model").double()
    with torch.no_grad():
        outputs = model(image_for(case["image_shape"], case["image_seed"]).double())
    processor = AutoImageProcessor.from_pretrained(folder / "model")
    (found,) = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[(320, 416)])
    assert found["labels"].tolist() == expected["labels"].tolist()
    assert relative_error(found["boxes"].numpy(), expected["boxes"][:, :4]) < 1e-6  # the processor's single precision
    assert relative_error(found["scores"].numpy(), expected["boxes"][:, 4]) < 1e-9


def test_every_key_is_accounted_for(converted):
    _, case, folder = converted
    report = json.loads((folder / "model" / "conversion_report.json").read_text())
    keys = {key.removeprefix("backbone.") for key, _ in case["state_dict"]}
    assert report["mapped"].keys() | report["dropped"].keys() == keys
    assert not report["missing"] and not report["unexpected"]
    assert all("norm" in why or "buffer" in why for why in report["dropped"].values())


def test_folder(converted):
    name, case, folder = converted
    config = load(name, folder / "model").config
    assert config.group_sizes == case["backbone"]["group_size"]
    assert config.intervals == case["backbone"]["crs_interval"]
    assert config.grouping == ("fixed_interval" if "2021" in name else "fixed_group")
    assert len(config.id2label) == 80 and (config.id2label[0], config.id2label[79]) == ("person", "toothbrush")
    settings = json.loads((folder / "model" / "preprocessor_config.json").read_text())
    assert settings["size"] == {"shortest_edge": 800, "longest_edge": 1333}
    card = (folder / "model" / "README.md").read_text()
    assert ("44.4" in card or "45.4 / 41.4" in card) if "2021" in name else "no weights and no result" in card


def test_images_are_resized_and_padded_as_in_the_original(converted):
    _, _, folder = converted
    processor = AutoImageProcessor.from_pretrained(folder / "model")
    images = [np.zeros((480, 640, 3), dtype=np.uint8), np.zeros((300, 900, 3), dtype=np.uint8)]
    inputs = processor(images, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 3, 800, 1333)
    sizes = [(int(mask.any(1).sum()), int(mask.any(0).sum())) for mask in inputs["pixel_mask"]]
    assert sizes[0] == (800, 1066) and sizes[1] == (444, 1333)


def test_the_backbone_alone(converted):
    name, _, folder = converted
    arguments = [str(folder / "checkpoint.pth"), "--variant", VARIANTS[name], "--backbone-only"]
    assert main([*arguments, "--output", str(folder / "backbone")]) == 0
    backbone, loading = CrossFormerBackbone.from_pretrained(folder / "backbone", output_loading_info=True)
    assert not any(loading.values())
    own = load(name, folder / "model").crossformer.state_dict()
    assert all(torch.equal(own[key], tensor) for key, tensor in backbone.state_dict().items())


def test_every_head_has_its_own_name():
    for name in VARIANTS:
        renames = RETINANET_RENAMES if "retinanet" in name else HEAD_RENAMES
        keys = [key for key, _ in read_case(name)["state_dict"] if not key.startswith("backbone.")]
        key_map = map_keys(keys, renames)
        assert list(key_map.mapped) == keys and len(set(key_map.mapped.values())) == len(keys)
