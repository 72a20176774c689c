"""Boxes by hand: anchors, encoding, matching, sampling, pooling, suppression and masks."""

import math

import pytest
import torch
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_iou, roi_align

from crossformer_hf.boxes_crossformer import (
    LARGEST_SCALING,
    base_anchors,
    decode,
    flatten_level,
    full_precision,
    grid_anchors,
    match_boxes,
    paste_masks,
    pool_regions,
    sample_matches,
    select_candidates,
    suppress,
)


CODERS = [BoxCoder((1.0, 1.0, 1.0, 1.0)), BoxCoder((10.0, 10.0, 5.0, 5.0))]
BORDERLESS = (10**6, 10**6)


def random_boxes(number: int, side: float = 100.0) -> torch.Tensor:
    """Boxes (number, 4) with sides from 1 to 41, in the middle of an image where none is cut."""
    corners = 500 + torch.rand(number, 2, dtype=torch.float64) * side
    return torch.cat([corners, corners + 1 + 40 * torch.rand(number, 2, dtype=torch.float64)], dim=1)


def test_base_anchors_are_mmdetections():
    """Height over width is 0.5, 1 and 2, the area that of the square; nothing is rounded."""
    half = 8 * 4 / math.sqrt(2) / 2
    expected = torch.tensor(
        [[-2 * half, -half, 2 * half, half], [-16.0, -16.0, 16.0, 16.0], [-half, -2 * half, half, 2 * half]]
    )
    torch.testing.assert_close(base_anchors(4, (8.0,), torch.zeros(0)), expected)


def test_scales_follow_each_other_within_a_ratio():
    anchors = base_anchors(8, (4.0, 5.0), torch.zeros(0, dtype=torch.float64))
    sides = anchors[:, 2:] - anchors[:, :2]
    assert anchors.dtype == torch.float64
    torch.testing.assert_close(sides.prod(dim=1).sqrt(), torch.tensor([32.0, 40.0] * 3).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        sides[:, 1] / sides[:, 0], torch.tensor([0.5, 0.5, 1, 1, 2, 2]).double(), rtol=1e-6, atol=0
    )


