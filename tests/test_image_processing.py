"""The image processor: boxes and masks in the original images' pixels, alone and through pipelines."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_detection import INSTANCE, both, tiny_detector
from torchvision.ops import box_convert
from transformers import AutoImageProcessor, pipeline

from crossformer_hf import CrossFormerForObjectDetection, CrossFormerImageProcessor, modeling_crossformer_detection
from crossformer_hf.boxes_crossformer import paste_masks
from crossformer_hf.modeling_crossformer_detection import CrossFormerDetectionOutput


CLASSES = ["cat", "dog", "bird", "car", "tree"]
SIZES = [(60, 90), (120, 70), (64, 64)]


@pytest.fixture(autouse=True)
def narrow_box_head(monkeypatch):
    """Most of the time would go into its 1024 features."""
    monkeypatch.setattr(modeling_crossformer_detection, "BOX_FEATURES", 64)


def photo(height: int, width: int, seed: int = 0) -> Image.Image:
    coarse = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def processor(**settings) -> CrossFormerImageProcessor:
    return CrossFormerImageProcessor(**{"size": {"shortest_edge": 64, "longest_edge": 100}, **settings})


def logit(probability: float) -> float:
    return float(torch.tensor(probability).logit())


def outputs_by_hand() -> CrossFormerDetectionOutput:
    """Two images with three places: two objects in the first, the better one in front, and none in the second."""
    logits = torch.full((2, 3, 5), -torch.inf)
    logits[0, 0, 3], logits[0, 1, 1] = logit(0.9), logit(0.6)
    boxes = torch.zeros(2, 3, 4)
    boxes[0, :2] = torch.tensor([[0.25, 0.5, 0.5, 1.0], [0.5, 0.5, 1.0, 0.5]])
    masks = torch.full((2, 3, 28, 28), -torch.inf)
    masks[0, :2] = 20.0
    masks[0, 1, :14] = logit(0.3)
    return CrossFormerDetectionOutput(logits=logits, pred_boxes=boxes, pred_masks=masks)


def segments(target_sizes=((40, 80), (10, 10)), **settings) -> list[dict]:
    return processor().post_process_instance_segmentation(outputs_by_hand(), target_sizes=target_sizes, **settings)


@pytest.mark.parametrize(
    "target_sizes", [[(40, 80), (10, 10)], [[40, 80], [10, 10]], torch.tensor([[40, 80], [10, 10]])]
)
def test_one_map_with_the_better_object_in_front(target_sizes):
    first, second = segments(target_sizes)
    expected = torch.full((40, 80), -1)
    expected[20:30, :] = 1  # the lower half of the second box, whose upper half is no part of the object
    expected[:, :40] = 0
    assert torch.equal(first["segmentation"], expected)
    info = first["segments_info"]
    assert [(segment["id"], segment["label_id"]) for segment in info] == [(0, 3), (1, 1)]
    assert [segment["score"] for segment in info] == pytest.approx([0.9, 0.6])
    assert info[1]["box"] == pytest.approx([0, 10, 80, 30], abs=1e-4)
    assert second["segments_info"] == []
    assert torch.equal(second["segmentation"], torch.full((10, 10), -1))


def test_binary_maps_may_overlap():
    first, second = segments(return_binary_maps=True)
    assert first["segmentation"].dtype == torch.bool and first["segmentation"].shape == (2, 40, 80)
    assert first["segmentation"][0, :, :40].all() and not first["segmentation"][0, :, 40:].any()
    # Its corners are rounded off by the interpolation.
    assert first["segmentation"][1, 20:30, 2:78].all() and not first["segmentation"][1, :19].any()
    assert second["segmentation"].shape == (0, 10, 10) and second["segments_info"] == []


def test_thresholds():
    assert [segment["label_id"] for segment in segments(threshold=0.7)[0]["segments_info"]] == [3]
    assert segments(threshold=0.95)[0]["segments_info"] == []
    whole = segments(mask_threshold=0.25, return_binary_maps=True)[0]["segmentation"][1]
    assert whole[12:29, 4:76].all() and not whole[:9].any()


def test_an_object_that_is_hardly_visible_goes():
    """Half of the second object is behind the first."""
    first, _ = segments(overlap_mask_area_threshold=0.6)
    assert [segment["id"] for segment in first["segments_info"]] == [0]
    assert first["segmentation"].unique().tolist() == [-1, 0]
    assert len(segments(overlap_mask_area_threshold=0.4)[0]["segments_info"]) == 2


@pytest.mark.parametrize("target_sizes", [None, [(40, 80)], torch.tensor([[40, 80]] * 3)])
def test_sizes_are_needed_for_every_image(target_sizes):
    with pytest.raises(ValueError, match=r"(?s)`target_sizes` is .*each of the 2 images; give"):
        segments(target_sizes)


def run(model, photos: list[Image.Image]):
    with torch.no_grad():
        return model(**processor()(photos, return_tensors="pt"))


@both
def test_boxes_are_in_the_original_images_pixels(model_class):
    """The same picture in three sizes is resized to one, so detections are the same relative to each."""
    model, sizes = tiny_detector(model_class), [(60, 80), (120, 160), (30, 40)]
    photos = [photo(60, 80).resize((width, height), Image.Resampling.NEAREST) for height, width in sizes]
    inputs = processor(size={"height": 60, "width": 80}, resample=0)(photos[:2], return_tensors="pt")
    with torch.no_grad():
        outputs = model(**inputs)
    for target_sizes in (sizes[:2], torch.tensor(sizes[:2])):
        small, large = processor().post_process_object_detection(outputs, threshold=0.1, target_sizes=target_sizes)
        assert len(small["boxes"]) > 3
        torch.testing.assert_close(large["boxes"], 2 * small["boxes"], rtol=0, atol=0.1)


@both
def test_a_batch_of_sizes_gives_what_each_image_gives_alone(model_class):
    model, photos = tiny_detector(model_class), [photo(*size, seed=index) for index, size in enumerate(SIZES)]
    together = processor().post_process_object_detection(run(model, photos), threshold=0.1, target_sizes=SIZES)
    for index, size in enumerate(SIZES):
        outputs = run(model, photos[index : index + 1])
        (alone,) = processor().post_process_object_detection(outputs, threshold=0.1, target_sizes=[size])
        assert len(alone["scores"]) > 0
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(together[index][name], alone[name], rtol=1e-4, atol=1e-3)
        height, width = size
        limits = torch.tensor([width, height, width, height]) + 1e-3
        assert (alone["boxes"] >= -1e-3).all() and (alone["boxes"] <= limits).all()


def test_masks_of_a_batch_of_sizes():
    model, photos = tiny_detector(INSTANCE), [photo(*size, seed=index) for index, size in enumerate(SIZES)]
    outputs = run(model, photos)
    results = processor().post_process_instance_segmentation(
        outputs, threshold=0.2, target_sizes=SIZES, return_binary_maps=True
    )
    detections = processor().post_process_object_detection(outputs, threshold=0.2, target_sizes=SIZES)
    for size, result, detected in zip(SIZES, results, detections, strict=True):
        number = len(detected["scores"])
        assert result["segmentation"].shape == (number, *size) and number > 0
        assert [segment["score"] for segment in result["segments_info"]] == pytest.approx(detected["scores"].tolist())
        assert [segment["label_id"] for segment in result["segments_info"]] == detected["labels"].tolist()
        boxes = torch.tensor([segment["box"] for segment in result["segments_info"]])
        torch.testing.assert_close(boxes, detected["boxes"], rtol=0, atol=1e-3)
    height, width = SIZES[1]
    boxes = box_convert(outputs.pred_boxes[1, :1], "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
    expected = paste_masks(outputs.pred_masks[1, :1].sigmoid(), boxes, SIZES[1])[0] >= 0.5
    assert torch.equal(results[1]["segmentation"][0], expected)


def test_half_precision_outputs():
    model = tiny_detector(INSTANCE).half()
    inputs = processor()([photo(60, 90)], return_tensors="pt").to(torch.float16)
    with torch.no_grad():
        outputs = model(**inputs)
    (result,) = processor().post_process_instance_segmentation(outputs, threshold=0.1, target_sizes=[(60, 90)])
    assert result["segments_info"] and result["segmentation"].shape == (60, 90)


def annotation(index: int, *boxes: list) -> dict:
    """COCO annotations of rectangles (x, y, width, height)."""
    objects = [
        {"id": place, "image_id": index, "category_id": 1, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0}
        | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for place, (x, y, w, h) in enumerate(boxes)
    ]
    return {"image_id": index, "annotations": objects}


@pytest.mark.parametrize("order", [(0, 1), (1, 0), (1, 1)])
def test_annotations_of_images_without_objects(order):
    """Transformers' own processor fails on their masks."""
    annotations = [annotation(0, [10, 12, 20, 30]), annotation(1)]
    inputs = processor()(
        [photo(*SIZES[index]) for index in order],
        annotations=[annotations[index] for index in order],
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    size = inputs.pixel_values.shape[-2:]
    for index, label in zip(order, inputs["labels"], strict=True):
        number = 1 - index
        assert label["masks"].shape == (number, *size) and label["boxes"].shape == (number, 4)
    outputs = tiny_detector(INSTANCE)(**inputs)
    assert outputs.loss.isfinite()


def test_masks_and_boxes_of_annotations_agree():
    inputs = processor()(
        [photo(60, 90), photo(120, 70)],
        annotations=[annotation(0, [10, 12, 30, 24]), annotation(1, [7, 30, 40, 60], [0, 0, 20, 20])],
        return_segmentation_masks=True,
        return_tensors="pt",
    )
    height, width = inputs.pixel_values.shape[-2:]
    for label in inputs["labels"]:
        boxes = box_convert(label["boxes"], "cxcywh", "xyxy") * torch.tensor([width, height] * 2)
        for box, mask in zip(boxes, label["masks"], strict=True):
            rows, columns = mask.bool().any(dim=1).nonzero(), mask.bool().any(dim=0).nonzero()
            extent = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            torch.testing.assert_close(torch.stack(extent).float(), box, rtol=0, atol=1.5)


# Saved folders and pipelines.


@pytest.fixture(params=[CrossFormerForObjectDetection, INSTANCE])
def folder(request, tmp_path):
    """A detector and its image processor."""
    tiny_detector(request.param, id2label=dict(enumerate(CLASSES))).save_pretrained(tmp_path)
    processor().save_pretrained(tmp_path)
    return tmp_path


def test_auto_class(folder):
    loaded = AutoImageProcessor.from_pretrained(folder)
    assert type(loaded) is CrossFormerImageProcessor
    assert loaded.to_dict() == processor().to_dict()
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "CrossFormerImageProcessor"


def assert_pixels(answers: list[dict], expected: dict):
    assert len(answers) == len(expected["scores"]) > 3
    for answer, score, label, box in zip(
        answers, *(expected[name] for name in ("scores", "labels", "boxes")), strict=True
    ):
        assert answer["score"] == pytest.approx(float(score), abs=1e-5)
        assert answer["label"] == CLASSES[label]
        assert list(answer["box"]) == ["xmin", "ymin", "xmax", "ymax"]
        assert list(answer["box"].values()) == pytest.approx(box.tolist(), abs=1.01)


def test_object_detection_pipeline(folder):
    """From a folder (of RetinaNet: a Mask R-CNN is handed over as a model), for images of any sizes."""
    is_instance = json.loads((folder / "config.json").read_text())["architectures"] == [INSTANCE.__name__]
    model = INSTANCE.from_pretrained(folder) if is_instance else str(folder)
    find = pipeline("object-detection", model=model, image_processor=AutoImageProcessor.from_pretrained(folder))
    photos = [photo(*size, seed=index) for index, size in enumerate(SIZES)]
    answers = find(photos, threshold=0.1)
    for size, image, answer in zip(SIZES, photos, answers, strict=True):
        outputs = run(find.model, [image])
        (expected,) = processor().post_process_object_detection(outputs, threshold=0.1, target_sizes=[size])
        assert_pixels(answer, expected)
    assert find(photos[0], threshold=0.999) == []


def test_object_detection_pipeline_in_batches():
    """The pipeline stacks images, so the processor pads them to one size."""
    model = tiny_detector(CrossFormerForObjectDetection, id2label=dict(enumerate(CLASSES)))
    photos = [photo(*size, seed=index) for index, size in enumerate(SIZES)]
    one = pipeline("object-detection", model=model, image_processor=processor())
    padded = pipeline(
        "object-detection", model=model, image_processor=processor(pad_size={"height": 100, "width": 100})
    )
    for alone, answers in zip(one(photos, threshold=0.1), padded(photos, threshold=0.1, batch_size=3), strict=True):
        assert [answer["label"] for answer in answers] == [answer["label"] for answer in alone]
        for answer, other in zip(answers, alone, strict=True):
            assert answer["score"] == pytest.approx(other["score"], abs=1e-4)
            assert list(answer["box"].values()) == pytest.approx(list(other["box"].values()), abs=1)


def test_instance_segmentation_pipeline():
    model, image = tiny_detector(INSTANCE, id2label=dict(enumerate(CLASSES))), photo(61, 90)
    segment = pipeline("image-segmentation", model=model, image_processor=processor())
    answers = segment(image, subtask="instance", threshold=0.1, overlap_mask_area_threshold=0.1)
    (expected,) = processor().post_process_instance_segmentation(
        run(model, [image]), threshold=0.1, overlap_mask_area_threshold=0.1, target_sizes=[(61, 90)]
    )
    assert len(answers) == len(expected["segments_info"]) > 1
    for answer, segment_info in zip(answers, expected["segments_info"], strict=True):
        assert answer["label"] == CLASSES[segment_info["label_id"]]
        assert answer["score"] == pytest.approx(segment_info["score"], abs=1e-5)
        mask = torch.from_numpy(np.array(answer["mask"]) == 255)
        assert torch.equal(mask, expected["segmentation"] == segment_info["id"]) and mask.any()
