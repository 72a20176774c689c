"""The detectors: any sizes in a batch, losses, bad annotations, precision, weights of other models, the Trainer."""

import copy

import pytest
import torch
from test_modeling import tiny_config
from torchvision.ops import box_convert, box_iou
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    Trainer,
    TrainingArguments,
    set_seed,
)

from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerForImageClassification,
    CrossFormerForInstanceSegmentation,
    CrossFormerForObjectDetection,
    CrossFormerForSemanticSegmentation,
    CrossFormerImageProcessor,
    modeling_crossformer_detection,
)
from crossformer_hf.boxes_crossformer import match_boxes
from crossformer_hf.modeling_crossformer_detection import SampledRegions, Target, sample_regions


DETECTORS = [CrossFormerForObjectDetection, CrossFormerForInstanceSegmentation]
INSTANCE = CrossFormerForInstanceSegmentation
FOUR_STAGES = {"depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8], "group_sizes": [4] * 4, "intervals": [4, 2, 1, 1]}
FOUR_STAGES["merge_sizes"] = [[2, 4]] * 3
ARCHITECTURES = {
    "three stages": {},
    "four stages": FOUR_STAGES,
    "two stages": {"depths": [1, 1], "num_heads": [1, 2], "group_sizes": [4, 4], "intervals": [4, 2]}
    | {"merge_sizes": [[2, 4]]},
    "stride 2": {"patch_sizes": [2, 4]},
    "stride 8": {"patch_sizes": [8, 16]},
    "one class": {"num_labels": 1},
    "groups by interval": {"grouping": "fixed_interval"},
}

both = pytest.mark.parametrize("model_class", DETECTORS)


@pytest.fixture(autouse=True)
def narrow_box_head(monkeypatch):
    """Most of the time would go into its 1024 features."""
    monkeypatch.setattr(modeling_crossformer_detection, "BOX_FEATURES", 64)


def tiny_detector(model_class, **settings):
    """Three stages of one layer, strides 4 to 16, five classes, and weights that give detections of every class."""
    set_seed(0)
    settings = {
        "depths": [1, 1, 1],
        "use_cooling_layer": False,
        "fpn_hidden_size": 16,
        "max_detections": 20,
    } | settings
    model = model_class(tiny_config(**settings)).eval()
    head = model.box_head if model_class is INSTANCE else model.head
    for layer, bias in ((head.classifier, 0.0), (head.box_regressor, 0.0)):
        torch.nn.init.normal_(layer.weight, std=0.3 if layer is head.classifier else 0.05)
        torch.nn.init.constant_(layer.bias, bias)
    return model


@torch.no_grad()
def detect(model, pixel_values, pixel_mask=None):
    return model(pixel_values, pixel_mask=pixel_mask)


def found(outputs, image: int = 0) -> dict[str, torch.Tensor]:
    """The detections of one image, without the empty places."""
    scores, labels = outputs.logits[image].sigmoid().max(dim=1)
    kept = scores > 0
    detections = {"scores": scores[kept], "labels": labels[kept], "boxes": outputs.pred_boxes[image, kept]}
    if outputs.pred_masks is not None:
        detections["masks"] = outputs.pred_masks[image, kept]
    return detections


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float = 1e-5):
    assert len(expected["scores"]) > 0
    for name, tensor in expected.items():
        torch.testing.assert_close(
            actual[name], tensor, rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}"
        )


