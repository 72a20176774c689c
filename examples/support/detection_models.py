"""Detectors to train, from random or pretrained weights, and trained ones; other folders are refused."""

import json
from collections.abc import Sequence
from functools import partial

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
    DeformableDetrForObjectDetection,
    DeformableDetrImageProcessor,
    DetrForObjectDetection,
    DetrImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.image_transforms import get_size_with_aspect_ratio

from crossformer_hf import (
    PRESETS,
    CrossFormerForInstanceSegmentation,
    CrossFormerForObjectDetection,
    CrossFormerImageProcessor,
    from_pretrained_backbone,
    preset_config,
)
from crossformer_hf.pretrained_backbone import CONSUMERS

from .errors import InputError
from .pretrained import labels_of, load, read_config


CROSSFORMER_HEADS = {"retinanet": CrossFormerForObjectDetection, "mask_rcnn": CrossFormerForInstanceSegmentation}
DETR_HEADS = {"detr": DetrForObjectDetection, "deformable_detr": DeformableDetrForObjectDetection}
HEADS = {**CROSSFORMER_HEADS, **DETR_HEADS}
PROCESSORS = {"mask_rcnn": CrossFormerImageProcessor, "detr": DetrImageProcessor}
DETECTOR, INSTANCE_SEGMENTER = "ForObjectDetection", "CrossFormerForInstanceSegmentation"


def build_detector(
    head: str, path: str | None, architecture: str, overrides: str, head_overrides: str, names: list[str]
) -> PreTrainedModel:
    """Detector to train.

    Args:
        head: One of `HEADS`.
        path: Folder or Hub name of a CrossFormer, or of a detector with this head to go on from; none for random
            weights.
        architecture: Name of a preset, for random weights.
        overrides: Fields of the CrossFormer's configuration that differ, as JSON.
        head_overrides: Fields of a DETR's own configuration that differ, as JSON.
        names: Names of the classes.

    Raises:
        InputError: There is no such architecture or field, or the pretrained model is another kind.
    """
    fields, head_fields = read_fields("config", overrides), read_fields("head", head_overrides)
    if head in CROSSFORMER_HEADS and head_fields:
        raise InputError(f"--head_overrides is for DETR heads, but --head is {head}: give --config_overrides")
    head_fields = {**head_fields, **labels_of(names)}
    if path:
        return pretrained_detector(head, path, fields, head_fields)
    try:
        return random_detector(head, architecture, fields, head_fields)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        raise InputError(
            f"--architecture {architecture} with --config_overrides {overrides} and --head_overrides {head_overrides} "
            f"gives no model ({error}): give one of {', '.join(PRESETS)} and overrides such as "
            "'{\"drop_path_rate\": 0.3}'"
        ) from error


def read_fields(what: str, text: str) -> dict:
    """Fields of a configuration, from JSON.

    Raises:
        InputError: It is no JSON object.
    """
    try:
        fields = json.loads(text or "{}")
    except ValueError as error:
        raise InputError(f"--{what}_overrides is {text}, which is no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise InputError(f"--{what}_overrides is {text}, but it must be a JSON object such as '{{\"a\": 1}}'")
    return fields


def random_detector(head: str, architecture: str, fields: dict, head_fields: dict) -> PreTrainedModel:
    """Detector with random weights."""
    if head in CROSSFORMER_HEADS:
        return HEADS[head](preset_config(architecture, **fields, **head_fields))
    backbone = preset_config(architecture, **fields)
    config_class = HEADS[head].config_class
    features = CONSUMERS[config_class.model_type].out_features(backbone.stage_names[1:])
    backbone.set_output_features_output_indices(out_features=features, out_indices=None)
    return HEADS[head](config_class(backbone_config=backbone, **head_fields))


def pretrained_detector(head: str, path: str, fields: dict, head_fields: dict) -> PreTrainedModel:
    """Detector with pretrained weights; what does not fit the classes, and a head that is missing, is new."""
    model_class, found = HEADS[head], read_config(path).model_type
    if head in DETR_HEADS and found == "crossformer":
        return around_backbone(model_class, path, fields, head_fields)
    if found != model_class.config_class.model_type:
        raise InputError(
            f"{path} holds a model of type {found}, but with --head {head} training starts from a CrossFormer"
            + (f" or a {head}" if head in DETR_HEADS else "")
            + ": give another --model_name_or_path or --head"
        )
    if head in DETR_HEADS and fields:
        raise InputError(f"--config_overrides is for the backbone, but {path} is a whole {head}: leave it out")
    return load(model_class.from_pretrained, path, ignore_mismatched_sizes=True, **fields, **head_fields)


def around_backbone(model_class: type[PreTrainedModel], path: str, fields: dict, head_fields: dict) -> PreTrainedModel:
    """DETR with random weights around a pretrained CrossFormer."""
    try:
        return from_pretrained_backbone(model_class, path, backbone_kwargs=fields, **head_fields)
    except Exception as error:  # Folders hold anything, and sizes may contradict each other in any way.
        raise InputError(
            f"no {model_class.__name__} can be built around {path} ({error}): give the folder of a CrossFormer, and "
            "fields of its configuration as --head_overrides"
        ) from error


def build_image_processor(head: str, shortest_edge: int, longest_edge: int):
    """Image processor that is saved with the model: resizes, normalises, pads, and has the post-processing."""
    size = {"shortest_edge": shortest_edge, "longest_edge": longest_edge}
    return PROCESSORS.get(head, DeformableDetrImageProcessor)(size=size)


def has_masks(config: PreTrainedConfig) -> bool:
    """Whether a model finds masks too."""
    return INSTANCE_SEGMENTER in (config.architectures or [])


def load_detector(path: str) -> PreTrainedModel:
    """Trained detector or instance segmenter, in evaluation mode.

    Raises:
        InputError: It is another kind of model or cannot be loaded.
    """
    config = read_config(path)
    architecture = (config.architectures or [config.model_type])[0]
    if architecture == INSTANCE_SEGMENTER:
        return load(AutoModelForInstanceSegmentation.from_pretrained, path).eval()
    if architecture.endswith(DETECTOR):
        return load(AutoModelForObjectDetection.from_pretrained, path).eval()
    raise InputError(
        f"{path} holds a {architecture}, but a model for object detection or an {INSTANCE_SEGMENTER} is needed: give "
        "the folder of one, such as finetune_detection.py makes"
    )


def check_size(name: str, size: Sequence[int], processor, smallest: int) -> None:
    """Raise an `InputError` if an image, of `size` (height, width), is resized to a side of less than `smallest`."""
    edges = dict(processor.size)
    if not (edges.get("shortest_edge") and edges.get("longest_edge")):
        return
    height, width = get_size_with_aspect_ratio(size, edges["shortest_edge"], edges["longest_edge"])
    if min(height, width) < smallest:
        raise InputError(
            f"{name} is {size[1]} x {size[0]} pixels, which resizing makes {width} x {height}, but the model takes "
            f"sides of at least {smallest}: crop such a narrow image or leave it out"
        )


def size_check(model: PreTrainedModel, processor):
    """`check_size` for one model, whose smallest side is a token of the finest map."""
    config = getattr(model.config, "backbone_config", None) or model.config
    patch_sizes = getattr(config, "patch_sizes", None) or [1]
    return partial(check_size, processor=processor, smallest=patch_sizes[0])
