"""RetinaNet and Mask R-CNN on CrossFormer, which compute what mmdetection 2.x computes with the authors' checkpoints.

Papers: arXiv 1708.02002 (RetinaNet), 1703.06870 (Mask R-CNN) and 1612.03144 (feature pyramid).

An image's result depends on that image alone: images of one batch are computed together only where they are padded to
the same size, a multiple of the coarsest stride.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import box_convert, clip_boxes_to_image, roi_align, sigmoid_focal_loss
from transformers import initialization as init
from transformers.backbone_utils import filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple

from .boxes_crossformer import (
    decode,
    flatten_level,
    full_precision,
    grid_anchors,
    match_boxes,
    pool_regions,
    sample_matches,
    select_candidates,
    suppress,
)
from .configuration_crossformer import CrossFormerConfig
from .modeling_crossformer import (
    CrossFormerBackbone,
    CrossFormerFeaturePyramid,
    CrossFormerPreTrainedModel,
    pad_feature_map,
)


CANDIDATES_PER_LEVEL = 1000
TRAINING_PROPOSAL_CANDIDATES = 2000
# Anchor sizes, as multiples of a level's stride.
RETINANET_SCALES = tuple(4 * 2 ** (octave / 3) for octave in range(3))
PROPOSAL_SCALES = (8.0,)
RATIOS = 3
# Before training a class is as likely as this, lest the many background anchors drown the rest.
PRIOR = 0.01

PROPOSALS = 1000
PROPOSAL_NMS_THRESHOLD = 0.7
PROPOSAL_SAMPLES = 256
BOX_SAMPLES = 512
BOX_FEATURES = 1024
BOX_POOLING, MASK_POOLING, MASK_SIZE = 7, 14, 28

ANCHOR_CODER = BoxCoder((1.0, 1.0, 1.0, 1.0))
# The inverse of mmdetection's standard deviations.
BOX_CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


@dataclass
class CrossFormerDetectionOutput(ModelOutput):
    """What a detector returns.

    Attributes:
        loss: Sum of the losses, when there are labels.
        loss_dict: Each of them.
        logits: (batch, detections, num_labels): the logit of a detection's score at its label, elsewhere minus
            infinity, and everywhere for the empty places behind an image's last detection. Highest scores come first.
        pred_boxes: (batch, detections, 4): centre x, centre y, width, height, relative to the image without padding.
        pred_masks: (batch, detections, 28, 28): logits of the masks inside the boxes; of an instance segmenter only.
        hidden_states: As of `CrossFormerModel`, when asked for and all images are padded to one size.
        attentions: The same.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    pred_boxes: torch.Tensor | None = None
    pred_masks: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass(frozen=True)
class Detections:
    """The detections of one image, best first: boxes (detections, 4) in pixels, scores, labels, and maybe masks."""

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor | None = None


@dataclass(frozen=True)
class Target:
    """What is in one image: boxes (objects, 4) in pixels, labels, and masks (objects, height, width) or none."""

    boxes: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


@dataclass(frozen=True)
class SampledRegions:
    """Boxes of one image to learn from, those with an object first, and their objects."""

    boxes: torch.Tensor
    targets: Target

    @property
    def positive(self) -> torch.Tensor:
        """The boxes (objects, 4) that have an object."""
        return self.boxes[: len(self.targets.labels)]

    def labels(self, background: int) -> torch.Tensor:
        """The label of each box."""
        return F.pad(self.targets.labels, (0, len(self.boxes) - len(self.targets.labels)), value=background)

    def mask_targets(self) -> torch.Tensor:
        """What of each object is inside its box, (objects, 28, 28), as booleans."""
        masks = self.targets.masks.to(self.boxes.dtype)[:, None]
        indices = torch.arange(len(masks), dtype=self.boxes.dtype, device=self.boxes.device)
        return roi_align(masks, torch.cat([indices[:, None], self.positive], 1), MASK_SIZE, aligned=True)[:, 0] >= 0.5