def padded_batch(images: list[torch.Tensor], value: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (3, height, width) as one batch, padded below and on the right, and its mask."""
    height, width = (max(image.shape[side] for image in images) for side in (1, 2))
    pixel_values = torch.full((len(images), 3, height, width), value, dtype=images[0].dtype)
    pixel_mask = torch.zeros(len(images), height, width, dtype=torch.long)
    for index, image in enumerate(images):
        pixel_values[index, :, : image.shape[1], : image.shape[2]] = image
        pixel_mask[index, : image.shape[1], : image.shape[2]] = 1
    return pixel_values, pixel_mask


def one_object(height: int = 64, width: int = 80, label: int = 2, box=(0.5, 0.5, 0.4, 0.5)) -> dict:
    """Labels of an image with one object, which fills its box."""
    x1, y1, x2, y2 = (box_convert(torch.tensor(box), "cxcywh", "xyxy") * torch.tensor([width, height] * 2)).round()
    masks = torch.zeros(1, height, width)
    masks[0, int(y1) : int(y2), int(x1) : int(x2)] = 1
    return {"class_labels": torch.tensor([label]), "boxes": torch.tensor([box]), "masks": masks}


def no_object() -> dict:
    return {"class_labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, 4)}


def joined(*labels: dict) -> dict:
    """Labels of one image with the objects of several."""
    return {name: torch.cat([label[name] for label in labels]) for name in labels[0]}


# Detections.


@both
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_gives_sorted_detections_inside_the_image(model_class, architecture):
    model = tiny_detector(model_class, **ARCHITECTURES[architecture])
    outputs = detect(model, torch.randn(2, 3, 61, 100))
    assert outputs.logits.shape == (2, 20, model.config.num_labels)
    assert outputs.pred_boxes.shape == (2, 20, 4)
    assert (outputs.pred_masks is None) == (model_class is CrossFormerForObjectDetection)
    for image in range(2):
        detections = found(outputs, image)
        assert len(detections["scores"]) > 3
        assert (detections["scores"].diff() <= 0).all() and (detections["scores"] > 0.05).all()
        assert (outputs.logits[image].isfinite().sum(dim=1) <= 1).all()
        corners = box_convert(detections["boxes"], "cxcywh", "xyxy")
        assert (corners >= -1e-6).all() and (corners <= 1 + 1e-6).all()
        assert (corners[:, 2:] > corners[:, :2]).all()
        if model_class is INSTANCE:
            assert detections["masks"].shape == (len(detections["scores"]), 28, 28)
            assert detections["masks"].isfinite().all()


@both
def test_a_detectors_own_suppression_and_limits(model_class):
    image = torch.randn(1, 3, 96, 128)
    detections = found(detect(tiny_detector(model_class, nms_threshold=0.3), image))
    corners = box_convert(detections["boxes"], "cxcywh", "xyxy") * torch.tensor([128, 96, 128, 96])
    same_class = detections["labels"][:, None] == detections["labels"]
    overlaps = box_iou(corners, corners).fill_diagonal_(0)[same_class]
    assert same_class.sum() > len(corners) and overlaps.max() <= 0.3 + 1e-5
    few = found(detect(tiny_detector(model_class, nms_threshold=0.3, max_detections=5), image))
    assert len(few["scores"]) == 5
    assert_same(few, {name: tensor[:5] for name, tensor in detections.items()})
    threshold = float(detections["scores"][4])
    sure = found(detect(tiny_detector(model_class, nms_threshold=0.3, score_threshold=threshold), image))
    assert_same(sure, {name: tensor[:4] for name, tensor in detections.items()})


@both
def test_nothing_found_is_empty_places(model_class):
    outputs = detect(tiny_detector(model_class, score_threshold=0.999), torch.randn(2, 3, 61, 64))
    assert outputs.logits.shape == (2, 20, 5) and (outputs.logits == -torch.inf).all()
    assert outputs.pred_boxes.shape == (2, 20, 4) and not outputs.pred_boxes.any()
    if model_class is INSTANCE:
        assert outputs.pred_masks.shape == (2, 20, 28, 28) and not outputs.pred_masks.sigmoid().any()


@both
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 7), (16, 3), (17, 33)])
def test_images_smaller_than_a_stride(model_class, size):
    """Zeros below and on the right make them large enough; the boxes are those of the image alone."""
    model, image = tiny_detector(model_class), torch.randn(1, 3, *size)
    large = torch.zeros(1, 3, 32, 48)
    large[..., : size[0], : size[1]] = image
    mask = torch.zeros(1, 32, 48, dtype=torch.bool)
    mask[:, : size[0], : size[1]] = True
    assert_same(found(detect(model, large, mask)), found(detect(model, image)))


@both
def test_results_depend_on_the_input_alone(model_class):
    model, large, small = tiny_detector(model_class), torch.randn(1, 3, 130, 112), torch.randn(1, 3, 16, 24)
    first = found(detect(model, large))
    detect(model, small)
    assert_same(found(detect(model, large)), first, tolerance=0)


SIZES = [(61, 100), (96, 40), (64, 112), (5, 7), (50, 99), (96, 112)]


@both
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (5, 3, 4, 2, 1, 0), (3, 0), (0, 4, 2)])
def test_boxes_are_unaffected_by_the_batch(model_class, order):
    """Sizes 0, 2 and 4 are computed together; whatever is in the padding is not looked at."""
    model = tiny_detector(model_class).double()
    set_seed(2)
    images = [torch.randn(3, *size, dtype=torch.float64) for size in SIZES]
    outputs = detect(model, *padded_batch([images[index] for index in order], value=7.0))
    for place, index in enumerate(order):
        assert_same(found(outputs, place), found(detect(model, images[index][None])), tolerance=1e-9)


@both
def test_a_mask_of_ones_changes_nothing(model_class):
    model, image = tiny_detector(model_class), torch.randn(2, 3, 61, 64)
    expected = detect(model, image)
    for dtype in (torch.bool, torch.long, torch.float32):
        actual = detect(model, image, torch.ones(2, 61, 64, dtype=dtype))
        assert torch.equal(actual.logits, expected.logits) and torch.equal(actual.pred_boxes, expected.pred_boxes)


@pytest.mark.parametrize("shape", [(2, 61, 63), (1, 61, 64), (2, 1, 61, 64), (61, 64)])
def test_a_pixel_mask_of_another_shape_is_refused(shape):
    model = tiny_detector(CrossFormerForObjectDetection)
    with pytest.raises(ValueError, match=r"`pixel_mask` has the shape \(.*\), but must be .*: \(2, 61, 64\)"):
        model(torch.randn(2, 3, 61, 64), pixel_mask=torch.ones(shape))


@pytest.mark.parametrize("part", [slice(0, 0), slice(5, 64), slice(0, 64, 2)])
def test_a_pixel_mask_that_is_not_one_corner_is_refused(part):
    """An image without pixels, padding on the left, and holes."""
    mask = torch.zeros(2, 61, 64)
    mask[0], mask[1, :, part] = 1, 1
    with pytest.raises(ValueError, match=r"`pixel_mask\[1\]` must be 1 .* upper left corner"):
        tiny_detector(CrossFormerForObjectDetection)(torch.randn(2, 3, 61, 64), pixel_mask=mask)


@both
def test_what_is_returned(model_class):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 64, 80)
    detections = ["logits", "pred_boxes"] + ["pred_masks"] * (model_class is INSTANCE)
    assert list(model(image)) == detections
    assert list(model(image, labels=[one_object()])) == ["loss", "loss_dict", *detections]
    assert list(model.train()(image, labels=[one_object()])) == ["loss", "loss_dict"]
    assert list(model(image)) == detections
    assert torch.equal(model.eval()(image, return_dict=False)[0], model(image).logits)


@both
def test_hidden_states_and_attentions_are_the_backbones(model_class):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 64, 80)
    model.set_attn_implementation("eager")
    outputs = model(image, output_hidden_states=True, output_attentions=True)
    expected = model.crossformer(image, output_hidden_states=True, output_attentions=True)
    for name in ("hidden_states", "attentions"):
        assert len(outputs[name]) == len(expected[name]) > 2
        assert all(torch.equal(*pair) for pair in zip(outputs[name], expected[name], strict=True))
    model.config.output_hidden_states = True
    assert len(model(image).hidden_states) == len(expected.hidden_states)
    assert model(image, output_hidden_states=False).hidden_states is None
    for wanted in ([1], [0, 2]):
        chosen = model(image, output_hidden_states=wanted).hidden_states
        of_backbone = model.crossformer(image, output_hidden_states=wanted).hidden_states
        assert any(feature_map is None for feature_map in chosen)
        for feature_map, other in zip(chosen, of_backbone, strict=True):
            assert torch.equal(feature_map, other) if other is not None else feature_map is None
    batch = padded_batch([torch.randn(3, 16, 16), torch.randn(3, 64, 16)])
    for wanted in (True, [1]):
        assert model(batch[0], pixel_mask=batch[1], output_hidden_states=wanted).hidden_states is None


@both
def test_eager_equals_sdpa(model_class):
    model, image = tiny_detector(model_class).double(), torch.randn(2, 3, 61, 129, dtype=torch.float64)
    model.set_attn_implementation("eager")
    eager = found(detect(model, image))
    model.set_attn_implementation("sdpa")
    assert_same(found(detect(model, image)), eager, tolerance=1e-9)


# Precision.


def assert_best_is_near(outputs, expected, tolerance: float):
    """The expected best detection is among the five best, about as large and as likely."""
    best, detections = found(expected), found(outputs)
    distances = (detections["boxes"][:5] - best["boxes"][0]).abs().amax(dim=1)
    assert distances.min() < tolerance
    torch.testing.assert_close(detections["scores"][0], best["scores"][0], rtol=0, atol=tolerance)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(model_class, dtype):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 61, 129)
    tolerance = {torch.float16: 0.01, torch.bfloat16: 0.05}[dtype]
    expected = detect(model, image)
    with torch.autocast("cpu", dtype=dtype):
        assert_best_is_near(detect(model, image), expected, tolerance)
    outputs = detect(model.to(dtype), image.to(dtype))
    assert outputs.pred_boxes.dtype == outputs.logits.dtype == torch.float32
    assert_best_is_near(outputs, expected, tolerance)


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_losses_in_other_precisions(model_class, dtype):
    model, image, labels = tiny_detector(model_class), torch.randn(1, 3, 64, 80), [one_object()]
    set_seed(3)
    expected = model(image, labels=labels).loss_dict
    set_seed(3)
    actual = copy.deepcopy(model).to(dtype)(image.to(dtype), labels=labels).loss_dict
    tolerance = {torch.float16: 0.02, torch.bfloat16: 0.1, torch.float64: 1e-4}[dtype]
    assert all(loss.isfinite() for loss in actual.values())
    # Where precision is low, other proposals are sampled.
    for name in expected if dtype == torch.float64 or model_class is not INSTANCE else []:
        torch.testing.assert_close(actual[name].float(), expected[name], rtol=tolerance, atol=tolerance)
    if dtype == torch.bfloat16:
        with torch.autocast("cpu", dtype=dtype):
            loss = model.train()(image, labels=labels).loss
        loss.backward()
        assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# Losses.


def test_retinanets_losses_by_hand():
    """Two objects of one image: focal loss of every anchor but those in between, L1 of the positive ones."""
    model, image = tiny_detector(CrossFormerForObjectDetection), torch.randn(1, 3, 64, 80)
    labels = joined(one_object(), one_object(label=4, box=(0.2, 0.3, 0.2, 0.3)))
    losses = model(image, labels=[labels]).loss_dict
    pyramid = model.pyramid(model.crossformer(image, output_hidden_states=True).hidden_states[1:])
    anchors = torch.cat(model.anchors(pyramid))
    logits, deltas = (torch.cat(levels, dim=1)[0] for levels in zip(*map(model.head, pyramid), strict=True))
    corners = box_convert(labels["boxes"], "cxcywh", "xyxy") * torch.tensor([80.0, 64.0, 80.0, 64.0])
    overlaps = box_iou(anchors, corners)
    class_loss, box_loss, positives = 0.0, 0.0, 0
    for anchor, overlap, logit, delta in zip(anchors, overlaps, logits, deltas, strict=True):
        best = int(overlap.argmax())
        for target in range(2):
            if overlap[target] == overlaps[:, target].max():
                best, overlap = target, torch.ones(2)
        if 0.4 <= overlap[best] < 0.5:
            continue
        wanted = torch.zeros(5)
        if overlap[best] >= 0.5:
            positives += 1
            wanted[labels["class_labels"][best]] = 1
            sides, centre = anchor[2:] - anchor[:2], (anchor[2:] + anchor[:2]) / 2
            box_sides, box_centre = corners[best, 2:] - corners[best, :2], (corners[best, 2:] + corners[best, :2]) / 2
            expected = torch.cat([(box_centre - centre) / sides, (box_sides / sides).log()])
            box_loss += float((delta - expected).detach().abs().sum())
        probability = logit.detach().sigmoid()
        right = torch.where(wanted == 1, probability, 1 - probability)
        weight = torch.where(wanted == 1, 0.25, 0.75)
        class_loss += float((weight * (1 - right) ** 2 * -right.log()).sum())
    assert positives > 2
    assert losses["loss_class"].item() == pytest.approx(class_loss / positives, rel=1e-4)
    assert losses["loss_box"].item() == pytest.approx(box_loss / positives, rel=1e-4)


def test_mask_rcnns_losses_by_hand():
    """With predictions that do not depend on the image: what is sampled is then all that counts."""
    model, image = tiny_detector(INSTANCE), torch.randn(1, 3, 64, 80)
    for layer in (model.proposal_head.objectness, model.proposal_head.box_regressor):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    for layer in (model.box_head.classifier, model.box_head.box_regressor, model.mask_head.classifier):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    losses = model(image, labels=[one_object()]).loss_dict
    nothing_known = torch.tensor(2.0).log()
    assert set(losses) == {"loss_proposal_class", "loss_proposal_box", "loss_class", "loss_box", "loss_mask"}
    torch.testing.assert_close(losses["loss_proposal_class"], nothing_known)
    torch.testing.assert_close(losses["loss_mask"], nothing_known)
    torch.testing.assert_close(losses["loss_class"], torch.tensor(6.0).log())
    # All anchors of this image fit into the samples but not all of the background: 256 samples.
    corners = torch.tensor([[24.0, 16.0, 56.0, 48.0]])
    pyramid = model.pyramid(model.crossformer(image, output_hidden_states=True).hidden_states[1:])
    anchors = torch.cat(model.anchors(pyramid))
    overlaps = box_iou(anchors, corners)[:, 0]
    positive = anchors[(overlaps >= 0.7) | ((overlaps == overlaps.max()) & (overlaps >= 0.3))]
    assert 0 < len(positive) < 128 and (overlaps < 0.3).sum() > 256
    centres, sides = ((positive[:, :2] + positive[:, 2:]) / 2), positive[:, 2:] - positive[:, :2]
    expected = ((torch.tensor([40.0, 32.0]) - centres) / sides).abs().sum() + (32 / sides).log().abs().sum()
    torch.testing.assert_close(losses["loss_proposal_box"], expected / 256)


def test_the_box_head_learns_from_the_objects_own_boxes():
    """Proposals that are nowhere near an object leave it its own box, which needs no correction."""
    target = Target(torch.tensor([[10.0, 10.0, 30.0, 40.0]]), torch.tensor([3]), torch.ones(1, 64, 80))
    far = torch.tensor([[50.0, 50.0, 60.0, 60.0]]).repeat(600, 1)
    regions = sample_regions(far, target)
    assert len(regions.boxes) == 512 and torch.equal(regions.positive, target.boxes)
    assert regions.labels(background=5).tolist() == [3] + [5] * 511
    near = target.boxes.repeat(300, 1)
    regions = sample_regions(torch.cat([near, far]), target)
    assert (len(regions.positive), len(regions.boxes)) == (128, 512)
    assert sample_regions(far[:0], target).labels(5).tolist() == [3]


def test_mask_targets_are_what_is_inside_the_box():
    mask = torch.zeros(2, 64, 80)
    mask[0, 10:38, 10:24] = 1  # the left half of the first box
    mask[1, 24:38, 10:38] = 1  # the lower half of the second
    boxes = torch.tensor([[10.0, 10.0, 38.0, 38.0]]).repeat(2, 1)
    targets = SampledRegions(boxes, Target(boxes, torch.tensor([0, 0]), mask.bool())).mask_targets()
    expected = torch.zeros(2, 28, 28, dtype=torch.bool)
    expected[0, :, :14], expected[1, 14:] = True, True
    assert torch.equal(targets, expected)


@both
def test_every_parameter_gets_a_finite_gradient(model_class):
    model = tiny_detector(model_class).train()
    for seed in range(2):
        set_seed(seed)
        model(torch.randn(2, 3, 64, 80), labels=[one_object(), no_object()]).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    heads = [parameter for name, parameter in model.named_parameters() if not name.startswith("crossformer.")]
    assert all(parameter.grad.any() for parameter in heads)


@both
@pytest.mark.parametrize("with_masks", [True, False])
def test_images_without_objects_have_finite_losses(model_class, with_masks):
    """All of it is background, and every parameter has a gradient, as distributed training asks for."""
    model, empty = tiny_detector(model_class).train(), no_object()
    empty |= {"masks": torch.zeros(0, 64, 80)} if with_masks else {}
    outputs = model(torch.randn(2, 3, 64, 80), labels=[empty, empty])
    outputs.loss.backward()
    assert outputs.loss.isfinite() and outputs.loss > 0
    losses = outputs.loss_dict
    assert all(losses[name] == 0 for name in losses if "box" in name or "mask" in name)
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_losses_of_a_batch_are_averaged_over_its_positives():
    """Also where images of other sizes are computed apart: the sums and the counts add up."""
    model = tiny_detector(CrossFormerForObjectDetection)
    images = [torch.randn(3, 64, 80), torch.randn(3, 32, 48), torch.randn(3, 61, 78)]
    labels = [
        one_object(),
        one_object(32, 48, label=1),
        joined(one_object(61, 78), one_object(61, 78, label=0, box=(0.2, 0.3, 0.2, 0.3))),
    ]
    alone = []
    for image, label in zip(images, labels, strict=True):
        pyramid = model.pyramid(model.crossformer(padded_to_16(image), output_hidden_states=True).hidden_states[1:])
        corners = box_convert(label["boxes"], "cxcywh", "xyxy") * torch.tensor(image.shape[1:]).flip(0).repeat(2)
        positives = int((match_boxes(torch.cat(model.anchors(pyramid)), corners, 0.5, 0.4, 0.0) >= 0).sum())
        alone.append((positives, model(image[None], labels=[label]).loss_dict))
    pixel_values, pixel_mask = padded_batch(images)
    losses = model(pixel_values, pixel_mask=pixel_mask, labels=labels).loss_dict
    for name, loss in losses.items():
        expected = sum(count * each[name] for count, each in alone) / sum(count for count, _ in alone)
        torch.testing.assert_close(loss, expected)


def padded_to_16(image: torch.Tensor) -> torch.Tensor:
    """One image as a batch whose sides are multiples of 16, the coarsest stride."""
    height, width = image.shape[1:]
    return torch.nn.functional.pad(image[None], (0, -width % 16, 0, -height % 16))


@both
def test_an_image_without_objects_counts_as_background(model_class):
    model, image = tiny_detector(model_class), torch.randn(2, 3, 64, 80)
    set_seed(1)
    with_empty = model(image, labels=[one_object(), no_object()])
    set_seed(1)
    outputs = model(image[:1], labels=[one_object()])
    assert with_empty.loss_dict["loss_class"] != outputs.loss_dict["loss_class"]
    assert with_empty.loss_dict["loss_box"] < outputs.loss_dict["loss_box"]


@both
def test_evaluation_with_labels_gives_losses_and_the_same_detections(model_class):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 64, 80)
    outputs = model(image, labels=[one_object()])
    assert outputs.loss.isfinite()
    torch.testing.assert_close(outputs.loss, sum(outputs.loss_dict.values()))
    assert_same(found(outputs), found(detect(model, image)))


def seeded_losses(model, *arguments, **inputs) -> list[float]:
    """Losses, with the same samples whenever the proposals are the same."""
    set_seed(4)
    with torch.no_grad():
        return [loss.item() for loss in model(*arguments, **inputs).loss_dict.values()]


@both
def test_labels_relative_to_the_image_or_to_the_padded_batch(model_class):
    """An image processor gives sizes, boxes and masks of the padded images; without `size` the image's own count."""
    model = tiny_detector(model_class)
    images = [torch.randn(3, 64, 80), torch.randn(3, 50, 48)]
    pixel_values, pixel_mask = padded_batch(images)
    own = [one_object(), one_object(50, 48, box=(0.5, 0.6, 0.5, 0.8))]
    expected = seeded_losses(model, pixel_values, pixel_mask=pixel_mask, labels=own)
    padded = copy.deepcopy(own)
    padded[1]["size"] = torch.tensor([64, 80])
    padded[1]["boxes"] *= torch.tensor([48 / 80, 50 / 64, 48 / 80, 50 / 64])
    padded[1]["masks"] = torch.nn.functional.pad(own[1]["masks"], (0, 32, 0, 14))
    actual = seeded_losses(model, pixel_values, pixel_mask=pixel_mask, labels=padded)
    assert actual == pytest.approx(expected, rel=1e-5)
    for size in (torch.tensor([50, 48]), (50, 48), torch.Size([50, 48])):
        sized = [own[0], {**own[1], "size": size}]
        assert seeded_losses(model, pixel_values, pixel_mask=pixel_mask, labels=sized) == expected


@both
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.float32])
def test_labels_of_other_types(model_class, dtype):
    model, image, label = tiny_detector(model_class), torch.randn(1, 3, 64, 80), one_object()
    expected = seeded_losses(model, image, labels=[label])
    changed = {
        "class_labels": label["class_labels"].int(),
        "boxes": label["boxes"].double(),
        "masks": label["masks"].to(dtype),
    }
    assert seeded_losses(model, image, labels=[changed]) == pytest.approx(expected, rel=1e-5)