def test_anchors_come_in_the_order_of_a_flattened_convolution():
    """A convolution that writes each token's column, row and anchor; both are flattened alike."""
    height, width, stride, scales = 3, 5, 8, (4.0, 5.0)
    anchors, values = 3 * len(scales), 3
    positions = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")[::-1])
    convolution = nn.Conv2d(2, anchors * values, kernel_size=1)
    nn.init.zeros_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    for anchor in range(anchors):
        convolution.weight.data[anchor * values, 0] = convolution.weight.data[anchor * values + 1, 1] = 1
        convolution.bias.data[anchor * values + 2] = anchor
    written = flatten_level(convolution(positions[None].float()), values)[0]
    boxes = grid_anchors(torch.zeros(1, 7, height, width), stride, scales)
    assert written.shape == (height * width * anchors, values)
    torch.testing.assert_close((boxes[:, :2] + boxes[:, 2:]) / 2, written[:, :2] * stride)
    expected = base_anchors(stride, scales, boxes)[written[:, 2].round().long()]
    torch.testing.assert_close(boxes - expected, (written[:, :2] * stride).repeat(1, 2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_coordinates_are_never_half_precision(dtype):
    half = torch.zeros(1, 36, 2, 3, dtype=dtype)
    assert grid_anchors(half, 8, (4.0,)).dtype == flatten_level(half, 4).dtype == torch.float32
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("coder", CODERS)
def test_decoding_inverts_encoding(coder):
    torch.manual_seed(0)
    boxes, references = random_boxes(20), random_boxes(20)
    deltas = coder.encode_single(boxes, references)
    torch.testing.assert_close(decode(deltas, references, BORDERLESS, coder), boxes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("sign", [1, -1])
def test_scaling_is_limited_both_ways(coder, sign):
    """Only the limit of enlargements is torchvision's."""
    reference = torch.tensor([[400.0, 400.0, 500.0, 420.0]], dtype=torch.float64)
    deltas = torch.tensor([[0.0, 0.0, 1e3, 1e3]], dtype=torch.float64) * sign
    box = decode(deltas, reference + 10000, BORDERLESS, coder)
    assert LARGEST_SCALING == math.log(62.5)
    torch.testing.assert_close(
        box[0, 2:] - box[0, :2], torch.tensor([100.0, 20.0]).double() * 62.5**sign, rtol=1e-9, atol=1e-9
    )


def test_decoded_boxes_end_with_the_image():
    references = torch.tensor([[-8.0, -4.0, 30.0, 50.0], [60.0, 60.0, 70.0, 80.0]])
    boxes = decode(torch.zeros(2, 4), references, (40, 20), CODERS[0])
    assert boxes.tolist() == [[0, 0, 20, 40], [20, 40, 20, 40]]


def boxes_of_iou(*overlaps: float) -> torch.Tensor:
    """Boxes in the lower part of a 10 x 100 box at the origin; each has the given IoU with it."""
    return torch.tensor([[0.0, 0.0, 10.0, 100 * overlap] for overlap in overlaps])


TALL = torch.tensor([[0.0, 0.0, 10.0, 100.0]])
FAR = torch.tensor([[500.0, 500.0, 510.0, 510.0]])


def match(references, targets, lowest=0.0):
    return match_boxes(references, targets, foreground=0.5, background=0.4, lowest=lowest).tolist()


def test_matching_by_overlap():
    """0.5 is foreground and 0.4 neither."""
    references = torch.cat([boxes_of_iou(0.9, 0.5, 0.45, 0.4, 0.35), FAR])
    assert match(references, TALL) == [0, 0, -2, -2, -1, -1]


def test_a_reference_gets_the_target_it_overlaps_most():
    targets = torch.cat([FAR, TALL, boxes_of_iou(0.8)])
    assert match(torch.cat([boxes_of_iou(1.0, 0.78, 0.95)]), targets) == [1, 2, 1]


def test_a_target_keeps_its_best_references_whatever_the_overlap():
    references = torch.cat([boxes_of_iou(0.1, 0.3, 0.3, 0.05), FAR])
    assert match(references, TALL) == [-1, 0, 0, -1, -1]
    assert match(references, TALL, lowest=0.25) == [-1, 0, 0, -1, -1]
    assert match(references, TALL, lowest=0.3) == match(references, TALL)
    assert match(references, TALL, lowest=0.31) == [-1] * 5


def test_a_target_keeps_its_best_reference_though_that_overlaps_another_more():
    """With torchvision alone it would be left without any: torchvision gives the reference to the other target."""
    targets = torch.cat([TALL, boxes_of_iou(0.6)])
    assert match(boxes_of_iou(0.9, 0.85, 0.95), targets) == [0, 1, 0]
    assert match(boxes_of_iou(0.9, 0.85, 0.95), targets.flip(0)) == [1, 0, 1]


def test_of_several_keepers_the_last_has_the_reference():
    targets = torch.cat([boxes_of_iou(0.6), TALL])
    assert match(boxes_of_iou(0.9), targets) == [1]
    assert match(boxes_of_iou(0.9), targets.flip(0)) == [1]


def test_a_target_that_nothing_overlaps_keeps_nothing():
    """In mmdetection it would have every reference of overlap 0."""
    assert match(boxes_of_iou(0.9, 0.1), torch.cat([TALL, FAR])) == [0, -1]


def test_without_targets_or_references():
    assert match(boxes_of_iou(0.9, 0.1), torch.zeros(0, 4)) == [-1, -1]
    assert match(torch.zeros(0, 4), TALL) == []
    assert match(torch.zeros(0, 4), torch.zeros(0, 4)) == []


def reference_match(references, targets, foreground, background, lowest) -> torch.Tensor:
    """The `MaxIoUAssigner` of mmdetection, step by step."""
    overlaps = box_iou(targets, references)
    highest, best = overlaps.max(dim=0)
    matches = torch.full((len(references),), -2)
    matches[highest < background] = -1
    matches[highest >= foreground] = best[highest >= foreground]
    for index, overlap in enumerate(overlaps.amax(dim=1)):
        if overlap >= lowest and overlap > 0:
            matches[overlaps[index] == overlap] = index
    return matches


@pytest.mark.parametrize("thresholds", [(0.5, 0.4, 0.0), (0.7, 0.3, 0.3), (0.5, 0.5, 0.5)])
@pytest.mark.parametrize("seed", range(3))
def test_matching_is_mmdetections(thresholds, seed):
    torch.manual_seed(seed)
    references, targets = random_boxes(300, side=60), random_boxes(20, side=60)
    actual = match_boxes(references, targets, *thresholds)
    assert torch.equal(actual, reference_match(references, targets, *thresholds))


@pytest.mark.parametrize(
    ("positives", "negatives", "expected"),
    [(300, 1000, (128, 128)), (10, 1000, (10, 246)), (0, 1000, (0, 256)), (300, 20, (128, 20)), (0, 0, (0, 0))],
)
def test_sampling_fills_up_with_background(positives, negatives, expected):
    matches = torch.tensor([3] * positives + [-1] * negatives + [-2] * 50)[torch.randperm(positives + negatives + 50)]
    positive, negative = sample_matches(matches, 256, 0.5)
    assert (len(positive), len(negative)) == expected
    assert (matches[positive] == 3).all() and (matches[negative] == -1).all()
    assert len(positive.unique()) == len(positive) and len(negative.unique()) == len(negative)


def test_samples_are_random():
    matches = torch.tensor([0] * 1000 + [-1] * 1000)
    first, second = (torch.cat(sample_matches(matches, 256, 0.5)).tolist() for _ in range(2))
    assert first != second


def level_maps(channels: int = 2) -> list[torch.Tensor]:
    """Four maps of two 1024 x 1024 images, the values of level i near 100 * i."""
    return [100 * level + torch.rand(2, channels, 256 // 2**level, 256 // 2**level) for level in range(4)]


STRIDES = [4, 8, 16, 32]


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (56, 0), (111.9, 0), (112, 1), (223.9, 1), (224, 2), (447.9, 2), (448, 3), (1000, 3)]
)
def test_the_size_of_a_box_says_its_level(side, level):
    boxes = torch.tensor([[8.0, 8.0, 8.0 + side, 8.0 + side], [8.0, 8.0, 8.0 + side / 2, 8.0 + side * 2]])
    pooled = pool_regions(level_maps(), STRIDES, [boxes[:1], boxes[1:].clamp(max=1016)], 7)
    assert (pooled[0] / 100).floor().unique().tolist() == [level]
    if side <= 500:  # not cut: the same area, so the same level
        assert (pooled[1] / 100).floor().unique().tolist() == [level]


def test_pooling_is_roi_align_on_that_level_in_the_boxes_order():
    maps = level_maps()
    first = torch.tensor([[0.0, 0.0, 500.0, 500.0], [10.0, 20.0, 31.5, 40.0], [3.0, 9.0, 130.0, 150.0]])
    second = torch.tensor([[50.0, 20.0, 90.0, 44.0], [100.0, 100.0, 400.0, 350.0]])
    pooled = pool_regions(maps, STRIDES, [first, second], 7)
    expected = [(0, 3, first[0]), (0, 0, first[1]), (0, 1, first[2]), (1, 0, second[0]), (1, 2, second[1])]
    for features, (image, level, box) in zip(pooled, expected, strict=True):
        aligned = roi_align(maps[level][image : image + 1], [box[None]], 7, 1 / STRIDES[level], aligned=True)
        torch.testing.assert_close(features, aligned[0])


@pytest.mark.parametrize("counts", [(0, 0), (0, 2), (2, 0)])
def test_pooling_of_images_without_boxes(counts):
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0]]).repeat(count, 1) for count in counts]
    maps = [feature_map.requires_grad_() for feature_map in level_maps()]
    pooled = pool_regions(maps, STRIDES, boxes, 7)
    assert pooled.shape == (sum(counts), 2, 7, 7)
    pooled.sum().backward()
    assert bool(maps[0].grad.any()) == any(counts)