def sample_regions(proposals: torch.Tensor, target: Target) -> SampledRegions:
    """A quarter of boxes with an object, among them the objects' own, and the rest without."""
    own = torch.arange(len(target.boxes), device=proposals.device)
    matches = torch.cat([own, match_boxes(proposals, target.boxes, foreground=0.5, background=0.5, lowest=0.5)])
    boxes = torch.cat([target.boxes.to(proposals.dtype), proposals])
    positive, negative = sample_matches(matches, BOX_SAMPLES, 0.25)
    objects = matches[positive]
    return SampledRegions(
        boxes[torch.cat([positive, negative])],
        Target(target.boxes[objects], target.labels[objects], target.masks[objects]),
    )


@dataclass(frozen=True)
class ImageGroup:
    """The images of a batch that are padded to one size: where they are in it, their pixels, and their own sizes."""

    indices: list[int]
    pixel_values: torch.Tensor
    sizes: list[tuple[int, int]]


def image_sizes(pixel_values: torch.Tensor, pixel_mask: torch.Tensor | None) -> list[tuple[int, int]]:
    """Height and width of each image without padding, which is below and on the right where the mask is 0."""
    if pixel_mask is None:
        return [tuple(pixel_values.shape[-2:])] * len(pixel_values)
    if pixel_mask.shape != (len(pixel_values), *pixel_values.shape[-2:]):
        raise ValueError(
            f"`pixel_mask` has the shape {tuple(pixel_mask.shape)}, but must be (batch, height, width) of the images: "
            f"{(len(pixel_values), *pixel_values.shape[-2:])}; pass what the image processor returned."
        )
    mask = pixel_mask.bool()
    heights, widths = mask.any(dim=2).sum(dim=1), mask.any(dim=1).sum(dim=1)
    rows, columns = (torch.arange(size, device=mask.device) for size in mask.shape[1:])
    corner = (rows < heights[:, None])[:, :, None] & (columns < widths[:, None])[:, None]
    for wrong in ((mask != corner).any(dim=2).any(dim=1) | (heights == 0)).nonzero().flatten().tolist()[:1]:
        raise ValueError(
            f"`pixel_mask[{wrong}]` must be 1 for the pixels of an image in the upper left corner, at least one, and "
            "0 for the padding; pass what the image processor returned."
        )
    return list(zip(heights.tolist(), widths.tolist(), strict=True))


def group_images(pixel_values: torch.Tensor, sizes: list[tuple[int, int]], multiple: int) -> list[ImageGroup]:
    """Cut every image to its size, pad it with zeros to multiples, and stack those that then have one size."""
    padded = [
        pad_feature_map(image[None, :, :height, :width], multiple)
        for image, (height, width) in zip(pixel_values, sizes, strict=True)
    ]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(padded):
        groups.setdefault(tuple(image.shape[-2:]), []).append(index)
    return [
        ImageGroup(indices, torch.cat([padded[index] for index in indices]), [sizes[index] for index in indices])
        for indices in groups.values()
    ]


def read_targets(
    labels: list[dict], sizes: list[tuple[int, int]], padded_size: tuple[int, int], num_labels: int, with_masks: bool
) -> list[Target]:
    """Transformers' labels as targets.

    Raises:
        ValueError: An annotation is wrong; the message names the image and the annotation.
    """
    if len(labels) != len(sizes):
        raise ValueError(
            f"`labels` are of {len(labels)} images, but there are {len(sizes)}; give one entry per image."
        )
    targets = []
    for index, (label, size) in enumerate(zip(labels, sizes, strict=True)):
        name, possible = f"labels[{index}]", {tuple(size), tuple(padded_size)}
        check_fields(name, label, with_masks)
        check_shapes(name, label, possible)
        check_classes(name, label["class_labels"], num_labels)
        targets.append(read_target(label, size))
        check_boxes(name, label["boxes"], targets[-1].boxes)
    return targets


def read_target(label: dict, size: tuple[int, int]) -> Target:
    """One image's labels as a target, all of it inside the image of `size` (height, width)."""
    height, width = label.get("size", size)
    boxes = full_precision(label["boxes"])
    boxes = box_convert(boxes, "cxcywh", "xyxy") * boxes.new_tensor([width, height, width, height])
    masks = label.get("masks")
    masks = boxes.new_zeros(0, *size) if masks is None else masks[:, : size[0], : size[1]]
    return Target(clip_boxes_to_image(boxes, size), label["class_labels"].long(), masks)