@both
def test_gradient_checkpointing_changes_no_gradient(model_class):
    image, labels = torch.randn(1, 3, 64, 80), [one_object()]
    model = tiny_detector(model_class).train()
    checkpointed = copy.deepcopy(model)
    checkpointed.gradient_checkpointing_enable()
    for instance in (model, checkpointed):
        set_seed(1)
        instance(image, labels=labels).loss.backward()
    for (name, plain), other in zip(model.named_parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(other.grad, plain.grad, msg=name)


def scene() -> tuple[torch.Tensor, dict]:
    """Noise with a bright object on the left and a dark one on the right."""
    generator = torch.Generator().manual_seed(0)
    labels = joined(
        one_object(64, 96, label=1, box=(0.25, 0.5, 0.25, 0.5)),
        one_object(64, 96, label=0, box=(0.75, 0.5, 0.25, 0.75)),
    )
    image = 0.1 * torch.randn(3, 64, 96, generator=generator) + 3 * (labels["masks"][0] - labels["masks"][1])
    return image[None], labels


@pytest.mark.parametrize(("model_class", "channels", "rate"), [(DETECTORS[0], 64, 5e-3), (INSTANCE, 16, 3e-3)])
def test_one_image_is_learned(model_class, channels, rate, monkeypatch):
    monkeypatch.setattr(modeling_crossformer_detection, "BOX_SAMPLES", 64)  # for speed
    monkeypatch.setattr(modeling_crossformer_detection, "BOX_FEATURES", 1024)
    set_seed(0)
    settings = {"depths": [1, 1, 1], "use_cooling_layer": False, "fpn_hidden_size": channels, "num_labels": 2}
    model = model_class(tiny_config(**settings, drop_path_rate=0.0)).train()
    image, labels = scene()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=40)
    losses = []
    for _ in range(40):
        loss = model(image, labels=[labels]).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    outputs = detect(model.eval(), image)
    detections = found(outputs)
    best = torch.stack([(detections["labels"] == label).nonzero()[0, 0] for label in labels["class_labels"]])
    assert (detections["scores"][best] > 0.3).all()
    expected = box_convert(labels["boxes"], "cxcywh", "xyxy")
    assert (box_iou(box_convert(detections["boxes"][best], "cxcywh", "xyxy"), expected).diagonal() > 0.7).all()
    if model_class is INSTANCE:
        (segments,) = CrossFormerImageProcessor().post_process_instance_segmentation(
            outputs, threshold=0.0, target_sizes=[(64, 96)], return_binary_maps=True
        )
        for mask, wanted in zip(segments["segmentation"][best], labels["masks"].bool(), strict=True):
            assert (mask & wanted).sum() / (mask | wanted).sum() > 0.7


