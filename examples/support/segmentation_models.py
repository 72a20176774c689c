"""Segmentors to train, from random or pretrained weights, and trained ones; other folders are refused."""

import json

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from crossformer_hf import (
    PRESETS,
    CrossFormerConfig,
    CrossFormerForSemanticSegmentation,
    from_pretrained_backbone,
    preset_config,
)

from .errors import InputError
from .pretrained import labels_of, load, read_config


HEADS = ("fpn", "upernet")
SEGMENTOR = "ForSemanticSegmentation"


def build_segmentor(
    head: str, architecture: str, overrides: str, names: list[str], image_size: int
) -> PreTrainedModel:
    """Segmentor with random weights.

    Args:
        head: `fpn` or `upernet`.
        architecture: Name of a preset.
        overrides: Fields of the configuration that differ from the preset, as JSON.
        names: Names of the classes.
        image_size: Height and width of training images in pixels.

    Raises:
        InputError: There is no such architecture.
    """
    labels = labels_of(names)
    try:
        fields = {"image_size": image_size, **json.loads(overrides or "{}")}
        config = preset_config(architecture, **fields, **labels)
        if head == "fpn":
            return CrossFormerForSemanticSegmentation(config)
        return UperNetForSemanticSegmentation(upernet_config(config, labels))
    except (ValueError, TypeError, StrictDataclassError) as error:
        raise InputError(
            f"--architecture {architecture} with --config_overrides {overrides} gives no model ({error}): give one of "
            f"{', '.join(PRESETS)} and overrides such as '{{\"drop_path_rate\": 0.3}}'"
        ) from error


def upernet_config(backbone: CrossFormerConfig, labels: dict) -> UperNetConfig:
    """UPerNet on all stages, whose auxiliary head sees the third."""
    if backbone.num_stages < 3:
        raise ValueError(f"`depths` is {backbone.depths}, but UPerNet's auxiliary head needs a third stage")
    backbone.set_output_features_output_indices(out_features=backbone.stage_names[1:], out_indices=None)
    return UperNetConfig(backbone_config=backbone, auxiliary_in_channels=backbone.stage_channels[2], **labels)


def pretrained_segmentor(head: str, path: str, names: list[str]) -> PreTrainedModel:
    """Segmentor with pretrained weights; what does not fit the classes, and a head that is missing, is new.

    Args:
        head: `fpn` or `upernet`.
        path: Folder or Hub name of a CrossFormer classifier, backbone or segmentor, or a UPerNet to go on from.
        names: Names of the classes.

    Raises:
        InputError: It is another kind of model or cannot be loaded.
    """
    config = read_config(path)
    labels = labels_of(names)
    if head == "upernet" and config.model_type == "crossformer":
        return load(from_pretrained_backbone, UperNetForSemanticSegmentation, path, **labels)
    model_class, model_type = {
        "fpn": (CrossFormerForSemanticSegmentation, "crossformer"),
        "upernet": (UperNetForSemanticSegmentation, "upernet"),
    }[head]
    if config.model_type != model_type:
        raise InputError(
            f"{path} holds a model of type {config.model_type}, but with --head {head} training starts from "
            f"{'a CrossFormer' if head == 'fpn' else 'a CrossFormer or a UPerNet'}: give another --model_name_or_path"
            + (" or --head upernet" if config.model_type == "upernet" else "")
        )
    return load(model_class.from_pretrained, path, ignore_mismatched_sizes=True, **labels)


def load_segmentor(path: str) -> PreTrainedModel:
    """Trained segmentor, in evaluation mode.

    Raises:
        InputError: It is another kind of model or cannot be loaded.
    """
    config = read_config(path)
    architecture = (config.architectures or [config.model_type])[0]
    if not architecture.endswith(SEGMENTOR):
        raise InputError(
            f"{path} holds a {architecture}, but a model for semantic segmentation is needed: give the folder of one, "
            "such as finetune_segmentation.py makes"
        )
    return load(AutoModelForSemanticSegmentation.from_pretrained, path).eval()