def check_fields(name: str, label: dict, with_masks: bool) -> None:
    """Raise a `ValueError` unless an image's labels have what is to be learned; without objects, that is no mask."""
    for field in ("class_labels", "boxes", "masks")[: 3 if with_masks else 2]:
        if label.get(field) is None and (field != "masks" or len(label["class_labels"])):
            raise ValueError(
                f"`{name}` has no `{field}`, but the model learns {'masks' if field == 'masks' else 'boxes'}; give "
                "what the image processor makes of COCO annotations."
            )


def check_shapes(name: str, label: dict, sizes: set[tuple[int, int]]) -> None:
    """Raise a `ValueError` unless boxes and masks are as many as classes, and of an image of one of the sizes."""
    number, possible = len(label["class_labels"]), " or ".join(map(str, sorted(sizes)))
    boxes, masks = label["boxes"], label.get("masks")
    if boxes.shape != (number, 4):
        raise ValueError(
            f"`{name}['boxes']` has the shape {tuple(boxes.shape)}, but must be (objects, 4) for the {number} "
            "`class_labels`."
        )
    if masks is not None and (len(masks) != number or tuple(masks.shape[1:]) not in sizes):
        raise ValueError(
            f"`{name}['masks']` has the shape {tuple(masks.shape)}, but must be (objects, height, width) for the "
            f"{number} `class_labels` and the image's size: {possible}."
        )
    size = tuple(map(int, label.get("size", min(sizes))))
    if size not in sizes:
        raise ValueError(
            f"`{name}['size']` is {size}, but must be (height, width) of the image that the model gets: {possible}; "
            "the original image's is `orig_size`."
        )


def check_classes(name: str, classes: torch.Tensor, num_labels: int) -> None:
    """Raise a `ValueError` that names the first class that the model does not have."""
    for wrong in ((classes < 0) | (classes >= num_labels)).nonzero().flatten().tolist()[:1]:
        raise ValueError(
            f"`{name}['class_labels'][{wrong}]` is {int(classes[wrong])}, but the model has {num_labels} classes, "
            "from 0; correct the annotation or set `num_labels`."
        )


def check_boxes(name: str, given: torch.Tensor, inside: torch.Tensor) -> None:
    """Raise a `ValueError` that names the first of the boxes of which nothing is inside the image."""
    has_area = (inside[:, 2:] > inside[:, :2]).all(dim=1) & given.isfinite().all(dim=1)
    for wrong in (~has_area).nonzero().flatten().tolist()[:1]:
        raise ValueError(
            f"`{name}['boxes'][{wrong}]` is {given[wrong].tolist()}, but must be centre x, centre y, width and "
            "height, relative to the image, of a box with an area inside it; correct or remove the annotation."
        )


@dataclass(frozen=True)
class LossTerm:
    """A sum of losses, and what to divide it by once all images are known."""

    total: torch.Tensor
    count: int


def mean_losses(terms: list[dict[str, LossTerm]]) -> dict[str, torch.Tensor]:
    """Each loss over all images."""
    return {
        name: sum(term[name].total for term in terms) / max(sum(term[name].count for term in terms), 1)
        for name in terms[0]
    }


def best_detections(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, config: CrossFormerConfig
) -> Detections:
    """The detections that stay after non-maximum suppression within each class."""
    kept = suppress(boxes, scores, labels, config.nms_threshold, config.max_detections)
    return Detections(boxes[kept], scores[kept], labels[kept])


def collate(
    detections: list[Detections], sizes: list[tuple[int, int]], num_labels: int, most: int
) -> dict[str, torch.Tensor | None]:
    """The detections of each image as tensors with `most` places for each."""
    like = detections[0].scores
    logits = like.new_full((len(detections), most, num_labels), -torch.inf)
    boxes = like.new_zeros(len(detections), most, 4)
    masks = None
    if detections[0].masks is not None:
        masks = like.new_full((len(detections), most, *detections[0].masks.shape[1:]), -torch.inf)
    for index, (found, (height, width)) in enumerate(zip(detections, sizes, strict=True)):
        places = torch.arange(len(found.scores), device=like.device)
        logits[index, places, found.labels] = found.scores.logit()
        relative = found.boxes / found.boxes.new_tensor([width, height, width, height])
        boxes[index, places] = box_convert(relative, "xyxy", "cxcywh")
        if masks is not None:
            masks[index, places] = found.masks
    return {"logits": logits, "pred_boxes": boxes, "pred_masks": masks}