# Bad input.

BAD_LABELS = {
    "another class": ({"class_labels": torch.tensor([2, 5])}, r"`labels\[1\]\['class_labels'\]\[1\]` is 5.*5 classes"),
    "negative class": ({"class_labels": torch.tensor([-1, 5])}, r"`labels\[1\]\['class_labels'\]\[0\]` is -1"),
    "too few boxes": ({"boxes": torch.rand(1, 4)}, r"`labels\[1\]\['boxes'\]` has the shape \(1, 4\).*2 `class_lab"),
    "no box shape": ({"boxes": torch.zeros(0)}, r"`labels\[1\]\['boxes'\]` has the shape \(0,\)"),
    "no width": (
        {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.5, 0.5, 0.0, 0.2]])},
        r"`labels\[1\]\['boxes'\]\[1\]",
    ),
    "no height": (
        {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.0], [0.5, 0.5, 0.1, 0.2]])},
        r"`labels\[1\]\['boxes'\]\[0\]",
    ),
    "negative": (
        {"boxes": torch.tensor([[0.5, 0.5, -0.2, 0.2]] * 2)},
        r"`labels\[1\]\['boxes'\]\[0\]` is \[0.5, 0.5, -",
    ),
    "not a number": ({"boxes": torch.tensor([[0.5, 0.5, 0.2, float("nan")]] * 2)}, r"`labels\[1\]\['boxes'\]\[0\]`"),
    "infinite": ({"boxes": torch.tensor([[0.5, 0.5, 0.2, float("inf")]] * 2)}, r"`labels\[1\]\['boxes'\]\[0\]`"),
    "outside": (
        {"boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2], [1.3, 0.5, 0.2, 0.2]])},
        r"`labels\[1\]\['boxes'\]\[1\]` is .*inside it; correct or remove",
    ),
    "in pixels": ({"boxes": torch.tensor([[40.0, 32.0, 10.0, 12.0]] * 2)}, r"`labels\[1\]\['boxes'\]\[0\]`.*relative"),
    "smaller masks": ({"masks": torch.ones(2, 32, 40)}, r"`labels\[1\]\['masks'\]` has .*\(2, 32, 40\).*: \(64, 80\)"),
    "too few masks": ({"masks": torch.ones(1, 64, 80)}, r"`labels\[1\]\['masks'\]` has the shape.*2 `class_labels`"),
    "another size": ({"size": torch.tensor([128, 160])}, r"`labels\[1\]\['size'\]` is \(128, 160\).*\(64, 80\)"),
    "no boxes": ({"boxes": None}, r"`labels\[1\]` has no `boxes`"),
    "no classes": ({"class_labels": None}, r"`labels\[1\]` has no `class_labels`"),
}