def test_pooling_keeps_the_precision_of_the_maps():
    maps = [feature_map.half() for feature_map in level_maps()]
    boxes = [torch.tensor([[8.0, 8.0, 40.0, 40.0]])] * 2
    pooled = pool_regions(maps, STRIDES, boxes, 7)
    assert pooled.dtype == torch.float16
    expected = pool_regions([feature_map.float() for feature_map in maps], STRIDES, boxes, 7)
    assert torch.equal(pooled, expected.half())


def test_candidates_are_over_the_threshold_and_sorted():
    scores, indices = select_candidates(torch.tensor([0.3, 0.05, 0.9, 0.06, 0.5]), 0.05, 3)
    assert indices.tolist() == [2, 4, 0]
    assert scores.tolist() == pytest.approx([0.9, 0.5, 0.3])
    assert select_candidates(torch.tensor([0.05]), 0.05, 3)[0].shape == (0,)


def test_suppression_within_each_class():
    boxes = torch.cat([boxes_of_iou(1.0, 0.9, 0.4, 0.9), FAR])
    scores = torch.tensor([0.5, 0.8, 0.7, 0.6, 0.9])
    classes = torch.tensor([0, 0, 0, 1, 0])
    assert suppress(boxes, scores, classes, 0.5, 10).tolist() == [4, 1, 2, 3]
    assert suppress(boxes, scores, classes, 0.5, 2).tolist() == [4, 1]
    assert suppress(boxes, scores, torch.zeros(5), 0.95, 10).tolist() == [4, 1, 2, 0]
    assert suppress(boxes[:0], scores[:0], classes[:0], 0.5, 10).tolist() == []


