"""The models that a checkpoint can become, as data: their class, their parts, and where the backbone goes in them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from transformers import PreTrainedConfig, PreTrainedModel, UperNetConfig, UperNetForSemanticSegmentation

from conversion.key_mapping import HEAD_RENAMES, RETINANET_RENAMES, Rules
from conversion.variants import MASK_RCNN, RETINANET, SEMANTIC_FPN, UPERNET
from crossformer_hf import (
    CrossFormerBackbone,
    CrossFormerConfig,
    CrossFormerForImageClassification,
    CrossFormerForInstanceSegmentation,
    CrossFormerForObjectDetection,
    CrossFormerForSemanticSegmentation,
)


if TYPE_CHECKING:
    from conversion.porting import Weights


@dataclass(frozen=True)
class Target:
    """A model that a checkpoint becomes.

    Attributes:
        kind: What such a model is called.
        task: What it does.
        model_class: Its class.
        configure: Its configuration, from that of the CrossFormer and the weights.
        parts: The parts of the checkpoint beside the backbone that it has too.
        renames: The names of those parts in it.
        dispensable: Those of its parts that it does without, such as one that serves only training.
        prefix: Where it has the CrossFormer, with a dot at the end.
        has_final_norm: Whether it has the norm after the last stage, which every checkpoint of a classifier holds.
    """

    kind: str
    task: str
    model_class: type[PreTrainedModel]
    configure: Callable[[CrossFormerConfig, "Weights"], PreTrainedConfig]
    parts: frozenset[str] = frozenset()
    renames: Rules = ()
    dispensable: frozenset[str] = frozenset()
    prefix: str = ""
    has_final_norm: bool = False

    def fits(self, parts: frozenset[str]) -> bool:
        """Whether it can be made of a checkpoint with these parts beside its backbone."""
        return parts | self.dispensable == self.parts

    @property
    def has_classes(self) -> bool:
        """Whether it says which class something is."""
        return self is not BACKBONE

    @property
    def brings_code(self) -> bool:
        """Whether its class is one of this project, which a folder can bring along."""
        return self.model_class is not UperNetForSemanticSegmentation


def as_it_is(config: CrossFormerConfig, weights: "Weights") -> CrossFormerConfig:
    """The CrossFormer's own configuration."""
    return config


def with_all_stages(config: CrossFormerConfig, weights: "Weights") -> CrossFormerConfig:
    """The CrossFormer's own configuration, whose backbone returns every stage's feature map."""
    config.set_output_features_output_indices(out_features=config.stage_names[1:], out_indices=None)
    return config


def upernet_config(config: CrossFormerConfig, weights: "Weights") -> UperNetConfig:
    """That of a UPerNet: its widths are those of the weights, the rest is as in every configuration of the original.

    mmsegmentation drops a tenth of the channels before a classifier while it trains; Transformers' UPerNet does not.
    """
    widths = {part: weights.classifier_shape(part)[1] for part in weights.parts}
    return UperNetConfig(
        backbone_config=with_all_stages(config, weights),
        hidden_size=widths["decode_head"] or 512,
        pool_scales=[1, 2, 3, 6],
        use_auxiliary_head="auxiliary_head" in widths,
        auxiliary_in_channels=config.stage_channels[min(2, config.num_stages - 1)],
        auxiliary_channels=widths.get("auxiliary_head") or 256,
    )


CLASSIFIER = Target(
    "classifier",
    "image-classification",
    CrossFormerForImageClassification,
    as_it_is,
    prefix="crossformer.",
    has_final_norm=True,
)
BACKBONE = Target("backbone", "image-feature-extraction", CrossFormerBackbone, with_all_stages)
SEMANTIC_FPN_SEGMENTOR = Target(
    "Semantic FPN",
    "semantic-segmentation",
    CrossFormerForSemanticSegmentation,
    with_all_stages,
    SEMANTIC_FPN,
    HEAD_RENAMES,
    prefix="crossformer.",
)
UPERNET_SEGMENTOR = Target(
    "UPerNet",
    "semantic-segmentation",
    UperNetForSemanticSegmentation,
    upernet_config,
    UPERNET,
    HEAD_RENAMES,
    dispensable=frozenset({"auxiliary_head"}),
    prefix="backbone.",
)
RETINANET_DETECTOR = Target(
    "RetinaNet",
    "object-detection",
    CrossFormerForObjectDetection,
    with_all_stages,
    RETINANET,
    RETINANET_RENAMES,
    prefix="crossformer.",
)
MASK_RCNN_DETECTOR = Target(
    "Mask R-CNN",
    "instance-segmentation",
    CrossFormerForInstanceSegmentation,
    with_all_stages,
    MASK_RCNN,
    HEAD_RENAMES,
    prefix="crossformer.",
)
TARGETS = (
    CLASSIFIER,
    BACKBONE,
    SEMANTIC_FPN_SEGMENTOR,
    UPERNET_SEGMENTOR,
    RETINANET_DETECTOR,
    MASK_RCNN_DETECTOR,
)


def crossformer_config(config: PreTrainedConfig) -> CrossFormerConfig:
    """The CrossFormer's part of a target's configuration."""
    return getattr(config, "backbone_config", None) or config