@both
@pytest.mark.parametrize("kind", BAD_LABELS)
def test_a_bad_annotation_is_named(model_class, kind):
    change, message = BAD_LABELS[kind]
    good = joined(one_object(), one_object(label=4, box=(0.2, 0.3, 0.2, 0.3)))
    with pytest.raises(ValueError, match=message):
        tiny_detector(model_class)(torch.randn(2, 3, 64, 80), labels=[good, {**good, **change}])


def test_missing_masks_are_named():
    image, label = torch.randn(2, 3, 64, 80), one_object()
    without = {name: value for name, value in label.items() if name != "masks"}
    with pytest.raises(ValueError, match=r"`labels\[1\]` has no `masks`"):
        tiny_detector(INSTANCE)(image, labels=[label, without])
    assert tiny_detector(CrossFormerForObjectDetection)(image, labels=[label, without]).loss.isfinite()


@both
def test_another_number_of_labels_than_images_is_refused(model_class):
    with pytest.raises(ValueError, match="`labels` are of 1 images, but there are 2"):
        tiny_detector(model_class)(torch.randn(2, 3, 64, 80), labels=[one_object()])


@both
def test_what_is_outside_the_image_is_cut_off(model_class):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 64, 80)
    outside = {**one_object(), "boxes": torch.tensor([[0.0, 0.5, 0.5, 1.5]])}
    inside = {**one_object(), "boxes": torch.tensor([[0.125, 0.5, 0.25, 1.0]])}
    assert seeded_losses(model, image, labels=[outside]) == seeded_losses(model, image, labels=[inside])