def test_an_overlap_equal_to_the_threshold_stays():
    boxes, scores = torch.cat([TALL, boxes_of_iou(0.5)]), torch.tensor([0.5, 0.4])
    assert suppress(boxes, scores, torch.zeros(2), 0.5, 10).tolist() == [0, 1]
    assert suppress(boxes, scores, torch.zeros(2), 0.49, 10).tolist() == [0]


def test_boxes_without_area_go():
    boxes = torch.tensor([[0.0, 0.0, 0.0, 9.0], [0.0, 5.0, 7.0, 5.0], [1.0, 1.0, 1.5, 1.5], [3.0, 3.0, 3.0, 3.0]])
    assert suppress(boxes, torch.tensor([0.9, 0.8, 0.1, 0.7]), torch.zeros(4), 0.5, 10).tolist() == [2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_of_ones_fills_the_pixels_whose_centre_is_in_the_box(dtype):
    """Where two edges meet, interpolation rounds a corner off, by less than half of one of the mask's 28 cells."""
    torch.manual_seed(0)
    corners = torch.rand(30, 2, dtype=dtype) * 40 - 6
    boxes = torch.cat([corners, corners + 0.6 + 30 * torch.rand(30, 2, dtype=dtype)], dim=1)
    pasted = paste_masks(torch.ones(30, 28, 28, dtype=dtype), boxes, (31, 45)) >= 0.5
    y, x = torch.arange(31, dtype=dtype) + 0.5, torch.arange(45, dtype=dtype) + 0.5
    rows = (y >= boxes[:, 1:2]) & (y <= boxes[:, 3:])
    columns = (x >= boxes[:, :1]) & (x <= boxes[:, 2:3])
    inside = rows[:, :, None] & columns[:, None]
    half_cells = (boxes[:, 2:] - boxes[:, :2]) / 56
    near_left_or_right = torch.minimum((x - boxes[:, :1]).abs(), (x - boxes[:, 2:3]).abs()) < half_cells[:, :1]
    near_top_or_bottom = torch.minimum((y - boxes[:, 1:2]).abs(), (y - boxes[:, 3:]).abs()) < half_cells[:, 1:]
    corner = near_top_or_bottom[:, :, None] & near_left_or_right[:, None]
    assert inside.sum() > 4000 and (inside & corner).sum() < 50
    assert torch.equal(pasted & ~corner, inside & ~corner)
    assert not (pasted & ~inside).any()


def test_a_mask_as_large_as_its_box_is_copied():
    mask = torch.rand(1, 28, 28)
    pasted = paste_masks(mask, torch.tensor([[3.0, 5.0, 31.0, 33.0]]), (40, 35))
    torch.testing.assert_close(pasted[:, 5:33, 3:31], mask)
    outside = pasted.clone()
    outside[:, 5:33, 3:31] = 0
    assert outside.abs().max() < 1e-5


def test_each_mask_goes_to_its_own_box():
    masks = torch.stack([torch.full((28, 28), value) for value in (0.25, 0.75)])
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [10.0, 5.0, 30.0, 20.0]])
    pasted = paste_masks(masks, boxes, (20, 30))
    assert pasted[0, 5, 5] == 0.25 and pasted[1, 12, 20] == 0.75
    assert torch.equal(pasted.flip(0), paste_masks(masks.flip(0), boxes.flip(0), (20, 30)))


@pytest.mark.parametrize(
    "box", [[4.0, 4.0, 4.0, 9.0], [4.5, 4.5, 4.5, 4.5], [4.0, 7.0, 9.0, 7.0], [50.0, 50.0, 60.0, 60.0]]
)
def test_a_box_without_a_pixel_gives_an_empty_mask(box):
    pasted = paste_masks(torch.ones(1, 28, 28), torch.tensor([box]), (20, 20))
    assert pasted.shape == (1, 20, 20)
    assert not (pasted >= 0.5).any()


def test_no_masks():
    assert paste_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), (7, 9)).shape == (0, 7, 9)