def starting_at(layer: nn.Module, std: float, bias: float = 0.0) -> nn.Module:
    """The layer, with a note for `_init_weights`, which sees layers that have weights and not what they belong to."""
    layer.initial_std, layer.initial_bias = std, bias
    return layer


def rectified(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Module:
    """The layer, noted to start so that gradients keep their scale through a ReLU (arXiv 1502.01852)."""
    return starting_at(layer, math.sqrt(2 / (layer.out_channels * math.prod(layer.kernel_size))))


class CrossFormerExtraLevels(nn.Module):
    """RetinaNet's two levels above the pyramid, of the backbone's last map, with nothing between them."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(channels, out_channels, kernel_size=3, stride=2, padding=1)
            for channels in (in_channels, out_channels)
        )

    def forward(self, feature_map: torch.Tensor) -> list[torch.Tensor]:
        """(batch, in_channels, height, width) to two maps (batch, out_channels, …) of a half and a quarter of it."""
        first = self.convolutions[0](feature_map)
        return [first, self.convolutions[1](first)]


class CrossFormerAnchorHead(nn.Module):
    """RetinaNet's head: four convolutions and a prediction for classes, and the same for boxes, on every level."""

    def __init__(self, config: CrossFormerConfig):
        super().__init__()
        channels, anchors = config.fpn_hidden_size, 3 * len(RETINANET_SCALES)
        self.num_labels = config.num_labels
        self.class_convolutions = nn.ModuleList(self.convolution(channels, channels) for _ in range(4))
        self.box_convolutions = nn.ModuleList(self.convolution(channels, channels) for _ in range(4))
        rare = -math.log((1 - PRIOR) / PRIOR)
        self.classifier = self.convolution(channels, anchors * config.num_labels, bias=rare)
        self.box_regressor = self.convolution(channels, anchors * 4)

    @staticmethod
    def convolution(in_channels: int, out_channels: int, bias: float = 0.0) -> nn.Conv2d:
        """A 3 x 3 convolution that starts as the paper's."""
        return starting_at(nn.Conv2d(in_channels, out_channels, 3, padding=1), std=0.01, bias=bias)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One level to logits (batch, anchors, num_labels) and deltas (batch, anchors, 4)."""
        for_classes = for_boxes = feature_map
        for class_convolution, box_convolution in zip(self.class_convolutions, self.box_convolutions, strict=True):
            for_classes, for_boxes = F.relu(class_convolution(for_classes)), F.relu(box_convolution(for_boxes))
        return (
            flatten_level(self.classifier(for_classes), self.num_labels),
            flatten_level(self.box_regressor(for_boxes), 4),
        )


class CrossFormerDetector(CrossFormerPreTrainedModel):
    """What RetinaNet and Mask R-CNN share: the backbone, and that each image is computed by itself.

    A subclass gives `pyramid`, `loss_terms` and `detect`, and says whether it `learns_masks`.
    """

    _can_compile_fullgraph = False  # how many boxes there are depends on the image
    learns_masks = False

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        self.crossformer = CrossFormerBackbone(config)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if hasattr(module, "initial_std"):
            init.normal_(module.weight, std=module.initial_std)
            init.constant_(module.bias, module.initial_bias)

    @property
    def strides(self) -> list[int]:
        """Strides of the stages' maps, in pixels, and of those that may follow."""
        return [self.config.patch_sizes[0] * 2**level for level in range(self.config.num_stages + 2)]

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CrossFormerDetectionOutput:
        """Find the objects in images of any sizes.

        Args:
            pixel_values: Normalised images (batch, num_channels, height, width), each side at least one patch.
            pixel_mask: (batch, height, width): 1 for an image's pixels, 0 for the padding, below and on the right.
            labels: For each image a dictionary of `class_labels` (objects,), `boxes` (objects, 4), as centre x, centre
                y, width and height relative to `size` (height, width), or to the image without padding if there is no
                `size`, and, for an instance segmenter, `masks` (objects, height, width), with or without the padding.
                What is outside the image is cut off.
            kwargs: `output_hidden_states`, `output_attentions` and the like.

        Returns:
            `loss` and `loss_dict` when there are labels; the detections unless there are and the model is in training
            mode: see `CrossFormerDetectionOutput`. An image processor's `post_process_object_detection` takes it.

        Raises:
            ValueError: The images are as in `CrossFormerModel`, or the mask or an annotation does not fit them.
        """
        sizes = image_sizes(pixel_values, pixel_mask)
        targets = None
        if labels is not None:
            targets = read_targets(labels, sizes, pixel_values.shape[-2:], self.config.num_labels, self.learns_masks)
        groups = group_images(pixel_values, sizes, self.strides[self.config.num_stages - 1])
        with_detections = labels is None or not self.training
        terms, detections = [], {}
        for group in groups:
            maps = self.crossformer(group.pixel_values, **{**kwargs, "output_hidden_states": True})
            pyramid = self.pyramid(maps.hidden_states[1:])
            if targets is not None:
                terms.append(self.loss_terms(pyramid, [targets[index] for index in group.indices], group.sizes))
            if with_detections:
                detections.update(zip(group.indices, self.detect(pyramid, group.sizes), strict=True))
        losses = mean_losses(terms) if terms else {}
        found = [detections[index] for index in range(len(sizes))] if with_detections else None
        only = self.without_unwanted(maps, **kwargs) if len(groups) == 1 else BackboneOutput()
        return CrossFormerDetectionOutput(
            loss=sum(losses.values()) if losses else None,
            loss_dict=losses or None,
            **(collate(found, sizes, self.config.num_labels, self.config.max_detections) if found else {}),
            hidden_states=only.hidden_states,
            attentions=only.attentions,
        )

    @filter_output_hidden_states
    def without_unwanted(self, maps: BackboneOutput, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        """The backbone's outputs without hidden states that were not asked for."""
        return maps


class CrossFormerForObjectDetection(CrossFormerDetector):
    """RetinaNet on CrossFormer, the detector of the authors' `retinanet_crossformer_*` checkpoints.

    Example:
    ```python
    >>> import torch
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerForObjectDetection

    >>> model = CrossFormerForObjectDetection(CrossFormerConfig(num_labels=80)).eval()
    >>> outputs = model(torch.zeros(1, 3, 100, 150))
    >>> outputs.logits.shape, outputs.pred_boxes.shape
    (torch.Size([1, 100, 80]), torch.Size([1, 100, 4]))

    ```
    """

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        channels = config.stage_channels[1:]
        self.neck = CrossFormerFeaturePyramid(channels, config.fpn_hidden_size)
        self.extra_levels = CrossFormerExtraLevels(channels[-1], config.fpn_hidden_size)
        self.head = CrossFormerAnchorHead(config)
        self.post_init()

    def pyramid(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Levels of the stages but the first, and two coarser ones."""
        return [*self.neck(feature_maps[1:]), *self.extra_levels(feature_maps[-1])]

    def anchors(self, pyramid: list[torch.Tensor]) -> list[torch.Tensor]:
        """Anchors (anchors, 4) of each level, in pixels."""
        levels = zip(pyramid, self.strides[1:], strict=True)
        return [grid_anchors(feature_map, stride, RETINANET_SCALES) for feature_map, stride in levels]

    def loss_terms(
        self, pyramid: list[torch.Tensor], targets: list[Target], sizes: list[tuple[int, int]]
    ) -> dict[str, LossTerm]:
        """Focal loss of the classes, over every anchor, and L1 loss of the matched ones' boxes."""
        anchors = torch.cat(self.anchors(pyramid))
        logits, deltas = (torch.cat(levels, dim=1) for levels in zip(*map(self.head, pyramid), strict=True))
        classes, boxes, count = [], [], 0
        for image, target in enumerate(targets):
            matches = match_boxes(anchors, target.boxes, foreground=0.5, background=0.4, lowest=0.0)
            positive = (matches >= 0).nonzero().squeeze(1)
            matched = matches[positive]
            wanted = torch.zeros_like(logits[image])
            wanted[positive, target.labels[matched]] = 1
            focal = sigmoid_focal_loss(logits[image], wanted, alpha=0.25, gamma=2)
            classes.append(focal[matches != -2].sum())
            encoded = ANCHOR_CODER.encode_single(target.boxes[matched], anchors[positive])
            boxes.append((deltas[image, positive] - encoded).abs().sum())
            count += max(len(positive), 1)
        return {"loss_class": LossTerm(sum(classes), count), "loss_box": LossTerm(sum(boxes), count)}

    def detect(self, pyramid: list[torch.Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """The detections of each image of a group."""
        anchors, predictions = self.anchors(pyramid), [self.head(level) for level in pyramid]
        return [
            self.detect_in_image(
                anchors, [(logits[image], deltas[image]) for logits, deltas in predictions], sizes[image]
            )
            for image in range(len(sizes))
        ]

    def detect_in_image(self, anchors: list[torch.Tensor], predictions: list, size: tuple[int, int]) -> Detections:
        """The best candidates of each level, without those that a better one of their class covers."""
        boxes, scores, labels = [], [], []
        for level_anchors, (logits, deltas) in zip(anchors, predictions, strict=True):
            kept, indices = select_candidates(
                logits.flatten().sigmoid(), self.config.score_threshold, CANDIDATES_PER_LEVEL
            )
            anchor = indices // self.config.num_labels
            boxes.append(decode(deltas[anchor], level_anchors[anchor], size, ANCHOR_CODER))
            scores.append(kept)
            labels.append(indices % self.config.num_labels)
        return best_detections(torch.cat(boxes), torch.cat(scores), torch.cat(labels), self.config)


class CrossFormerProposalHead(nn.Module):
    """Region proposal network (arXiv 1506.01497): a convolution, and predictions for each anchor of each level."""

    def __init__(self, config: CrossFormerConfig):
        super().__init__()
        anchors = RATIOS * len(PROPOSAL_SCALES)
        channels = config.fpn_hidden_size
        self.convolution = starting_at(nn.Conv2d(channels, channels, 3, padding=1), std=0.01)
        self.objectness = starting_at(nn.Conv2d(channels, anchors, 1), std=0.01)
        self.box_regressor = starting_at(nn.Conv2d(channels, anchors * 4, 1), std=0.01)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One level to logits (batch, anchors) and deltas (batch, anchors, 4)."""
        hidden = F.relu(self.convolution(feature_map))
        return flatten_level(self.objectness(hidden), 1)[..., 0], flatten_level(self.box_regressor(hidden), 4)


class CrossFormerBoxHead(nn.Module):
    """Two linear layers on a region's features, then its class, the last being background, and a box per class."""

    def __init__(self, config: CrossFormerConfig):
        super().__init__()
        self.num_labels = config.num_labels
        pooled = config.fpn_hidden_size * BOX_POOLING**2
        self.fc1 = starting_at(nn.Linear(pooled, BOX_FEATURES), std=math.sqrt(2 / (pooled + BOX_FEATURES)))
        self.fc2 = starting_at(nn.Linear(BOX_FEATURES, BOX_FEATURES), std=math.sqrt(1 / BOX_FEATURES))
        self.classifier = starting_at(nn.Linear(BOX_FEATURES, config.num_labels + 1), std=0.01)
        self.box_regressor = starting_at(nn.Linear(BOX_FEATURES, config.num_labels * 4), std=0.001)

    def forward(self, regions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(boxes, channels, 7, 7) to logits (boxes, num_labels + 1) and deltas (boxes, num_labels, 4)."""
        hidden = F.relu(self.fc2(F.relu(self.fc1(regions.flatten(1)))))
        deltas = self.box_regressor(hidden).unflatten(1, (self.num_labels, 4))
        return full_precision(self.classifier(hidden)), full_precision(deltas)


class CrossFormerMaskHead(nn.Module):
    """Four convolutions, a doubling and a mask for each class."""

    def __init__(self, config: CrossFormerConfig):
        super().__init__()
        channels = config.fpn_hidden_size
        self.convolutions = nn.ModuleList(rectified(nn.Conv2d(channels, channels, 3, padding=1)) for _ in range(4))
        self.upsampling = rectified(nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2))
        self.classifier = starting_at(nn.Conv2d(channels, config.num_labels, 1), std=0.01)

    def forward(self, regions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(boxes, channels, 14, 14) to logits (boxes, 28, 28) of the masks of the boxes' own labels."""
        for convolution in self.convolutions:
            regions = F.relu(convolution(regions))
        logits = self.classifier(F.relu(self.upsampling(regions)))
        return full_precision(logits[torch.arange(len(labels), device=labels.device), labels])


class CrossFormerForInstanceSegmentation(CrossFormerDetector):
    """Mask R-CNN on CrossFormer, the instance segmenter of the authors' `mask_rcnn_crossformer_*` checkpoints.

    Example:
    ```python
    >>> import torch
    >>> from crossformer_hf import CrossFormerConfig, CrossFormerForInstanceSegmentation

    >>> model = CrossFormerForInstanceSegmentation(CrossFormerConfig(num_labels=80)).eval()
    >>> outputs = model(torch.zeros(1, 3, 100, 150))
    >>> outputs.pred_boxes.shape, outputs.pred_masks.shape
    (torch.Size([1, 100, 4]), torch.Size([1, 100, 28, 28]))

    ```
    """

    learns_masks = True

    def __init__(self, config: CrossFormerConfig):
        super().__init__(config)
        self.neck = CrossFormerFeaturePyramid(config.stage_channels, config.fpn_hidden_size)
        self.proposal_head = CrossFormerProposalHead(config)
        self.box_head = CrossFormerBoxHead(config)
        self.mask_head = CrossFormerMaskHead(config)
        self.post_init()

    def pyramid(self, feature_maps: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Levels of all stages, and every second token of the last."""
        levels = self.neck(feature_maps)
        return [*levels, F.max_pool2d(levels[-1], kernel_size=1, stride=2)]

    def anchors(self, pyramid: list[torch.Tensor]) -> list[torch.Tensor]:
        """Anchors (anchors, 4) of each level, in pixels."""
        levels = zip(pyramid, self.strides[:-1], strict=True)
        return [grid_anchors(feature_map, stride, PROPOSAL_SCALES) for feature_map, stride in levels]

    def propose(
        self, anchors: list[torch.Tensor], predictions: list, sizes: list[tuple[int, int]]
    ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Boxes (proposals, 4) of each image that may hold an object, and their scores, best first."""
        with torch.no_grad():
            return [
                self.propose_in_image(anchors, [(logits[i], deltas[i]) for logits, deltas in predictions], size)
                for i, size in enumerate(sizes)
            ]

    def propose_in_image(
        self, anchors: list[torch.Tensor], predictions: list, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The best of each level, without those that a better one of the level covers."""
        most = TRAINING_PROPOSAL_CANDIDATES if self.training else CANDIDATES_PER_LEVEL
        boxes, scores, levels = [], [], []
        for level, (level_anchors, (logits, deltas)) in enumerate(zip(anchors, predictions, strict=True)):
            kept, indices = select_candidates(logits.sigmoid(), -1.0, most)
            boxes.append(decode(deltas[indices], level_anchors[indices], size, ANCHOR_CODER))
            scores.append(kept)
            levels.append(torch.full_like(indices, level))
        boxes, scores = torch.cat(boxes), torch.cat(scores)
        kept = suppress(boxes, scores, torch.cat(levels), PROPOSAL_NMS_THRESHOLD, PROPOSALS)
        return boxes[kept], scores[kept]

    def pool(self, pyramid: list[torch.Tensor], boxes: list[torch.Tensor], size: int) -> torch.Tensor:
        """Features (boxes, channels, size, size) of all images' boxes; the coarsest level serves proposals only."""
        return pool_regions(pyramid[:-1], self.strides[: len(pyramid) - 1], boxes, size)

    def detect(self, pyramid: list[torch.Tensor], sizes: list[tuple[int, int]]) -> list[Detections]:
        """The detections of each image of a group."""
        predictions = [self.proposal_head(level) for level in pyramid]
        proposals = [boxes for boxes, _ in self.propose(self.anchors(pyramid), predictions, sizes)]
        logits, deltas = self.box_head(self.pool(pyramid, proposals, BOX_POOLING))
        counts = [len(boxes) for boxes in proposals]
        found = [
            self.detect_in_image(*image)
            for image in zip(proposals, logits.softmax(dim=1).split(counts), deltas.split(counts), sizes, strict=True)
        ]
        masks = self.mask_head(
            self.pool(pyramid, [image.boxes for image in found], MASK_POOLING),
            torch.cat([image.labels for image in found]),
        ).split([len(image.boxes) for image in found])
        return [
            Detections(image.boxes, image.scores, image.labels, mask) for image, mask in zip(found, masks, strict=True)
        ]

    def detect_in_image(
        self, proposals: torch.Tensor, scores: torch.Tensor, deltas: torch.Tensor, size: tuple[int, int]
    ) -> Detections:
        """The best boxes of each class; the last column of the scores is background."""
        kept, indices = select_candidates(scores[:, :-1].flatten(), self.config.score_threshold, most=scores.numel())
        proposal, labels = indices // self.config.num_labels, indices % self.config.num_labels
        boxes = decode(deltas[proposal, labels], proposals[proposal], size, BOX_CODER)
        return best_detections(boxes, kept, labels, self.config)

    def loss_terms(
        self, pyramid: list[torch.Tensor], targets: list[Target], sizes: list[tuple[int, int]]
    ) -> dict[str, LossTerm]:
        """Losses of the proposals, and of the class, box and mask of sampled proposals."""
        anchors, predictions = self.anchors(pyramid), [self.proposal_head(level) for level in pyramid]
        proposals = [boxes for boxes, _ in self.propose(anchors, predictions, sizes)]
        return {
            **self.proposal_losses(torch.cat(anchors), predictions, targets),
            **self.region_losses(pyramid, proposals, targets),
        }

    def proposal_losses(self, anchors: torch.Tensor, predictions: list, targets: list[Target]) -> dict[str, LossTerm]:
        """Cross entropy and L1 loss of sampled anchors."""
        logits, deltas = (torch.cat(levels, dim=1) for levels in zip(*predictions, strict=True))
        objectness, boxes, count = [], [], 0
        for image, target in enumerate(targets):
            matches = match_boxes(anchors, target.boxes, foreground=0.7, background=0.3, lowest=0.3)
            positive, negative = sample_matches(matches, PROPOSAL_SAMPLES, 0.5)
            sampled = logits[image, torch.cat([positive, negative])]
            wanted = (torch.arange(len(sampled), device=sampled.device) < len(positive)).to(sampled.dtype)
            objectness.append(F.binary_cross_entropy_with_logits(sampled, wanted, reduction="sum"))
            encoded = ANCHOR_CODER.encode_single(target.boxes[matches[positive]], anchors[positive])
            boxes.append((deltas[image, positive] - encoded).abs().sum())
            count += len(sampled)
        return {
            "loss_proposal_class": LossTerm(sum(objectness), count),
            "loss_proposal_box": LossTerm(sum(boxes), count),
        }

    def region_losses(
        self, pyramid: list[torch.Tensor], proposals: list[torch.Tensor], targets: list[Target]
    ) -> dict[str, LossTerm]:
        """Losses of the classes and boxes of sampled proposals, and of the masks of those with an object."""
        regions = [sample_regions(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]
        logits, deltas = self.box_head(self.pool(pyramid, [region.boxes for region in regions], BOX_POOLING))
        labels = torch.cat([region.labels(self.config.num_labels) for region in regions])
        positive = (labels < self.config.num_labels).nonzero().squeeze(1)
        encoded = torch.cat([BOX_CODER.encode_single(region.targets.boxes, region.positive) for region in regions])
        errors = (deltas[positive, labels[positive]] - encoded).abs()
        masks = self.mask_head(
            self.pool(pyramid, [region.positive for region in regions], MASK_POOLING), labels[positive]
        )
        wanted = torch.cat([region.mask_targets() for region in regions])
        mask_errors = F.binary_cross_entropy_with_logits(masks, wanted.to(masks.dtype), reduction="sum")
        return {
            "loss_class": LossTerm(F.cross_entropy(logits, labels, reduction="sum"), len(labels)),
            "loss_box": LossTerm(errors.sum(), len(labels)),
            "loss_mask": LossTerm(mask_errors, wanted.numel()),
        }


__all__ = ["CrossFormerDetectionOutput", "CrossFormerForInstanceSegmentation", "CrossFormerForObjectDetection"]