# Weights.


@both
def test_save_and_load(model_class, tmp_path):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 61, 64)
    model.save_pretrained(tmp_path)
    auto = AutoModelForInstanceSegmentation if model_class is INSTANCE else AutoModelForObjectDetection
    loaded, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is model_class
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert_same(found(detect(loaded, image)), found(detect(model, image)), tolerance=0)


def test_before_training_every_class_is_as_rare_as_the_prior():
    set_seed(0)
    model = CrossFormerForObjectDetection(tiny_config(fpn_hidden_size=64, score_threshold=0.0)).eval()
    scores = found(detect(model, torch.randn(1, 3, 64, 80)))["scores"]
    assert len(scores) == 100 and (scores > 0.008).all() and (scores < 0.0125).all()


INITIAL_STD = {
    CrossFormerForObjectDetection: {"head.": 0.01},
    INSTANCE: {
        "proposal_head.": 0.01,
        "box_head.fc1.": (2 / (16 * 49 + 64)) ** 0.5,
        "box_head.fc2.": 64**-0.5,
        "box_head.classifier.": 0.01,
        "box_head.box_regressor.": 0.001,
        "mask_head.convolutions.": (2 / (16 * 9)) ** 0.5,
        "mask_head.upsampling.": (2 / (16 * 4)) ** 0.5,
        "mask_head.classifier.": 0.01,
    },
}


