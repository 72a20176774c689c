"""Boxes for the detectors: anchors, encoding, matching, selection and masks, as mmdetection 2.x computes them.

Boxes are (x1, y1, x2, y2) in pixels. What torchvision has, it does; what is here differs from torchvision's, each time
for the reason given. Nothing here has weights or state.
"""

import math

import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, remove_small_boxes, roi_align


# Widths and heights change by at most this factor, in either direction.
LARGEST_SCALING = math.log(1000 / 16)


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 at least: coordinates do not fit in half precision."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def base_anchors(stride: int, scales: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
    """Anchors (3 * scales, 4) around the origin, for the aspect ratios 0.5, 1 and 2; torchvision rounds them."""
    # In float32 whatever the model's precision, as in mmdetection: trained weights know these anchors.
    ratios = torch.tensor([0.5, 1.0, 2.0], device=like.device).sqrt()
    sizes = torch.tensor(scales, device=like.device)
    widths = (stride * (1 / ratios)[:, None] * sizes).flatten()
    heights = (stride * ratios[:, None] * sizes).flatten()
    return torch.stack([-widths, -heights, widths, heights], dim=1).to(like.dtype) / 2


def grid_anchors(feature_map: torch.Tensor, stride: int, scales: tuple[float, ...]) -> torch.Tensor:
    """Anchors (height * width * 3 * scales, 4) of the tokens of (batch, channels, height, width), in pixels.

    torchvision derives the stride from the sizes of image and map, which is wrong where the map was rounded up.
    """
    height, width = feature_map.shape[-2:]
    like = full_precision(feature_map[:0])
    rows = torch.arange(height, dtype=like.dtype, device=like.device) * stride
    columns = torch.arange(width, dtype=like.dtype, device=like.device) * stride
    y, x = (centre.flatten() for centre in torch.meshgrid(rows, columns, indexing="ij"))
    centres = torch.stack([x, y, x, y], dim=1)
    return (centres[:, None] + base_anchors(stride, scales, like)).flatten(0, 1)


def decode(deltas: torch.Tensor, references: torch.Tensor, size: tuple[int, int], coder: BoxCoder) -> torch.Tensor:
    """Boxes (boxes, 4), inside an image of `size` (height, width), that `deltas` make of as many references."""
    shifts, scalings = deltas.split(2, dim=1)
    # torchvision limits enlargements only.
    scalings = scalings.clamp(min=-LARGEST_SCALING * coder.weights[2])
    return clip_boxes_to_image(coder.decode_single(torch.cat([shifts, scalings], dim=1), references), size)


def flatten_level(predictions: torch.Tensor, values: int) -> torch.Tensor:
    """(batch, anchors * values, height, width) to (batch, height * width * anchors, values), the order of anchors."""
    return full_precision(predictions).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, values))


def select_candidates(scores: torch.Tensor, threshold: float, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores over a threshold, at most `most`, highest first, and their indices in a vector of scores."""
    indices = (scores > threshold).nonzero().squeeze(1)
    kept, order = scores[indices].sort(descending=True)
    return kept[:most], indices[order[:most]]


def suppress(
    boxes: torch.Tensor, scores: torch.Tensor, groups: torch.Tensor, threshold: float, most: int
) -> torch.Tensor:
    """Indices of the boxes that stay after non-maximum suppression within each group, highest scores first."""
    with_area = remove_small_boxes(boxes, min_size=torch.finfo(boxes.dtype).tiny)
    kept = batched_nms(boxes[with_area], scores[with_area], groups[with_area], threshold)
    return with_area[kept[:most]]


def match_boxes(
    references: torch.Tensor, targets: torch.Tensor, foreground: float, background: float, lowest: float
) -> torch.Tensor:
    """Index of each reference's target, -1 for background and -2 for neither.

    Every target keeps the references that overlap it most, if they do by `lowest` at least, even those that overlap
    another target more; torchvision leaves these to the other. Of several such targets the last has the reference.
    """
    overlaps = box_iou(targets, references)
    if overlaps.numel() == 0:
        return torch.full((len(references),), -1, device=references.device)
    matches = Matcher(foreground, background)(overlaps)
    highest = overlaps.amax(dim=1, keepdim=True)
    keeps = (overlaps == highest) & (highest >= max(lowest, torch.finfo(overlaps.dtype).tiny))
    keepers, kept = keeps.nonzero(as_tuple=True)
    return matches.scatter_reduce(0, kept, keepers, "amax", include_self=False)


def sample_matches(matches: torch.Tensor, number: int, positive_fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Random indices of at most `number` references: those with a target, and those of the background."""
    labels = (matches >= 0).to(torch.int8) - (matches == -2).to(torch.int8)
    positive, negative = BalancedPositiveNegativeSampler(number, positive_fraction)([labels])
    return positive[0].nonzero().squeeze(1), negative[0].nonzero().squeeze(1)


def pool_regions(
    pyramid: list[torch.Tensor], strides: list[int], boxes: list[torch.Tensor], size: int
) -> torch.Tensor:
    """Features (boxes, channels, size, size) of each image's boxes, from the level that suits a box's size.

    Level i has boxes of about 56 * 2**i pixels. torchvision's `MultiScaleRoIAlign` has no half pixel offset.
    """
    regions = torch.cat([F.pad(image_boxes, (1, 0), value=index) for index, image_boxes in enumerate(boxes)])
    areas = (regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])
    levels = (areas.sqrt() / 56 + 1e-6).log2().floor().clamp(0, len(pyramid) - 1)
    pooled, order = [], []
    for level, (feature_map, stride) in enumerate(zip(pyramid, strides, strict=True)):
        chosen = (levels == level).nonzero().squeeze(1)
        order.append(chosen)
        pooled.append(roi_align(full_precision(feature_map), regions[chosen], size, 1 / stride, aligned=True))
    return torch.cat(pooled)[torch.cat(order).argsort()].to(pyramid[0].dtype)


def paste_masks(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks (masks, height, width) of probabilities, of the insides of boxes, to masks of an image of `size`.

    Each is interpolated at the centres of the image's pixels; torchvision rounds boxes to whole pixels first.
    """
    height, width = size
    x1, y1, x2, y2 = boxes[:, :, None].unbind(dim=1)
    rows = torch.arange(height, dtype=boxes.dtype, device=boxes.device) + 0.5
    columns = torch.arange(width, dtype=boxes.dtype, device=boxes.device) + 0.5
    y = (rows - y1) / (y2 - y1) * 2 - 1
    x = (columns - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=3)
    return F.grid_sample(masks[:, None], grid, align_corners=False)[:, 0]