@both
@pytest.mark.parametrize("source_class", [None, CrossFormerBackbone])
def test_initial_weights_are_mmdetections(model_class, source_class, tmp_path):
    """Whether the model is made anew or the heads are what a checkpoint lacks."""
    set_seed(0)
    config = tiny_config(fpn_hidden_size=16, num_labels=80)
    model = model_class(config)
    if source_class is not None:
        source_class(config).save_pretrained(tmp_path)
        model = model_class.from_pretrained(tmp_path, num_labels=80, fpn_hidden_size=16)
    for prefix, std in INITIAL_STD[model_class].items():
        parts = {name: p for name, p in model.named_parameters() if name.startswith(prefix)}
        assert parts
        for name, parameter in parts.items():
            if name.endswith("weight"):
                assert parameter.std().item() == pytest.approx(std, rel=5 * parameter.numel() ** -0.5), name
            else:
                rare = -torch.tensor(99.0).log() if name == "head.classifier.bias" else torch.tensor(0.0)
                assert torch.equal(parameter, rare.expand_as(parameter)), name


SOURCES = [CrossFormerForImageClassification, CrossFormerBackbone, CrossFormerForSemanticSegmentation, *DETECTORS]


@both
@pytest.mark.parametrize("source_class", SOURCES)
def test_a_detector_takes_another_models_weights_and_says_what_is_new(model_class, source_class, tmp_path):
    """The pyramids of RetinaNet and of the others differ in the number of levels, so weights of those do not fit."""
    set_seed(1)
    settings = {"fpn_hidden_size": 16, "decoder_hidden_size": 8}
    source = source_class(tiny_config(**settings))
    source.save_pretrained(tmp_path)
    model, info = model_class.from_pretrained(tmp_path, output_loading_info=True, ignore_mismatched_sizes=True)
    weights = getattr(source, "crossformer", source).state_dict()
    for name, weight in model.crossformer.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    heads = {name for name in model.state_dict() if not name.startswith("crossformer.")}
    taken = {name for name in heads if name in source.state_dict()}
    mismatched = {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]}
    assert set(info["missing_keys"]) - mismatched == heads - taken
    assert all(name.startswith("neck.") for name in mismatched)
    assert bool(mismatched) == (CrossFormerForObjectDetection in (model_class, source_class) and bool(taken)
                                and model_class is not source_class)  # fmt: skip
    for name in taken - mismatched:
        assert torch.equal(model.state_dict()[name], source.state_dict()[name]), name


@both
def test_a_backbone_takes_a_detectors_weights(model_class, tmp_path):
    model, image = tiny_detector(model_class), torch.randn(1, 3, 64, 80)
    model.save_pretrained(tmp_path)
    backbone, info = CrossFormerBackbone.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    expected = model(image, output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(backbone(image).feature_maps[0], expected)


# The Trainer.


class Scenes(torch.utils.data.Dataset):
    """Images of three sizes with COCO annotations of a bright rectangle; one has none."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        height, width = [(60, 80), (50, 50), (64, 40)][index % 3]
        pixels = torch.randint(0, 60, (3, height, width), generator=generator, dtype=torch.uint8)
        annotations = []
        if index != 2:
            pixels[:, 10:40, 8:30] += 190
            outline = [8, 10, 30, 10, 30, 40, 8, 40]
            annotations = [{"image_id": index, "category_id": index % 2, "bbox": [8, 10, 22, 30], "area": 660}]
            annotations[0] |= {"iscrowd": 0, "segmentation": [outline]}
        return pixels, {"image_id": index, "annotations": annotations}


def collate(items: list) -> dict:
    """What a user writes: the image processor takes images and annotations as they are."""
    images, annotations = zip(*items, strict=True)
    processor = CrossFormerImageProcessor(size={"shortest_edge": 48, "longest_edge": 96})
    return dict(
        processor(list(images), annotations=list(annotations), return_segmentation_masks=True, return_tensors="pt")
    )


@pytest.mark.parametrize(
    ("model_class", "settings"),
    [(DETECTORS[0], {"bf16": True, "gradient_checkpointing": True}), (DETECTORS[0], {}), (INSTANCE, {})],
)
def test_the_trainer_trains_and_evaluates(model_class, settings, tmp_path):
    """Predictions are kept batch by batch, since labels are as many as there are objects."""
    set_seed(0)
    config = {"depths": [1, 1, 1], "use_cooling_layer": False, "fpn_hidden_size": 16, "num_labels": 2}
    model = model_class(tiny_config(**config, max_detections=10, drop_path_rate=0.0))
    seen = []

    def metrics(prediction):
        seen.extend(zip(prediction.predictions, prediction.label_ids, strict=True))
        return {"batches": len(prediction.predictions)}

    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        max_steps=6,
        learning_rate=5e-3,
        logging_steps=1,
        remove_unused_columns=False,
        eval_do_concat_batches=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
        seed=0,
        **settings,
    )
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=Scenes(),
        eval_dataset=Scenes(),
        data_collator=collate,
        compute_metrics=metrics,
    )
    trainer.train()
    evaluation = trainer.evaluate()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 6 and evaluation["eval_loss"] < sum(losses[:2]) / 2
    assert evaluation["eval_batches"] == 2
    for predictions, labels in seen:
        logits, boxes = predictions[1:3]  # behind the losses
        assert logits.shape == (2, 10, 2) and boxes.shape == (2, 10, 4)
        assert [set(label) >= {"boxes", "class_labels", "size", "orig_size"} for label in labels] == [True] * 2
